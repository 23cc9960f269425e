"""Checkpoints on disk: what is opened, how it is read, and what uses it."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import safetensors
import safetensors.torch
import torch

from alignkit import SymmetryGraph, read_weights
from alignkit.checkpoints import Checkpoint, open_checkpoint, write_checkpoint
from alignkit.checkpoints.safetensors_file import DTYPES
from alignkit.errors import WeightsError
from helpers.checkpoint_folders import hub_folder, same, tensors

# ---------------------------------------------------------------------- reading


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_a_sharded_folder_is_one_mapping(tmp_path: Path, suffix: str) -> None:
    weights = hub_folder(tmp_path / "m", suffix)
    checkpoint = open_checkpoint(tmp_path / "m")
    assert same(checkpoint, weights)
    assert checkpoint.shapes == {name: tuple(t.shape) for name, t in weights.items()}
    assert checkpoint.dtypes == {name: t.dtype for name, t in weights.items()}
    assert checkpoint.nbytes == checkpoint.metadata["total_size"] == sum(t.nbytes for t in weights.values())
    assert checkpoint.config == tmp_path / "m" / "config.json"
    assert {str(side) for side in checkpoint.side_files} >= {"config.json", "tokenizer.json", "1_Pooling/config.json"}
    assert len(checkpoint.shards) == 3
    assert same(read_weights(tmp_path / "m"), weights)


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".pth", ".bin"])
def test_one_file_and_the_index_are_opened_too(tmp_path: Path, suffix: str) -> None:
    weights = tensors()
    path = tmp_path / f"w{suffix}"
    if suffix == ".safetensors":
        safetensors.torch.save_file(weights, path, {"by": "test"})
    else:
        torch.save(weights, path)
    assert same(open_checkpoint(path), weights)
    hub_folder(tmp_path / "m")
    assert same(open_checkpoint(tmp_path / "m" / "model.safetensors.index.json"), weights)


@pytest.mark.parametrize("dtype", [*DTYPES.values()], ids=str)
def test_every_dtype_is_kept(tmp_path: Path, dtype: torch.dtype) -> None:
    values = torch.randint(0, 2, (4, 3)).to(dtype)
    safetensors.torch.save_file(
        {"x": values, "scalar": values[0, 0].clone(), "none": values[:0]}, tmp_path / "a.safetensors"
    )
    checkpoint = open_checkpoint(tmp_path / "a.safetensors")
    write_checkpoint(tmp_path / "b.safetensors", checkpoint, checkpoint.__getitem__)
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    assert checkpoint["x"].dtype == dtype
    assert checkpoint["scalar"].shape == ()
    assert checkpoint["none"].shape == (0, 3)


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_rows_are_read_alone(tmp_path: Path, suffix: str) -> None:
    weights = hub_folder(tmp_path / "m", suffix)
    checkpoint = open_checkpoint(tmp_path / "m")
    index = torch.tensor([4, 0, 1, 1])
    for name, tensor in weights.items():
        assert torch.equal(checkpoint.rows(name, 1, 4).double(), tensor.double()[1:4])
        assert torch.equal(checkpoint.take(name, index).double(), tensor.double()[index])


def test_a_snapshot_of_the_hub_is_links_to_blobs(tmp_path: Path) -> None:
    weights = hub_folder(tmp_path / "real")
    model = tmp_path / "models--x--y"
    snapshot, blobs = model / "snapshots" / "0a1b", model / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for number, path in enumerate(p for p in sorted((tmp_path / "real").iterdir()) if p.is_file()):
        shutil.copy(path, blobs / f"{number:064}")
        (snapshot / path.name).symlink_to(f"../../blobs/{number:064}")
    checkpoint = open_checkpoint(snapshot)
    assert same(checkpoint, weights)
    write_checkpoint(tmp_path / "out", checkpoint, checkpoint.__getitem__)
    assert not any(path.is_symlink() for path in (tmp_path / "out").iterdir())
    assert same(open_checkpoint(tmp_path / "out"), weights)


def test_a_file_that_changes_is_noticed(tmp_path: Path) -> None:
    weights = tensors()
    safetensors.torch.save_file(weights, tmp_path / "a.safetensors")
    checkpoint = open_checkpoint(tmp_path / "a.safetensors")
    os.truncate(tmp_path / "a.safetensors", 900)
    with pytest.raises(WeightsError, match="was changed while it was being read"):
        checkpoint["layer.5.weight"]


# ---------------------------------------------------------------------- what is refused


def test_a_checkpoint_is_a_mapping_without_values(tmp_path: Path) -> None:
    hub_folder(tmp_path / "m")
    checkpoint = open_checkpoint(tmp_path / "m")
    assert isinstance(checkpoint, Checkpoint)
    assert "layer.0.weight" in checkpoint and "other" not in checkpoint
    assert len(checkpoint) == len(list(checkpoint)) == 6
    with pytest.raises(KeyError):
        checkpoint["other"]
    assert "6 tensors" in repr(checkpoint)


# ---------------------------------------------------------------------- what uses them


def test_graphs_bind_folders_indices_and_checkpoints(tmp_path: Path) -> None:
    weights = {"up": torch.randn(4, 3), "down": torch.randn(2, 4)}
    (tmp_path / "m").mkdir()
    safetensors.torch.save_file(weights, tmp_path / "m" / "model.safetensors")
    graph = SymmetryGraph.from_spec({"up": "h .", "down": ". h"}, weights)
    checkpoint = open_checkpoint(tmp_path / "m")
    pair = graph.bind(tmp_path / "m", checkpoint)
    assert same(pair.a, weights) and same(pair.b, weights)
    (tmp_path / "m" / "model.safetensors").rename(tmp_path / "m" / "part.safetensors")
    index = {"weight_map": dict.fromkeys(weights, "part.safetensors")}
    (tmp_path / "m" / "model.safetensors.index.json").write_text(json.dumps(index))
    assert same(graph.bind(tmp_path / "m" / "model.safetensors.index.json", weights).a, weights)
    shapes_only = SymmetryGraph.from_spec({"up": "h .", "down": ". h"}, checkpoint.shapes)
    assert shapes_only.groups == graph.groups
