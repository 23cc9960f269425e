"""What a tensor has to be: named by a text, dense, with values of its own and a dtype that all of torch can copy."""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from alignkit.text import dtype_name, show_type, show_value

MAX_DIMS = 64
"""Maximum number of dimensions; most functions of torch have this limit."""
_NAMES = """
    bool uint8 uint16 uint32 uint64 int8 int16 int32 int64 float16 bfloat16 float32 float64 complex64 complex128
    float8_e4m3fn float8_e5m2 float8_e8m0fnu float8_e4m3fnuz float8_e5m2fnuz
"""
DTYPES = frozenset(getattr(torch, name) for name in _NAMES.split() if hasattr(torch, name))
"""Dtypes of weights. Others are quantised, pack several numbers into one byte, or have next to no functions."""


def why_not_dense(value: object) -> str | None:
    """Say what a value is instead of a dense tensor of a dtype of weights; None where it is one.

    Tensors on the meta device are dense: they have shapes, and that is all that a graph needs.
    """
    if not isinstance(value, Tensor):
        return show_type(value)
    if is_lazy(value):
        return "not initialised yet; run the model once"
    if type(value).__torch_dispatch__ is not Tensor.__torch_dispatch__:
        return f"a {type(value).__name__}, which keeps its values elsewhere"
    if value.is_nested:
        return "a nested tensor"
    if value.is_quantized:
        return "a quantised tensor; dequantise it"
    if value.layout != torch.strided:
        return f"a tensor of layout {dtype_name(value.layout)}; use to_dense()"
    if value.dtype not in DTYPES:
        return f"of dtype {dtype_name(value.dtype)}, which is not one of weights"
    return None


def why_no_values(value: object) -> str | None:
    """Say what a value is instead of a dense tensor with values; None where it is one."""
    kind = why_not_dense(value)
    return "on the meta device and has no values" if kind is None and value.is_meta else kind  # type: ignore[attr-defined]


def check_name(name: object) -> None:
    """Raise ValueError unless a name is a text that can be written as UTF-8."""
    if not isinstance(name, str):
        kind = type(name).__name__
        raise ValueError(f"it has the key {show_value(name)} ({kind}): names of tensors have to be strings")
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"the name {name!r} of a tensor is not Unicode") from error


def check_shape(shape: object, dtype: object) -> None:
    """Raise ValueError unless torch can make a tensor of this shape and dtype, memory aside."""
    if not isinstance(dtype, torch.dtype) or dtype not in DTYPES:
        raise ValueError(f"a tensor has dtype {dtype_name(dtype)}, which is not one of weights")
    if not isinstance(shape, tuple) or not all(type(size) is int and size >= 0 for size in shape):
        raise ValueError("a tensor has a shape that is not made of sizes")
    if len(shape) > MAX_DIMS or prod(max(1, size) for size in shape) * dtype.itemsize >= 1 << 63:
        raise ValueError("a tensor has an impossible shape: more entries than can be counted, or too many dimensions")
