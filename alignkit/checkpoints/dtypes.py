"""What dtypes cannot do, in one place each: be indexed, and hold every value that was computed in a wider one."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor

from alignkit.errors import AlignkitError, UsageError
from alignkit.text import did_you_mean, dtype_name, list_some

FloatDtype: TypeAlias = torch.dtype | str
"""A floating-point dtype, or its name: ``torch.bfloat16``, ``"bfloat16"``, ``"bf16"``."""
_SHORT = {"fp64": "float64", "fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
_FLOATS = ("float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2")

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


def read_dtype(dtype: FloatDtype) -> torch.dtype:
    """Return the floating-point dtype that weights are to have.

    Raises:
        UsageError: It is not one.
    """
    name = dtype_name(dtype) if isinstance(dtype, torch.dtype) else dtype.removeprefix("torch.")
    known = getattr(torch, _SHORT.get(name, name), None)
    if not isinstance(known, torch.dtype) or not known.is_floating_point:
        raise UsageError(
            f"{name!r} is not a floating-point dtype: take {', '.join(_FLOATS)}.{did_you_mean(name, _FLOATS)}"
        )
    return known


def coarser_dtype(a: torch.dtype, b: torch.dtype) -> torch.dtype:
    """Return the one of two floating-point dtypes that rounds more."""
    return max(a, b, key=lambda dtype: torch.finfo(dtype).eps)


def common_dtype(dtypes: Iterable[torch.dtype]) -> torch.dtype:
    """Return the dtype in which tensors are computed together: their own, and float32 at least where they differ."""
    every = set(dtypes)
    if len(every) == 1:
        return every.pop()
    return torch.float64 if torch.float64 in every else torch.float32


def length(tensor: Tensor) -> float:
    """Return the Euclidean length of a tensor seen as one vector; its squares may overflow or vanish."""
    largest = float(tensor.abs().max()) if tensor.numel() else 0.0
    return largest * float(torch.linalg.vector_norm(tensor / largest)) if largest else 0.0


@dataclass
class Rounding:
    """What weights lose when they are rounded to the dtypes that they are kept in, over all tensors so far.

    Attributes:
        error: Length of the difference between what was computed and what was kept.
        size: Length of what was computed.
        dtypes: Names of the dtypes in which something was lost.
    """

    error: float = 0.0
    size: float = 0.0
    dtypes: set[str] = field(default_factory=set)

    def narrow(self, wide: Tensor, dtype: torch.dtype, name: str, error: type[AlignkitError]) -> Tensor:
        """Round a tensor as `narrow` does, and keep account of it."""
        rounded = narrow(wide, dtype, name, error)
        lost = length(wide - rounded.to(wide.dtype))
        self.error, self.size = math.hypot(self.error, lost), math.hypot(self.size, length(wide))
        if lost:
            self.dtypes.add(dtype_name(dtype))
        return rounded

    @property
    def relative(self) -> float:
        """Part of the length of the weights that was lost; float32 loses 3e-8, bfloat16 0.002."""
        return self.error / self.size if self.size else 0.0

    def explain(self) -> list[str]:
        """Say what was lost; no line where that is not more than float32 loses."""
        if self.relative < torch.finfo(torch.float32).eps:
            return []
        return [f"Rounded to {list_some(sorted(self.dtypes))}: weights changed by {self.relative:.1g} of their length."]

    def facts(self) -> dict[str, Any]:
        """Return what was lost as plain values."""
        return {"weight_rounding": self.relative, "rounded_to": sorted(self.dtypes)}
