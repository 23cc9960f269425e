"""What dtypes cannot do, in one place each: be indexed, and hold every value that was computed in a wider one."""

from __future__ import annotations

import torch
from torch import Tensor

from alignkit.errors import AlignkitError
from alignkit.text import dtype_name

_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_INDEXED = frozenset(
    (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.complex128, torch.bool)
)
"""Dtypes that every indexing operation of torch takes, beside signed whole numbers."""


def as_bits(tensor: Tensor) -> Tensor:
    """View a tensor as whole numbers of its size where torch cannot index its dtype; ``.view(dtype)`` turns it back.

    These are the floats of 8 bits and unsigned whole numbers. Gradients flow through all other dtypes.
    """
    return tensor if tensor.dtype in _INDEXED else tensor.resolve_neg().view(_BITS[tensor.dtype.itemsize])


def narrow(wide: Tensor, dtype: torch.dtype, name: str, error: type[AlignkitError]) -> Tensor:
    """Round to a dtype, and refuse what it cannot hold: large numbers, signs or imaginary parts.

    What torch rounds to infinity or NaN is too large, and so is what it cuts down to the largest number of the dtype.

    Args:
        wide: What was computed, in a wider dtype.
        dtype: A floating-point or complex dtype.
        name: Name of the tensor, for the message.
        error: Class of the error.

    Raises:
        AlignkitError: A value is not finite, or beyond the dtype by more than rounding, in the given class.
    """
    if wide.is_complex() and not dtype.is_complex:
        raise error(f"{name!r} loses its imaginary part: it is complex here, and {dtype_name(dtype)} there.")
    if not wide.numel():
        return wide.to(dtype)
    parts = torch.view_as_real(wide) if wide.is_complex() else wide
    low, high = (float(bound) for bound in torch.aminmax(parts.detach()))
    bounds = torch.finfo(dtype)
    # What lies less than half a step above the largest number is rounded to it.
    limit = bounds.max * (1 + bounds.eps / 4)
    if not (-limit <= low and high <= limit):  # also for NaN
        largest = max(abs(low), abs(high))
        holds = f"{largest:.3g}, and {dtype_name(dtype)} holds up to {bounds.max:.3g}"
        raise error(f"{name!r} overflows: a value becomes {holds}. Take a wider dtype, or smaller numbers.")
    if bounds.min > 0 and low < 0:
        raise error(f"{name!r} loses its sign: a value becomes {low:.3g}, and {dtype_name(dtype)} is never negative.")
    return wide.to(dtype)
