"""Random values: of any type, odd tensors, and changes to JSON values and bytes."""

from __future__ import annotations

import copy
import math
import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fuzzers.engine import Dice

NUMBERS = (-1, 0, 1, 2, 3, 2**31, 2**63, 10**30, -0.0, 0.5, 1e300, math.nan, math.inf, -math.inf, 1j, True)
TEXTS = (
    "",
    " ",
    "x",
    "weight_matching",
    "identity",
    "cpu",
    "cuda:99",
    "a\0b",
    "\ud800",
    "../x",
    "h .",
    "0",
    "None",
    "é" * 300,
)


class Nothing:
    """An object of a class that nobody knows."""


class Hostile:
    """An object that raises at whatever is done with it."""

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(name) if name.startswith("__") else RuntimeError(f"hostile {name}")

    def __repr__(self) -> str:
        raise RuntimeError("hostile repr")

    def __len__(self) -> int:
        raise RuntimeError("hostile len")


OBJECTS: tuple[Callable[[], Any], ...] = (
    lambda: None,
    Nothing,
    Hostile,
    object,
    lambda: Nothing,
    lambda: int,
    lambda: len,
    lambda: lambda *arguments: arguments[0],
    lambda: b"bytes",
    lambda: Path("nowhere.pt"),
    lambda: range(3),
    lambda: iter([1, 2]),
    lambda: set("ab"),
    lambda: np.arange(3),
    lambda: np.float32(0.5),
    lambda: torch.arange(3),
    lambda: torch.zeros(()),
    lambda: torch.ones(2, 2, device="meta"),
    lambda: torch.eye(2).to_sparse(),
    lambda: nn.Linear(2, 2),
    lambda: nn.Linear(2, 2).state_dict(),
    lambda: torch.float32,
    lambda: torch.device("cpu"),
    lambda: torch.Generator(),
    lambda: slice(1),
    lambda: Ellipsis,
    lambda: NotImplemented,
    lambda: ValueError("x"),
)


def text(dice: Dice, longest: int = 8) -> str:
    return "".join(dice.choices(string.printable, k=dice.randrange(longest)))


def anything(dice: Dice, depth: int = 2) -> Any:
    """A value of any type."""
    kind = dice.randrange(5 if depth else 3)
    if kind == 0:
        return dice.choice(NUMBERS)
    if kind == 1:
        return dice.choice((*TEXTS, text(dice)))
    if kind == 2:
        return dice.choice(OBJECTS)()
    parts = [anything(dice, depth - 1) for _ in range(dice.randrange(4))]
    if kind == 3:
        return dice.pick(parts, tuple(parts))
    return {dice.pick("a", "h", "0.weight", 3, None, ("a", 1)): part for part in parts}


def shown(value: object) -> str:
    """A value in a line, also where it does not want to be shown."""
    try:
        return f"{type(value).__name__} {value!r}"[:200]
    except Exception:
        return f"{type(value).__name__} that cannot be shown"


