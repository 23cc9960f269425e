"""Checkpoints of transformers by the names of its models: what its loader would read, and the way back."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from alignkit.checkpoints import ConvertedCheckpoint, open_checkpoint, write_checkpoint
from alignkit.errors import ModelSourceError
from alignkit.models import building, conversion_of, load_model
from helpers.checkpoint_folders import listing
from helpers.family_folders import FAMILIES, REARRANGED, load_like, save_family

pytestmark = pytest.mark.models("transformers")


def held(folder: Path) -> ConvertedCheckpoint:
    """A folder by the names of the model that its configuration names."""
    checkpoint = open_checkpoint(folder)
    conversion = conversion_of(load_model(f"transformers:{folder}", bare=True)[0], checkpoint.entries)
    assert conversion is not None
    return ConvertedCheckpoint(checkpoint, conversion)


def agree(tensors: dict[str, Tensor], model: nn.Module) -> None:
    """Every tensor is that of the model; names that only a tie has may lack."""
    own = dict(model.named_parameters()) | dict(model.named_buffers())
    wanted = {name: tensor for name, tensor in own.items() if name in model.state_dict()}
    assert tensors.keys() == wanted.keys()
    assert all(torch.equal(tensors[name], tensor) for name, tensor in wanted.items())


@pytest.mark.parametrize("family", FAMILIES)
def test_tensors_are_those_that_the_loader_reads(family: str, tmp_path: Path) -> None:
    model = save_family(family, tmp_path / "a")
    checkpoint = held(tmp_path / "a")
    agree(checkpoint.read_all(), load_like(model, tmp_path / "a"))
    agree(dict(checkpoint), model)
    assert checkpoint.shapes == {name: tuple(tensor.shape) for name, tensor in checkpoint.items()}
    assert bool(checkpoint.whole_only) == (family in REARRANGED)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("shard_size", ["5GB", "6KB"])
def test_what_is_written_back_is_the_same_folder(family: str, shard_size: str, tmp_path: Path) -> None:
    save_family(family, tmp_path / "a", max_shard_size=shard_size)
    checkpoint = held(tmp_path / "a")
    write_checkpoint(tmp_path / "b", checkpoint, checkpoint.__getitem__)
    assert listing(tmp_path / "b") == listing(tmp_path / "a")


@pytest.mark.parametrize("family", FAMILIES)
def test_values_of_a_model_are_read_by_the_loader(family: str, tmp_path: Path) -> None:
    save_family(family, tmp_path / "a")
    checkpoint, other = held(tmp_path / "a"), save_family(family, tmp_path / "b", seed=1)
    values = other.state_dict()
    write_checkpoint(tmp_path / "m", checkpoint, values.__getitem__)
    agree({name: values[name] for name in checkpoint}, load_like(other, tmp_path / "m"))


@pytest.mark.parametrize(("family", "headed"), [("vit backbone", "vit"), ("bert backbone", "bert")])
def test_weights_of_a_backbone_for_a_model_with_a_head(family: str, headed: str, tmp_path: Path) -> None:
    model = save_family(family, tmp_path / "a")
    config = json.loads((tmp_path / "a" / "config.json").read_text())
    (tmp_path / "a" / "config.json").write_text(json.dumps({**config, "architectures": [FAMILIES[headed][0]]}))
    checkpoint = held(tmp_path / "a")
    assert all(name.startswith(f"{headed}.") for name in checkpoint if "pooler" not in name)
    own = model.state_dict()
    assert all(torch.equal(tensor, own[name.removeprefix(f"{headed}.")]) for name, tensor in checkpoint.items())


@pytest.mark.parametrize(
    ("family", "backbone"), [("vit", "ViTModel"), ("gpt_neox", "GPTNeoXModel"), ("mixtral", "MixtralModel")]
)
def test_weights_of_a_model_with_a_head_for_its_backbone(family: str, backbone: str, tmp_path: Path) -> None:
    model = save_family(family, tmp_path / "a")
    config = json.loads((tmp_path / "a" / "config.json").read_text())
    (tmp_path / "a" / "config.json").write_text(json.dumps({**config, "architectures": [backbone]}))
    checkpoint = held(tmp_path / "a")
    own = {name.removeprefix(f"{model.base_model_prefix}."): tensor for name, tensor in model.state_dict().items()}
    heads = {"classifier.weight", "classifier.bias", "lm_head.weight", "embed_out.weight"}
    assert checkpoint.keys() - heads == own.keys() - heads - {name for name in own if name.startswith("pooler")}
    assert all(torch.equal(checkpoint[name], own[name]) for name in checkpoint if name not in heads)


@pytest.mark.parametrize("family", ["vit", "mixtral", "gpt2"])
def test_tensors_that_no_model_reads_keep_their_names(family: str, tmp_path: Path) -> None:
    model = save_family(family, tmp_path / "a")
    file = tmp_path / "a" / "model.safetensors"
    more = {"masks.0": torch.ones(3, dtype=torch.uint8), "other.experts.0.weight": torch.rand(2, 3)}
    safetensors.torch.save_file(safetensors.torch.load_file(file) | more, file, {"format": "pt"})
    tensors = held(tmp_path / "a").read_all()
    assert all(torch.equal(tensors.pop(name), tensor) for name, tensor in more.items())
    agree(tensors, model)


@pytest.mark.parametrize(
    ("family", "twin"), [("gpt_neox tied", "embed_out.weight"), ("qwen3_moe tied", "lm_head.weight")]
)
def test_a_tie_that_is_stored_twice(family: str, twin: str, tmp_path: Path) -> None:
    save_family(family, tmp_path / "a")
    file = tmp_path / "a" / "model.safetensors"
    stored = safetensors.torch.load_file(file)
    one = next(name for name in stored if "embed" in name)
    safetensors.torch.save_file({**stored, twin: stored[one].clone()}, file, {"format": "pt"})
    checkpoint = held(tmp_path / "a")
    assert torch.equal(checkpoint["lm_head.weight"], checkpoint[one])
    write_checkpoint(tmp_path / "b", checkpoint, lambda name: checkpoint[name] + 1)
    written = safetensors.torch.load_file(tmp_path / "b" / "model.safetensors")
    assert all(torch.equal(tensor, stored[one] + 1) for tensor in (written[one], written[twin]))


@pytest.mark.parametrize("family", REARRANGED)
def test_entries_beyond_the_numbers_of_float32_are_followed(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("alignkit.models.stored_names.BASE", 64)
    model = save_family(family, tmp_path / "a")
    agree(held(tmp_path / "a").read_all(), model)


@pytest.mark.parametrize("family", REARRANGED)
def test_too_many_entries_in_other_pieces_are_refused(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_family(family, tmp_path / "a")
    model = load_model(f"transformers:{tmp_path / 'a'}", bare=True)[0]
    monkeypatch.setattr(building, "MAX_PARAMETERS", 100)
    with pytest.raises(ModelSourceError, match="more than 10\\^9 numbers are stored in other pieces"):
        conversion_of(model, open_checkpoint(tmp_path / "a").entries)


def test_models_of_other_libraries_take_names_as_they_are() -> None:
    assert conversion_of(nn.Linear(2, 2), {}) is None


COMPUTED = {
    "scaled": lambda tensor: tensor * 2,
    "shifted": lambda tensor: tensor + 1,
    "negated": lambda tensor: -tensor,
    "one entry twice": lambda tensor: tensor[:, :1].expand_as(tensor).clone(),
    "sum": lambda tensor: tensor.cumsum(0),
}


MOVED = {
    "transposed view": lambda tensor: tensor.T,
    "transposed copy": lambda tensor: tensor.T.contiguous(),
    "reversed": lambda tensor: tensor.flip(0),
    "halves swapped": lambda tensor: torch.cat(tensor.chunk(2)[::-1]),
    "interleaved": lambda tensor: tensor.reshape(2, -1, tensor.shape[1]).transpose(0, 1).reshape(tensor.shape),
}


def change_loader(model: Any, name: str, change: Callable[[Tensor], Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the loader of a class change one tensor on the way."""
    plain = type(model).from_pretrained.__func__

    def changing(cls: Any, *args: Any, state_dict: dict[str, Tensor], **more: Any) -> Any:
        return plain(cls, *args, state_dict={**state_dict, name: change(state_dict[name])}, **more)

    monkeypatch.setattr(type(model), "from_pretrained", classmethod(changing))


@pytest.mark.parametrize("case", MOVED)
def test_a_loader_that_moves_entries_under_the_same_name_is_followed(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = save_family("llama", tmp_path / "a")
    name = "model.layers.0.self_attn.o_proj.weight"
    change_loader(model, name, MOVED[case], monkeypatch)
    checkpoint = held(tmp_path / "a")
    assert torch.equal(checkpoint[name], MOVED[case](model.state_dict()[name]))
    write_checkpoint(tmp_path / "b", checkpoint, checkpoint.__getitem__)
    assert listing(tmp_path / "b") == listing(tmp_path / "a")


@pytest.mark.parametrize("case", COMPUTED)
def test_a_loader_that_computes_values_is_refused(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a loader may do in a later version: the weights it makes are not those on disk."""
    model = save_family("llama", tmp_path / "a")
    change_loader(model, "model.layers.0.mlp.up_proj.weight", COMPUTED[case], monkeypatch)
    bare = load_model(f"transformers:{tmp_path / 'a'}", bare=True)[0]
    with pytest.raises(ModelSourceError, match=r"not by moving them|not from every entry once"):
        conversion_of(bare, open_checkpoint(tmp_path / "a").entries)
