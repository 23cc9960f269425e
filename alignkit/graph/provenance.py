"""Where a graph comes from: written by hand, or traced, and what a trace had to pin."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class PinnedAxis:
    """Axis number ``axis`` of a tensor, which a trace could not free.

    ``op`` is the operation that pinned it, such as ``aten.index``, ``where`` the path of the module that ran it (``""``
    for the root).
    """

    tensor: str
    axis: int
    op: str
    where: str = ""

    def __str__(self) -> str:
        module = f" in {self.where}" if self.where else ""
        return f"{self.tensor}, axis {self.axis}: pinned by {self.op}{module}"


@dataclass(frozen=True)
class TracedInput:
    """One tensor that the traced run was called with, without its values.

    ``name`` is its keyword (None for a positional argument), ``dtype`` a text such as ``"float32"``; ``low`` and
    ``high`` are the smallest and largest value of a tensor of integers, None for other tensors.
    """

    name: str | None
    shape: tuple[int, ...]
    dtype: str
    low: int | None = None
    high: int | None = None


@dataclass(frozen=True)
class Provenance:
    """Where a graph comes from.

    Attributes:
        source: ``"written"`` (from a spec) or ``"traced"`` (from one run of a model).
        tensors: Kind of tensors that a trace ran on: ``"fake"`` (no weights needed) or ``"real"``.
        pinned: Axes that the trace could not free.
        unknown_ops: Operations without a rule; whatever they touch is pinned.
        unused: Tensors that the traced run never read.
        inputs: What the traced run was called with; empty where that is not known, or was more than tensors.
    """

    source: Literal["written", "traced"] = "written"
    tensors: Literal["fake", "real"] | None = None
    pinned: tuple[PinnedAxis, ...] = ()
    unknown_ops: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()
    inputs: tuple[TracedInput, ...] = ()
