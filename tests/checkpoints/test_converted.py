"""Checkpoints seen as a model holds them: names, shapes and values, and the way back to the disk."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from alignkit.checkpoints import (
    Conversion,
    ConvertedCheckpoint,
    Rearranged,
    open_checkpoint,
    read_weights,
    write_checkpoint,
    write_weights,
)
from alignkit.errors import WeightsError

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.float8_e4m3fn]


@st.composite
def rearrangements(draw: st.DrawFn) -> tuple[Rearranged, dict[str, Tensor], dict[str, Tensor]]:
    """Some entries, cut into tensors in one way on disk and in another in the model; with the tensors of both."""
    sides: list[dict[str, tuple[int, ...]]] = []
    size = 12 * draw(st.integers(1, 3))
    for side in ("stored", "held"):
        cuts = sorted(draw(st.sets(st.integers(1, size // 2 - 1), max_size=4)))
        rows = [stop - start for start, stop in zip([0, *cuts], [*cuts, size // 2], strict=True)]
        sides.append({f"{side}.{number}": (count, 2) for number, count in enumerate(rows)})
    order = torch.tensor(draw(st.permutations(range(size))))
    values = torch.randn(size).to(draw(st.sampled_from(DTYPES)))
    bits = values.view(torch.uint8).reshape(size, -1)

    def cut(bits: Tensor, shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
        parts = bits.reshape(-1).view(values.dtype).split([2 * rows for rows, _ in shapes.values()])
        return {name: part.reshape(shape).clone() for (name, shape), part in zip(shapes.items(), parts, strict=True)}

    return Rearranged(*sides, order), cut(bits, sides[0]), cut(bits[order], sides[1])


def same(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a.view(torch.uint8), b.view(torch.uint8))


@given(rearrangements())
@settings(max_examples=30)
def test_tensors_in_other_pieces_are_read_and_written(
    tmp_path_factory: pytest.TempPathFactory, case: tuple[Rearranged, dict[str, Tensor], dict[str, Tensor]]
) -> None:
    part, stored, held = case
    folder = tmp_path_factory.mktemp("converted")
    write_weights(folder / "a.safetensors", {**stored, "old": torch.ones(2), "mask": torch.zeros(3)}, {"by": "me"})
    plain = open_checkpoint(folder / "a.safetensors")
    checkpoint = ConvertedCheckpoint(plain, Conversion({"new": "old"}, (part,)))
    expected = {**held, "new": torch.ones(2), "mask": torch.zeros(3)}
    assert set(checkpoint) == set(expected) and len(checkpoint) == len(expected)
    for tensors in (dict(checkpoint), checkpoint.read_all()):
        assert all(same(tensors[name], tensor) for name, tensor in expected.items())
    for name, tensor in expected.items():
        entry = checkpoint.entry(name)
        assert (entry.name, entry.dtype, entry.shape) == (name, tensor.dtype, tuple(tensor.shape))
        assert same(checkpoint.rows(name, 1, 2), tensor[1:2])
        assert same(checkpoint.take(name, torch.tensor([0, -1 + len(tensor), 0])), tensor[[0, -1, 0]])
    assert checkpoint.nbytes == plain.nbytes
    write_checkpoint(folder / "b.safetensors", checkpoint, expected.__getitem__)
    assert (folder / "b.safetensors").read_bytes() == (folder / "a.safetensors").read_bytes()
    again = checkpoint.open_alike(folder / "b.safetensors")
    assert all(same(again[name], tensor) for name, tensor in expected.items())


def test_values_in_pieces_are_joined(tmp_path: Path) -> None:
    write_weights(tmp_path / "a.safetensors", {"x": torch.arange(4.0), "y": torch.arange(4.0, 8)})
    part = Rearranged({"x": (4,), "y": (4,)}, {"both": (4, 2)}, torch.arange(8).reshape(2, 4).T.flatten())
    checkpoint = ConvertedCheckpoint(open_checkpoint(tmp_path / "a.safetensors"), Conversion({}, (part,)))
    rows = [checkpoint["both"][:1] * 2, checkpoint["both"][1:] * 2]
    write_checkpoint(tmp_path / "b.safetensors", checkpoint, lambda name: iter(rows))
    assert read_weights(tmp_path / "b.safetensors")["y"].tolist() == [8, 10, 12, 14]


def test_names_of_tied_tensors_stay_tied(tmp_path: Path) -> None:
    tensor = torch.ones(2, 2)
    write_weights(tmp_path / "a.pt", {"x": tensor, "y": tensor})
    checkpoint = ConvertedCheckpoint(open_checkpoint(tmp_path / "a.pt"), Conversion({"p": "x", "q": "y"}))
    weights = checkpoint.read_all()
    assert weights["p"] is weights["q"]


def test_tensors_of_several_dtypes_in_one_are_refused(tmp_path: Path) -> None:
    write_weights(tmp_path / "a.safetensors", {"x": torch.ones(2), "y": torch.ones(2).half()})
    part = Rearranged({"x": (2,), "y": (2,)}, {"both": (2, 2)}, torch.arange(4))
    with pytest.raises(WeightsError, match="holds x, y as 'both', but they are float16 and float32"):
        ConvertedCheckpoint(open_checkpoint(tmp_path / "a.safetensors"), Conversion({}, (part,)))


def test_two_tensors_of_one_name_are_refused(tmp_path: Path) -> None:
    write_weights(tmp_path / "a.safetensors", {"x": torch.ones(2), "y": torch.ones(2)})
    with pytest.raises(WeightsError, match="2 tensors are 'y' of the model"):
        ConvertedCheckpoint(open_checkpoint(tmp_path / "a.safetensors"), Conversion({"y": "x"}))
