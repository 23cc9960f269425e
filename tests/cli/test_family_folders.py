"""Folders that transformers wrote: every job takes them, and transformers loads what comes out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from alignkit import Alignment, open_networks, read_weights
from alignkit.checkpoints import open_checkpoint
from helpers.checkpoint_folders import names_in
from helpers.command_line import run
from helpers.family_folders import FAMILIES, REARRANGED, RENAMED, load_like, save_family
from helpers.hostile_configurations import unet

pytestmark = pytest.mark.models("transformers")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def answer(model: Any) -> Tensor:
    """What a model computes."""
    name = model.main_input_name
    tokens = torch.arange(20, 26).reshape(1, 6)
    inputs = {name: tokens if name == "input_ids" else torch.linspace(-1, 1, 768).reshape(1, 3, 16, 16)}
    with torch.no_grad():
        outputs = model(**inputs)
    return outputs.logits if "logits" in outputs else outputs.last_hidden_state


def save_twin(folder: Path, name: str, seed: int = 5) -> None:
    """Save the same network with its units in another order."""
    files = open_networks(folder)
    files.write(folder.parent / name, Alignment.random(files.graph, seed).apply(files.weights[0]), like=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_merge_of_twins_is_the_network(family: str, here: Path) -> None:
    model = save_family(family, here / "a")
    save_twin(here / "a", "b")
    assert torch.allclose(answer(load_like(model, here / "b")), answer(model), rtol=1e-6, atol=1e-6)
    said = run("merge", "a", "b", "-o", "m")
    assert "Function check of a, b: 3 random reorderings" in said
    plain, written = open_checkpoint(here / "a"), open_checkpoint(here / "m")
    layouts = [[(entry.name, entry.dtype, entry.shape) for entry in side.entries.values()] for side in (plain, written)]
    assert layouts[0] == layouts[1]
    assert dict(plain.metadata) == {key: text for key, text in written.metadata.items() if key != "alignkit"}
    assert torch.allclose(answer(load_like(model, here / "m")), answer(model), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", [*RENAMED, *REARRANGED])
def test_a_merge_computes_what_the_average_in_memory_does(family: str, here: Path) -> None:
    model = save_family(family, here / "a")
    other = save_family(family, here / "b", seed=1)
    run("merge", "a", "b", "-o", "m", "--no-align", "--weight", "0.25", "--weight", "0.75")
    merged = load_like(model, here / "m")
    with torch.no_grad():
        for mine, its in zip(model.parameters(), other.parameters(), strict=True):
            mine.mul_(0.25).add_(0.75 * its)
    assert torch.allclose(answer(merged), answer(model), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("family", [*RENAMED[:2], *REARRANGED])
def test_every_job_takes_folders_with_other_names(family: str, here: Path) -> None:
    model = save_family(family, here / "a")
    save_twin(here / "a", "b")
    tuned = save_family(family, here / "tuned", seed=2)
    assert "Passed with its own weights" in run("check", "a")
    assert "Passed: b computes what a does" in run("check", "a", "--against", "b")
    run("transport", "a", "tuned", "b", "-o", "t")
    assert torch.allclose(answer(load_like(model, here / "t")), answer(tuned), rtol=1e-4, atol=1e-4)
    run("solve", "a", "b", "-o", "s.safetensors")
    solved, own = read_weights("s.safetensors"), read_weights("a/model.safetensors")
    assert solved.keys() == own.keys()
    assert all(torch.equal(solved[name], tensor) for name, tensor in own.items())
    assert "Estimate of merge" in run("merge", "a", "b", "-o", "n", "--dry-run")


@pytest.mark.parametrize("family", [*RENAMED[:2], "gpt_neox"])
def test_memory_keeps_renamed_tensors_on_disk(family: str, here: Path) -> None:
    save_family(family, here / "a")
    save_family(family, here / "b", seed=1)
    run("merge", "a", "b", "-o", "whole")
    run("merge", "a", "b", "-o", "m", "--memory", "50MB", "--report", "m.html")
    whole, pieces = read_weights("whole"), read_weights("m")
    assert whole.keys() == pieces.keys()
    assert all(torch.allclose(tensor, whole[name], atol=1e-6) for name, tensor in pieces.items())


@pytest.mark.parametrize("family", REARRANGED)
def test_memory_is_refused_for_tensors_in_other_pieces(family: str, here: Path) -> None:
    save_family(family, here / "a")
    save_family(family, here / "b", seed=1)
    said = run("merge", "a", "b", "-o", "m", "--memory", "50MB", code=1)
    assert "in other pieces than the model holds" in said
    assert "leave the limit of memory out" in said
    assert not (here / "m").exists()


@pytest.mark.models("timm")
def test_folders_of_timm(here: Path) -> None:
    import timm
    from timm.models import save_for_hf

    for seed, name in enumerate("ab"):
        torch.manual_seed(seed)
        save_for_hf(timm.create_model("resnet10t"), name, safe_serialization=True)
    run("merge", "a", "b", "-o", "m", "--no-align")
    loaded = timm.create_model(f"local-dir:{here / 'm'}", pretrained=True)
    a, b = read_weights("a"), read_weights("b")
    assert all(torch.allclose(t, (a[n] + b[n]) / 2) for n, t in loaded.named_parameters())
    assert names_in("m") == names_in("a") | {"alignkit.json", "README.md"}


TINY = {"encoder_block_out_channels": [16] * 4, "decoder_block_out_channels": [16] * 4}
PICTURES = {
    "UNet2DModel": ({name: value for name, value in unet().items() if not name.startswith("_")}, {"timestep": 1}),
    "AutoencoderTiny": (TINY, {}),  # its file has a field that its class does not take
}


@pytest.mark.models("diffusers")
@pytest.mark.parametrize("name", PICTURES)
def test_folders_of_diffusers(name: str, here: Path) -> None:
    import diffusers

    model_class, (config, more) = getattr(diffusers, name), PICTURES[name]
    model = model_class(**config).eval()
    model.save_pretrained("a")
    save_twin(here / "a", "b")
    run("merge", "a", "b", "-o", "m")
    loaded = model_class.from_pretrained("m").eval()
    image = torch.linspace(-1, 1, 3 * 16 * 16).reshape(1, 3, 16, 16)
    with torch.no_grad():
        assert torch.allclose(loaded(image, **more).sample, model(image, **more).sample, rtol=1e-4, atol=1e-5)


def test_experts_of_several_dtypes_are_refused(here: Path) -> None:
    from safetensors.torch import load_file, save_file

    save_family("mixtral", here / "a")
    file = here / "a" / "model.safetensors"
    own = load_file(file)
    one = next(name for name in own if "experts.1.w2" in name)
    save_file({**own, one: own[one].bfloat16()}, file, {"format": "pt"})
    assert "they are bfloat16 and float32" in run("check", "a", code=1)


def test_a_folder_that_lacks_an_expert_is_refused(here: Path) -> None:
    from safetensors.torch import load_file, save_file

    save_family("mixtral", here / "a")
    file = here / "a" / "model.safetensors"
    own = load_file(file)
    save_file({name: tensor for name, tensor in own.items() if "experts.1.w2" not in name}, file, {"format": "pt"})
    said = run("check", "a", code=1)
    assert "experts.down_proj" in said
