"""Configurations compared: what changes the function of the same weights differs, whatever its name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from alignkit.errors import ModelSourceError
from alignkit.models import Configuration, load_model, source_of
from alignkit.models.configurations import NO_MATTER, TOKENS, TOLD
from alignkit.models.limits import fields_of
from helpers.hostile_configurations import gpt2, llama, resnet, unet


def read(folder: Path, content: dict[str, Any]) -> Configuration:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(content))
    return Configuration.read(source_of(folder / "config.json") or "")


def differing(tmp_path: Path, a: dict[str, Any], b: dict[str, Any]) -> tuple[set[str], set[str]]:
    """Names of the fields that count, and of those that are only told."""
    first = read(tmp_path / "a", a)
    found = first.differences(read(tmp_path / "b", b))
    told = {name for name, both in found.items() if first.is_told(name, both)}
    return set(found) - told, told


ROPE = {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}
LLAMA = llama(num_attention_heads=4, num_key_value_heads=2)
T5 = {"model_type": "t5", "d_model": 16, "d_kv": 8, "d_ff": 8, "num_layers": 1, "num_heads": 2, "vocab_size": 40}
COUNTS = {
    "heads": (LLAMA, {"num_attention_heads": 8}, "num_attention_heads"),
    "kv heads": (LLAMA, {"num_key_value_heads": 4}, "num_key_value_heads"),
    "head dim": (LLAMA, {"head_dim": 2}, "head_dim"),
    "rope theta": (LLAMA, {"rope_theta": 5e5}, "rope_parameters.rope_theta"),
    "rope scaling": (LLAMA, {"rope_scaling": ROPE}, "rope_parameters.rope_type"),
    "eps": (LLAMA, {"rms_norm_eps": 1e-5}, "rms_norm_eps"),
    "activation": (LLAMA, {"hidden_act": "gelu"}, "hidden_act"),
    "ties": (LLAMA, {"tie_word_embeddings": True}, "tie_word_embeddings"),
    "bias": (LLAMA, {"attention_bias": True}, "attention_bias"),
    "class": (LLAMA, {"architectures": ["LlamaModel"]}, "architectures"),
    "library's type": (LLAMA, {"model_type": "mistral", "architectures": ["MistralForCausalLM"]}, "model_type"),
    "window": ({**LLAMA, "model_type": "mistral"}, {"sliding_window": 16}, "sliding_window"),
    "layer types": (
        {**LLAMA, "model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"], "layer_types": ["full_attention"]},
        {"layer_types": ["sliding_attention"], "sliding_window": 4, "use_sliding_window": True},
        "layer_types",
    ),
    "scaled attention": (gpt2(), {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx"),
    "gpt2 activation": (gpt2(), {"activation_function": "relu"}, "activation_function"),
    "unknown field": (gpt2(), {"my_own_switch": True}, "my_own_switch"),
    "padding that positions count from": (
        {"model_type": "roberta", "hidden_size": 16, "num_attention_heads": 2, "pad_token_id": 1},
        {"pad_token_id": 0},
        "pad_token_id",
    ),
    "nested": (
        {"model_type": "llava", "text_config": LLAMA, "vision_config": {"num_attention_heads": 4, "hidden_size": 64}},
        {"vision_config": {"num_attention_heads": 8, "hidden_size": 64}},
        "vision_config.num_attention_heads",
    ),
    "end that CLIP pools at": ({"model_type": "clip_text_model"}, {"eos_token_id": 5}, "eos_token_id"),
    "tokens of pictures": (
        {"model_type": "llava", "architectures": ["LlavaForConditionalGeneration"]},
        {"image_token_index": 5},
        "image_token_index",
    ),
    "buckets": (T5, {"relative_attention_num_buckets": 16}, "relative_attention_num_buckets"),
}


@pytest.mark.models("transformers")
@pytest.mark.parametrize("case", COUNTS)
def test_fields_that_change_the_function_differ(case: str, tmp_path: Path) -> None:
    content, changed, name = COUNTS[case]
    counting, _ = differing(tmp_path, content, {**content, **changed})
    assert name in counting


NOTHING = {
    "names and versions": {"_name_or_path": "x", "transformers_version": "4.0", "torch_dtype": "float16", "dtype": "x"},
    "training": {"attention_dropout": 0.5, "initializer_range": 0.5, "use_cache": False},
    "how it runs": {"attn_implementation": "user/repo", "_attn_implementation": "eager"},
    "defaults in words": {"rope_theta": 10000.0, "rms_norm_eps": 1e-6, "hidden_act": "silu", "head_dim": 4},
    "whole floats": {"rope_theta": 10000.0},
    "nothing for none": {"rope_scaling": None, "pretraining_tp": 1, "quantization_config": None},
}


@pytest.mark.models("transformers")
@pytest.mark.parametrize("case", NOTHING)
def test_what_does_not_change_the_function_is_no_difference(case: str, tmp_path: Path) -> None:
    assert differing(tmp_path, LLAMA, {**LLAMA, **NOTHING[case]}) == (set(), set())


@pytest.mark.models("transformers")
@pytest.mark.parametrize(
    ("changed", "name"),
    [({"id2label": {"0": "cat", "1": "dog"}}, "id2label.0"), ({"eos_token_id": 5}, "eos_token_id")],
)
def test_what_changes_the_meaning_of_outputs_is_told(changed: dict[str, Any], name: str, tmp_path: Path) -> None:
    counting, told = differing(tmp_path, LLAMA, {**LLAMA, **changed})
    assert counting == set()
    assert name in told


OTHERS = [
    pytest.param("timm", resnet(), {"architecture": "resnet14t"}, "architecture", id="timm-architecture"),
    pytest.param("timm", resnet(), {"model_args": {"act_layer": "gelu"}}, "act_layer", id="timm-activation"),
    pytest.param("timm", resnet(), {"num_classes": 9}, "num_classes", id="timm-classes"),
    pytest.param("timm", resnet(), {"pretrained_cfg": {"global_pool": "max"}}, "global_pool", id="timm-pool"),
    pytest.param("diffusers", unet(), {"norm_num_groups": 4}, "norm_num_groups", id="diffusers-groups"),
    pytest.param("diffusers", unet(), {"act_fn": "gelu"}, "act_fn", id="diffusers-activation"),
    pytest.param(
        "diffusers", unet(), {"down_block_types": ["DownBlock2D"] * 2}, "down_block_types", id="diffusers-blocks"
    ),
    pytest.param("diffusers", unet(), {"norm_eps": 1e-5}, None, id="diffusers-default"),
    pytest.param("diffusers", unet(), {"_diffusers_version": "0.1", "_name_or_path": "x"}, None, id="diffusers-names"),
    pytest.param("timm", resnet(), {"pretrained_cfg": {"input_size": [3, 32, 32], "url": "x"}}, None, id="timm-names"),
    pytest.param("timm", resnet(), {"model_args": {"drop_path_rate": 0.5}}, None, id="timm-training"),
    pytest.param("timm", resnet(), {"pretrained_cfg": {"mean": [0.0, 0.0, 0.0]}}, None, id="timm-preprocessing"),
]
OTHERS = [pytest.param(*p.values[1:], id=p.id, marks=pytest.mark.models(p.values[0])) for p in OTHERS]


@pytest.mark.parametrize(("content", "changed", "name"), OTHERS)
def test_timm_and_diffusers(content: dict[str, Any], changed: dict[str, Any], name: str | None, tmp_path: Path) -> None:
    counting, _ = differing(tmp_path, content, {**content, **changed})
    assert counting == (set() if name is None else {name})


@pytest.mark.models("transformers")
@pytest.mark.models("timm")
def test_configurations_of_two_libraries(tmp_path: Path) -> None:
    assert differing(tmp_path, LLAMA, resnet()) == ({"library"}, set())


@pytest.mark.models("transformers")
@pytest.mark.parametrize("where", ["", "text_config"])
def test_quantised_weights_are_refused(where: str, tmp_path: Path) -> None:
    quantised = {"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}}
    content = {**LLAMA, **quantised} if not where else {"model_type": "llava", where: {**LLAMA, **quantised}}
    with pytest.raises(ModelSourceError, match="weights are quantised"):
        read(tmp_path, content)


SIZES = {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 2, "num_key_value_heads": 2, "head_dim": 8}
KINDS = ("bert", "roberta", "mistral", "qwen2", "gemma2", "mixtral", "vit", "electra", "deberta")
SMALL: dict[str, dict[str, Any]] = {
    **{kind: {"model_type": kind, **SIZES, "intermediate_size": 8, "vocab_size": 40} for kind in KINDS},
    "esm": {
        "model_type": "esm",
        **SIZES,
        "intermediate_size": 8,
        "vocab_size": 40,
        "pad_token_id": 1,
        "mask_token_id": 32,
    },
    "llama": LLAMA,
    "gpt2": gpt2(),
    "t5": T5,
}


def changed_value(value: Any) -> Any:
    """Another value of the same kind; None where none can be made up."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + 1
    if isinstance(value, float):
        return value / 2 + 0.25
    return None


