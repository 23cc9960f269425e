"""What a dtype cannot hold is refused; everything else is rounded as torch rounds it."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from alignkit.checkpoints.dtypes import as_bits, narrow
from alignkit.errors import AlignkitError, MergeError

DTYPES = ("float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz", "float16", "bfloat16", "float32")


@pytest.mark.parametrize("dtype", DTYPES)
@given(st.lists(st.floats(-2, 2), min_size=1, max_size=5))
def test_what_the_dtype_holds_is_rounded_and_the_rest_refused(dtype, parts):
    """Values in units of the largest number of the dtype."""
    kind = getattr(torch, dtype)
    bounds = torch.finfo(kind)
    wide = torch.tensor(parts, dtype=torch.float64) * bounds.max
    if float(wide.abs().max()) > bounds.max * (1 + bounds.eps):
        with pytest.raises(AlignkitError, match=f"'w' overflows.*{dtype} holds up to"):
            narrow(wide, kind, "w", AlignkitError)
        return
    if float(wide.abs().max()) <= bounds.max:
        error = (narrow(wide, kind, "w", AlignkitError).double() - wide).abs()
        assert bool((error <= bounds.eps * wide.abs() + bounds.tiny).all())


@pytest.mark.parametrize("dtype", [*DTYPES, "float64", "complex64", "complex128"])
@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
def test_what_is_not_finite_is_refused(dtype, value):
    kind = getattr(torch, dtype)
    wide = torch.tensor([0.0, value, 1.0], dtype=torch.complex128 if kind.is_complex else torch.float64)
    with pytest.raises(MergeError, match="'w' overflows"):
        narrow(wide, kind, "w", MergeError)


def test_imaginary_parts_overflow_too():
    with pytest.raises(MergeError, match="1e\\+300, and complex64 holds up to"):
        narrow(torch.tensor([1e300j], dtype=torch.complex128), torch.complex64, "w", MergeError)


def test_imaginary_parts_and_signs_are_not_lost():
    with pytest.raises(MergeError, match="'w' loses its imaginary part"):
        narrow(torch.tensor([1j]), torch.float32, "w", MergeError)
    with pytest.raises(MergeError, match="'w' loses its sign"):
        narrow(torch.tensor([-1.0]), torch.float8_e8m0fnu, "w", MergeError)


@pytest.mark.parametrize("dtype", [*DTYPES, "float64", "complex64"])
def test_tensors_without_elements_hold_nothing_that_could_overflow(dtype):
    kind = getattr(torch, dtype)
    wide = torch.empty(0, 3, dtype=torch.complex128 if kind.is_complex else torch.float64)
    assert narrow(wide, kind, "w", MergeError).shape == (0, 3)


@pytest.mark.parametrize("dtype", [*DTYPES, "float64", "uint16", "uint32", "uint64", "bool", "complex64"])
def test_bits_can_be_indexed_and_turned_back(dtype):
    tensor = torch.tensor([[1, 0], [0, 1]]).to(getattr(torch, dtype))
    moved = torch.take_along_dim(as_bits(tensor), torch.tensor([[1, 1], [0, 0]]), 0).view(tensor.dtype)
    assert torch.equal(moved, torch.stack([tensor[1], tensor[0]]))
