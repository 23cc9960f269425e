"""Weights files: what was written is read, nothing else, and nothing is left behind."""

from __future__ import annotations

import contextlib
import os
import random
from pathlib import Path
from typing import Any

import pytest
import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from alignkit.checkpoints.staging import staged
from alignkit.checkpoints.weights import read_weights, write_weights
from alignkit.errors import WeightsError

SUFFIXES = [".safetensors", ".pt", ".pth", ".bin"]
WEIGHTS = {
    "a": torch.arange(6.0).reshape(2, 3),
    "b.half": torch.ones(2, dtype=torch.bfloat16),
    "count": torch.tensor(7),
    "empty": torch.zeros(0, 3),
}


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_what_was_written_is_read(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"w{suffix}"
    write_weights(path, WEIGHTS)
    weights = read_weights(str(path))
    assert weights.keys() == WEIGHTS.keys()
    for name, tensor in WEIGHTS.items():
        assert torch.equal(weights[name], tensor)
        assert weights[name].dtype == tensor.dtype
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_no_tensors_are_weights_too(tmp_path: Path, suffix: str) -> None:
    write_weights(tmp_path / f"w{suffix}", {})
    assert read_weights(tmp_path / f"w{suffix}") == {}


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_views_gradients_and_shared_memory(tmp_path: Path, suffix: str) -> None:
    base = torch.arange(12.0).reshape(3, 4)
    weights = {"a": base.T, "b": base[:, 1], "c": base, "d": base, "e": torch.nn.Parameter(base)}
    write_weights(tmp_path / f"w{suffix}", weights)
    found = read_weights(tmp_path / f"w{suffix}")
    assert all(torch.equal(found[name], tensor) for name, tensor in weights.items())
    assert not found["e"].requires_grad


def test_metadata_stands_in_the_header(tmp_path: Path) -> None:
    write_weights(tmp_path / "w.safetensors", WEIGHTS, {"by": "test"})
    with safetensors.safe_open(tmp_path / "w.safetensors", "pt") as file:
        assert file.metadata() == {"by": "test"}


def test_a_training_checkpoint_with_a_state_dict_is_read(tmp_path: Path) -> None:
    torch.save({"state_dict": WEIGHTS, "epoch": 3}, tmp_path / "w.pt")
    assert read_weights(tmp_path / "w.pt").keys() == WEIGHTS.keys()


def test_the_file_obeys_the_umask(tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        write_weights(tmp_path / "w.pt", WEIGHTS)
    finally:
        os.umask(old)
    assert (tmp_path / "w.pt").stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_writing_that_fails_keeps_the_old_file(tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / f"w{suffix}"
    write_weights(path, WEIGHTS)
    before = path.read_bytes()

    def half(*args: Any) -> None:
        _, target, *_ = args
        (target if isinstance(target, Path) else Path(target.name)).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(safetensors.torch, "save_file", half)
    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(WeightsError, match=r"cannot write .*w\..*: No space left on device"):
        write_weights(path, {"other": torch.zeros(1)})
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_an_interrupt_leaves_no_file(tmp_path: Path) -> None:
    def interrupted() -> None:
        with staged(tmp_path / "w.pt") as temporary:
            temporary.write_bytes(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_damaged_files_are_read_or_refused_but_never_crash(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"w{suffix}"
    write_weights(path, WEIGHTS)
    whole, generator = path.read_bytes(), random.Random(0)
    refused = 0
    for trial in range(150):
        damaged = bytearray(whole)
        if trial % 3 == 0:
            del damaged[generator.randrange(len(damaged)) :]
        else:
            # The first bytes of both formats say how to read the rest.
            end = len(damaged) if trial % 3 == 1 else min(400, len(damaged))
            damaged[generator.randrange(end)] ^= 1 << generator.randrange(8)
        path.write_bytes(damaged)
        with contextlib.suppress(WeightsError):
            read_weights(path)
            continue
        refused += 1
    assert refused > 50


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such modes")
@pytest.mark.parametrize("name", ["weights.safetensors", "weights.pt"])
def test_others_can_read_what_is_written(tmp_path, name):
    before = os.umask(0o022)
    try:
        write_weights(tmp_path / name, {"a": torch.zeros(2)})
    finally:
        os.umask(before)
    assert (tmp_path / name).stat().st_mode & 0o777 == 0o644


class Marked(Tensor):
    pass


@pytest.mark.parametrize("suffix", [".pt", ".bin", ".safetensors"])
@pytest.mark.parametrize("kind", [Marked, nn.Parameter])
def test_tensors_of_another_class_are_written_as_tensors(kind, suffix: str, tmp_path: Path) -> None:
    tensor = torch.ones(2).as_subclass(Marked) if kind is Marked else nn.Parameter(torch.ones(2))
    write_weights(tmp_path / f"w{suffix}", {"w": tensor})
    read = read_weights(tmp_path / f"w{suffix}")["w"]
    assert type(read) is Tensor
    assert torch.equal(read, torch.ones(2))


LAZY = {
    "negated": torch._neg_view(torch.arange(3.0)),
    "conjugated": torch.complex(torch.arange(3.0), torch.ones(3)).conj(),
    "imaginary part": torch.complex(torch.arange(3.0), torch.ones(3)).conj().imag,
}


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("form", LAZY)
def test_values_that_torch_negates_when_they_are_read_can_be_read_again(form: str, suffix: str, tmp_path: Path) -> None:
    write_weights(tmp_path / f"w{suffix}", {"w": LAZY[form]})
    assert torch.equal(read_weights(tmp_path / f"w{suffix}")["w"], LAZY[form])


@pytest.mark.parametrize("metadata", [{"a": 1}, {1: "a"}, {"a": None}, {"a": ["b"]}])
def test_metadata_is_text(metadata, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="metadata="):
        write_weights(tmp_path / "w.safetensors", {"w": torch.ones(2)}, metadata)
    assert not list(tmp_path.iterdir())