NAMES = (
    *("float32", "float64", "float16", "bfloat16", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32"),
    *("uint64", "bool", "complex32", "complex64", "complex128", "float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz"),
    *("float8_e5m2fnuz", "float8_e8m0fnu"),
)
DTYPES = tuple(getattr(torch, name) for name in NAMES if hasattr(torch, name))
FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def filled(dice: Dice, shape: tuple[int, ...], dtype: torch.dtype, scale: float = 1.0) -> Tensor:
    """Random numbers of a dtype."""
    values = dice.randn(*shape, dtype=torch.float64) * scale
    if dtype.is_complex:
        values = torch.complex(values, dice.randn(*shape, dtype=torch.float64))
    elif not dtype.is_floating_point:
        values = (values.abs() * 3).floor()
    return values.to(dtype)


class Marked(Tensor):
    """A subclass of tensors."""


STORAGES: dict[str, Callable[[Tensor], Tensor]] = {
    "plain": lambda t: t,
    "transposed": lambda t: t.mT.contiguous().mT if t.ndim > 1 else t,
    "every second": lambda t: torch.stack([t, t], -1)[..., 0],
    "expanded": lambda t: t.flatten()[:1].expand(t.shape) if t.numel() else t,
    "part of more": lambda t: torch.cat([t.flatten(), t.flatten()])[t.numel() :].view(t.shape),
    "conjugated": lambda t: t.conj() if t.dtype in (torch.complex64, torch.complex128) else t,
    "negated": lambda t: torch._neg_view(t) if t.dtype in (torch.float32, torch.float64) else t,
    "with gradient": lambda t: t.requires_grad_() if t.dtype in FLOATS else t,
    "parameter": lambda t: nn.Parameter(t) if t.dtype in FLOATS else nn.Parameter(t, requires_grad=False),
    "subclass": lambda t: t.as_subclass(Marked),
    "channels last": lambda t: t.to(memory_format=torch.channels_last) if t.ndim == 4 else t,
}
"""Ways to hold the same numbers that every function has to take."""


def inference(t: Tensor) -> Tensor:
    with torch.inference_mode():
        return t.clone()


def fake(t: Tensor) -> Tensor:
    with torch._subclasses.FakeTensorMode() as mode:
        return mode.from_tensor(t)


ODD: dict[str, Callable[[Tensor], Any]] = {
    "sparse": lambda t: t.float().to_sparse(),
    "compressed rows": lambda t: (t.float() if t.ndim == 2 else torch.eye(3)).to_sparse_csr(),
    "quantised": lambda t: torch.quantize_per_tensor(t.float(), 0.1, 0, torch.quint8),
    "nested": lambda t: torch.nested.nested_tensor([t.float().flatten()]),
    "meta": lambda t: t.to("meta"),
    "fake": lambda t: fake(t.float()),
    "NaN": lambda t: torch.full_like(t.float(), math.nan),
    "infinity": lambda t: torch.full_like(t.float(), math.inf),
    "NaN in one place": lambda t: torch.cat([t.float().flatten()[1:], torch.tensor([math.nan])]).view(t.shape),
    "another shape": lambda t: torch.zeros((*t.shape, 2)),
    "flat": lambda t: t.flatten() if t.ndim != 1 else t[None],
    "empty": lambda t: t.flatten()[:0],
    "inference": inference,
    "list": lambda t: t.tolist(),
    "array": lambda t: t.float().numpy(),
    "module": lambda t: nn.Linear(1, 1),
    "nothing": lambda t: None,
    "number": lambda t: 3.0,
}
"""Values that have no place in a state dict, or not everywhere."""


def changed_json(dice: Dice, value: Any) -> Any:
    """A JSON value with one place replaced, deleted or doubled."""
    value = copy.deepcopy(value)
    places = [(holder, key) for holder in holders(value) for key in keys(holder)]
    if not places:
        return plain(dice)
    holder, key = dice.choice(places)
    other, there = dice.choice(places)
    match dice.randrange(5):
        case 0:
            del holder[key]
        case 1:
            holder[key] = copy.deepcopy(other[there])
        case 2 if isinstance(holder, list):
            holder.insert(key, copy.deepcopy(holder[key]))
        case _:
            holder[key] = plain(dice)
    return value


def holders(value: Any) -> list[Any]:
    """Every list and dict in a JSON value."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    found = [value] if isinstance(value, dict | list) else []
    return [*found, *(holder for part in inner for holder in holders(part))]


def keys(holder: Any) -> list[Any]:
    return list(holder) if isinstance(holder, dict) else list(range(len(holder)))


def plain(dice: Dice, depth: int = 2) -> Any:
    """A value that JSON holds."""
    kind = dice.randrange(5 if depth else 3)
    if kind == 0:
        return dice.pick(None, True, False, -1, 0, 1, 2, 7, 2**31, 2**63, 10**25, 0.5, 1e300, -1e-300)
    if kind < 3:
        return dice.choice((*TEXTS, text(dice), "9" * 400))
    parts = [plain(dice, depth - 1) for _ in range(dice.randrange(4))]
    return parts if kind == 3 else {text(dice): part for part in parts}


def changed_bytes(dice: Dice, data: bytes) -> bytes:
    """Bytes with bits flipped, a part cut out, doubled or overwritten, or the end cut off."""
    if not data:
        return bytes(dice.randrange(256) for _ in range(dice.randrange(40)))
    start, stop = sorted((dice.randrange(len(data)), dice.randrange(len(data))))
    match dice.randrange(6):
        case 0:
            return data[:start]
        case 1:
            return data[:start] + data[stop:]
        case 2:
            return data[:stop] + data[start:]
        case 3:
            return data[:start] + dice.randbytes(min(stop - start, 8)) + data[start + min(stop - start, 8) :]
        case _:
            flipped = bytearray(data)
            for _ in range(dice.randrange(1, 4)):
                flipped[dice.randrange(len(data))] ^= 1 << dice.randrange(8)
            return bytes(flipped)
