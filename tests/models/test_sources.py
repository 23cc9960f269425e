"""Models named on the command line: what each source builds, and what it says when it cannot."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from alignkit import hookimpl
from alignkit.errors import MissingExtraError, ModelSourceError, UsageError
from alignkit.graph.proof.perturb import perturbed
from alignkit.models import load_model, source_of, sources
from alignkit.plugins import Registry
from alignkit.plugins.plugin_registry import registry
from alignkit.tracing import trace

# ---------------------------------------------------------------------- what a text becomes


@pytest.mark.parametrize("text", ["my_models:mlp", "python:my_models:mlp", "my_models:keywords", "my_models:Lightning"])
@pytest.mark.usefixtures("model_modules")
def test_factory_gives_a_model_that_runs_on_its_inputs(text: str) -> None:
    model, args, kwargs = load_model(text)
    assert model(*args, **kwargs).shape[-1] == 3
    assert not model.training


@pytest.mark.usefixtures("model_modules")
def test_same_weights_each_time() -> None:
    one, two = (load_model("my_models:mlp")[0] for _ in range(2))
    assert torch.equal(one[0].weight, two[0].weight)


@pytest.mark.parametrize(
    ("text", "kind", "said"),
    [
        ("resnet18", UsageError, "write SOURCE:NAME"),
        ("torchvison:resnet18", UsageError, "Did you mean 'torchvision'?"),
        ("my_models:mpl", UsageError, "Did you mean 'mlp'?"),
        ("no_such.module:mlp", UsageError, "no module 'no_such.module'"),
        ("my_models:bare", ModelSourceError, r"Return \(model, example_inputs\)"),
        ("my_models:nothing", ModelSourceError, "an object of type int"),
        ("my_models:broken", ModelSourceError, "KeyError: 'no such layer'"),
        ("my_models:model", ModelSourceError, "not a function"),
        ("my_broken:mlp", ModelSourceError, "No module named 'no_such_library'"),
        pytest.param("transformers:nowhere", UsageError, "cannot be read", marks=pytest.mark.models("transformers")),
    ],
)
@pytest.mark.usefixtures("model_modules")
def test_wrong_names_are_explained(text: str, kind: type[Exception], said: str) -> None:
    with pytest.raises(kind, match=said):
        load_model(text)


def test_library_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match="pip install timm"):
        load_model("timm:resnet18")


def test_library_that_does_not_fit_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    def refuse(name: str) -> None:
        raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())  # as if it were installed
    monkeypatch.setattr(importlib, "import_module", refuse)
    with pytest.raises(MissingExtraError, match="built for another torch"):
        load_model("torchvision:resnet18")


def test_library_whose_import_hides_that_torchvision_does_not_fit(model_modules: Path) -> None:
    # transformers imports torchvision late, and tells of its failure only in the cause of its own error.
    (model_modules / "my_late.py").write_text(
        "def model():\n"
        "    try:\n"
        "        raise RuntimeError('operator torchvision::nms does not exist')\n"
        "    except RuntimeError as error:\n"
        "        raise ImportError('Could not import module LlamaConfig') from error\n"
    )
    with pytest.raises(MissingExtraError, match="built for another torch"):
        load_model("my_late:model")


@pytest.mark.models("torchvision")
def test_torchvision_names() -> None:
    model, args, _ = load_model("torchvision:squeezenet1_1")
    assert isinstance(model, nn.Module)
    assert args[0].shape == (1, 3, 224, 224)
    with pytest.raises(UsageError, match="Did you mean 'resnet18'"):
        load_model("torchvision:resnet_18")


@pytest.mark.models("timm")
def test_timm_names() -> None:
    with pytest.raises(UsageError, match="Did you mean 'vit_tiny_patch16_224'"):
        load_model("timm:vit_tiny_patch16_244")


def gpt2(**more: object) -> dict[str, object]:
    return {"model_type": "gpt2", "n_embd": 16, "n_head": 2, "n_layer": 1, "vocab_size": 40, "n_positions": 16, **more}


@pytest.mark.models("transformers")
@pytest.mark.parametrize("as_folder", [True, False])
def test_transformers_configuration(tmp_path: Path, as_folder: bool) -> None:
    file = tmp_path / "config.json"
    file.write_text(json.dumps(gpt2(architectures=["GPT2LMHeadModel"])))
    model, args, kwargs = load_model(f"transformers:{tmp_path if as_folder else file}")
    assert type(model).__name__ == "GPT2LMHeadModel"
    assert model(*args, **kwargs).logits.shape[-1] == 40


@pytest.mark.models("transformers")
@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "is not the JSON"),
        ("{}", "has no model_type"),
        ('{"model_type": "gtp2"}', "Did you mean 'gpt2'"),
        (json.dumps(gpt2(architectures=["OursForCausalLM"])), "has no OursForCausalLM"),
        (json.dumps(gpt2(n_head=3)), "could not be built"),
    ],
)
def test_broken_configurations(tmp_path: Path, content: str, said: str) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(ModelSourceError, match=said):
        load_model(f"transformers:{tmp_path}")


UNET = {
    "_class_name": "UNet2DModel",
    "sample_size": 16,
    "block_out_channels": [16, 32],
    "layers_per_block": 1,
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
    "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
    "norm_num_groups": 8,
}
CONDITIONED = {
    **UNET,
    "_class_name": "UNet2DConditionModel",
    "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
    "attention_head_dim": 4,
    "cross_attention_dim": 24,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 60,
}
FOLDERS = {
    "transformers": gpt2(architectures=["GPT2LMHeadModel"]),
    "timm": {"architecture": "resnet10t", "num_classes": 7, "pretrained_cfg": {"input_size": [3, 32, 32]}},
    "diffusers": UNET,
}


@pytest.mark.parametrize("library", [pytest.param(name, marks=pytest.mark.models(name)) for name in FOLDERS])
def test_a_folder_says_which_library_builds_it(library: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(FOLDERS[library]))
    text = source_of(tmp_path / "config.json")
    assert text == f"{library}:{tmp_path / 'config.json'}"
    model, args, kwargs = load_model(text)
    assert model(*args, **kwargs) is not None


@pytest.mark.parametrize("content", ["{}", '{"model": "mine"}'])
def test_a_folder_of_no_known_library(content: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(content)
    assert source_of(tmp_path / "config.json") is None


@pytest.mark.parametrize("content", ["{", "[]", "\x00", '{"hidden_size": -1}'])
def test_a_folder_whose_configuration_is_broken(content: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(ModelSourceError, match=r"config\.json"):
        source_of(tmp_path / "config.json")


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(FOLDERS["transformers"], id="gpt2", marks=pytest.mark.models("transformers")),
        pytest.param(UNET, id="unet", marks=pytest.mark.models("diffusers")),
        pytest.param(CONDITIONED, id="conditioned", marks=pytest.mark.models("diffusers")),
    ],
)
def test_a_bare_model_has_no_weights_and_the_same_graph(content: dict[str, object], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(content))
    graphs = []
    for bare in (True, False):
        model, args, kwargs = load_model(source_of(tmp_path / "config.json") or "", bare=bare)
        assert all(p.is_meta == bare for p in model.parameters())
        graphs.append(trace(model, *args, **kwargs))
    assert graphs[0] == graphs[1]
    assert graphs[0].groups
    graphs[1].verify(perturbed(model), *args, **kwargs)


@pytest.mark.models("diffusers")
@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"_class_name": "UNet9D"}, "has no model UNet9D"),
        ({"a": 1}, "no _class_name"),
        ({"_class_name": "DDPMScheduler"}, "has no model DDPMScheduler"),
    ],
)
def test_broken_folders_of_diffusers(content: dict[str, object], said: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(content))
    with pytest.raises(ModelSourceError, match=said):
        load_model(f"diffusers:{tmp_path}")


def test_source_of_a_plugin() -> None:
    class Plugin:
        @hookimpl
        def alignkit_register_model_sources(self):
            return {"mylib": lambda name: (nn.Linear(int(name), 2), (torch.ones(1, int(name)),), {})}

    key = registry().register(Plugin())
    try:
        assert load_model("mylib:5")[0].in_features == 5
    finally:
        registry().unregister(key)


SOURCES = {
    "none": (lambda name: None, "returned None, not (model, args, kwargs)"),
    "model only": (lambda name: __import__("torch").nn.Linear(2, 2), "not (model, args, kwargs)"),
    "two": (lambda name: (1, 2), "returned (1, 2)"),
    "no module": (lambda name: ("model", (), {}), "returned (str, tuple, dict), not (Module, tuple, dict)"),
    "no tuple": (lambda name: (__import__("torch").nn.Linear(2, 2), 3, {}), "(Linear, int, dict)"),
    "raises": (lambda name: 1 / 0, "the source 'hub' failed: ZeroDivisionError"),
    "too many arguments": (lambda name, other: None, "the source 'hub' failed: TypeError"),
}


@pytest.mark.parametrize("case", SOURCES)
def test_a_source_that_returns_no_model_is_one_error(case, monkeypatch):
    make, said = SOURCES[case]

    class Offering:
        @hookimpl
        def alignkit_register_model_sources(self):
            return {"hub": make}

    registry = Registry([])
    registry.register(Offering())
    monkeypatch.setattr("alignkit.plugins.plugin_registry.registry", lambda: registry)
    for bare in (False, True):
        with pytest.raises(ModelSourceError) as caught:
            sources.load_model("hub:small", bare=bare)
        assert said in str(caught.value)
        assert str(caught.value).startswith("hub:small: ")
    with pytest.raises(UsageError):
        sources.load_model("hub:")