def outputs(content: dict[str, Any], folder: Path) -> Tensor:
    (folder / "config.json").write_text(json.dumps(content))
    model, args, kwargs = load_model(f"transformers:{folder}")
    generator = torch.Generator().manual_seed(0)
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(0.3 * torch.randn(tensor.shape, generator=generator))
    with torch.no_grad():
        result = model(*args, **kwargs, return_dict=True)
    return next(value for value in result.to_tuple() if isinstance(value, Tensor))


@pytest.mark.models("transformers")
@pytest.mark.parametrize("kind", SMALL)
def test_no_field_that_is_left_out_changes_outputs(kind: str, tmp_path: Path) -> None:
    content = SMALL[kind]
    every = dict(fields_of(load_config(content, tmp_path), kind))
    patterns = (NO_MATTER, TOLD, *([TOKENS] if every["architectures"] else []))
    left_out = [name for name in every if "." not in name and any(pattern.search(name) for pattern in patterns)]
    expected = outputs(content, tmp_path)
    tried = 0
    for name in left_out:
        other = changed_value(every[name])
        if other is None or (name == "pad_token_id" and every[name] is not None):
            continue
        tried += 1
        assert torch.equal(outputs({**content, name: other}, tmp_path), expected), name
    assert tried > 3


def load_config(content: dict[str, Any], folder: Path) -> dict[str, Any]:
    (folder / "config.json").write_text(json.dumps(content))
    fields: dict[str, Any] = load_model(f"transformers:{folder}", bare=True)[0].config.to_dict()  # type: ignore[operator, union-attr]
    return fields
