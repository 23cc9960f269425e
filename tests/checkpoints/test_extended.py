"""Checkpoints written like another one with more tensors: heads that are no longer tied."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from alignkit import write_weights
from alignkit.checkpoints import Conversion, ConvertedCheckpoint, open_checkpoint, read_weights, write_checkpoint
from helpers.checkpoint_folders import hub_folder, listing, same, tensors


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_a_sharded_folder_gets_tensors_and_its_index_says_so(tmp_path: Path, suffix: str) -> None:
    weights = hub_folder(tmp_path / "m", suffix)
    checkpoint = open_checkpoint(tmp_path / "m")
    copies = {f"copy.{number}": name for number, name in enumerate(weights)}
    new = {**weights, **{copy: weights[name].flip(0).contiguous() for copy, name in copies.items()}}
    config = '{"model_type": "llama", "tie_word_embeddings": false}'
    write_checkpoint(tmp_path / "out", checkpoint.extended(copies, {Path("config.json"): config}), new.__getitem__)
    assert same(open_checkpoint(tmp_path / "out"), new)
    assert (tmp_path / "out" / "config.json").read_text() == config
    before, after = listing(tmp_path / "m"), listing(tmp_path / "out")
    assert before.keys() == after.keys()
    index = json.loads(after[next(name for name in after if name.endswith("index.json"))])
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in new.values())
    assert all(index["weight_map"][copy] == index["weight_map"][name] for copy, name in copies.items())
    assert same(open_checkpoint(tmp_path / "m"), weights)
    assert "copy.0" not in checkpoint, "the checkpoint that was given stays"


@pytest.mark.parametrize("name", ["a.safetensors", "a.pt"])
def test_one_file_gets_tensors(tmp_path: Path, name: str) -> None:
    weights = tensors()
    write_weights(tmp_path / name, weights, {"by": "me"} if name.endswith("safetensors") else None)
    checkpoint = open_checkpoint(tmp_path / name)
    new = {**weights, "head": weights["layer.3.weight"].flip(0).contiguous()}
    write_checkpoint(tmp_path / f"out.{name}", checkpoint.extended({"head": "layer.3.weight"}, {}), new.__getitem__)
    written = open_checkpoint(tmp_path / f"out.{name}")
    assert same(written, new)
    assert written.metadata == checkpoint.metadata


def test_names_that_are_tied_in_a_pickle_are_untied(tmp_path: Path) -> None:
    shared = torch.randn(4, 3)
    torch.save({"embed": shared, "head": shared, "again": shared}, tmp_path / "a.pt")
    new = {"embed": shared, "head": shared * 2, "again": shared}
    checkpoint = open_checkpoint(tmp_path / "a.pt").extended({"head": "embed"}, {})
    write_checkpoint(tmp_path / "out.pt", checkpoint, new.__getitem__)
    written = read_weights(tmp_path / "out.pt")
    assert same(written, new)
    assert written["embed"] is written["again"], "other ties stay"


def test_names_of_a_model_are_those_of_new_tensors(tmp_path: Path) -> None:
    weights = {"old": torch.randn(3, 2), "other": torch.randn(2)}
    write_weights(tmp_path / "a.safetensors", weights)
    checkpoint = ConvertedCheckpoint(open_checkpoint(tmp_path / "a.safetensors"), Conversion({"new": "old"}))
    new = {"new": weights["old"], "other": weights["other"], "head": weights["old"] + 1}
    extended = checkpoint.extended({"head": "new"}, {})
    assert set(extended) == set(new)
    write_checkpoint(tmp_path / "out.safetensors", extended, new.__getitem__)
    assert same(read_weights(tmp_path / "out.safetensors"), {**weights, "head": new["head"]})
