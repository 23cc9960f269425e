"""Hadamard matrices of all sizes that are built in, with and without the vector of ones fixed."""

from __future__ import annotations

import pytest
import torch

from alignkit.errors import AlignmentError
from alignkit.graph.elements.hadamard import hadamard, random_hadamard
from alignkit.graph.elements.rotations import why_no_rotation

UNKNOWN = {92, 116, 156, 172, 184, 188}
"""Multiples of 4 below 200 that neither of Paley's constructions reaches."""
WIDTHS = (384, 576, 640, 768, 896, 960, 1024, 1152, 1280, 1408, 1536, 1600, 1920, 2048, 2304, 2560, 2880, 3072)
"""Widths of models that people use."""


@pytest.mark.parametrize("size", [1, 2, *(size for size in range(4, 200, 4) if size not in UNKNOWN), *WIDTHS[:5]])
def test_rows_are_orthogonal_and_entries_of_one_size(size: int) -> None:
    matrix = hadamard(size)
    assert torch.allclose(matrix.abs(), torch.full_like(matrix, size**-0.5), rtol=1e-12)
    assert torch.allclose(matrix @ matrix.mT, torch.eye(size, dtype=torch.float64), atol=1e-12)


@pytest.mark.parametrize("size", WIDTHS)
def test_widths_of_models_have_one(size: int) -> None:
    assert hadamard(size).shape == (size, size)


@pytest.mark.parametrize("size", [3, 6, 30, 92, 172, 1002])
def test_other_sizes_are_refused_with_sizes_near_them_that_work(size: int) -> None:
    with pytest.raises(AlignmentError, match=f"size {size}: .* Sizes near it that work are") as refused:
        hadamard(size)
    words = str(refused.value).partition("work are ")[2].split(";")[0].split(" and ")
    smaller, larger = map(int, words)
    assert smaller < size < larger
    assert hadamard(smaller).shape[0] == smaller and hadamard(larger).shape[0] == larger


@pytest.mark.parametrize("kind", ["orthogonal", "centred"])
@pytest.mark.parametrize("size", [1, 2, 4, 12, 20, 64, 100, 256])
def test_random_ones_are_elements_of_their_kind_and_nearly_flat(kind, size: int) -> None:
    drawn = random_hadamard(kind, (2, 3), size, torch.Generator().manual_seed(size))
    assert drawn.shape == (2, 3, size, size)
    assert why_no_rotation(kind, drawn) == ""
    assert float(drawn.abs().max()) <= (1 if kind == "orthogonal" else 4) * size**-0.5 + 1e-9
    if size > 12:
        assert not torch.equal(drawn[0, 0], drawn[0, 1])
        again = random_hadamard(kind, (2, 3), size, torch.Generator().manual_seed(size + 1))
        assert not torch.equal(again, drawn)
