"""What a symmetry graph is made of: groups, tensors, and where it comes from (written by hand, or traced)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from alignkit.graph.layout import Block, Layout, layout_blocks
from alignkit.graph.notation import format_layout

GroupKind = Literal["permutation", "signed", "scaled", "orthogonal"]
Role = Literal["parameter", "buffer", "tensor"]


@dataclass(frozen=True)
class Group:
    """A set of interchangeable units.

    Attributes:
        size: Number of units; for a family, of each unit of the parent.
        parent: Group whose units own these units, or None.
        kind: How units may be exchanged. Only ``"permutation"`` is in use; the others are reserved for signed
            permutations (odd activations), positive rescalings (ReLU) and rotations (RMSNorm residual streams).
    """

    name: str
    size: int
    parent: str | None = None
    kind: GroupKind = "permutation"


@dataclass(frozen=True)
class TensorNode:
    """A parameter or buffer with the layout of each of its axes.

    Attributes:
        names: All its names, ``name`` first; more than one when tensors are tied.
        dtype: Its dtype as text, for example ``"float32"``; ``""`` when not known.
        layout: One axis layout for each dimension, all sizes known.
        role: ``"parameter"``, ``"buffer"``, or ``"tensor"`` when a plain mapping was given.
    """

    name: str
    names: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: str
    layout: Layout
    role: Role = "tensor"

    @cached_property
    def blocks(self) -> tuple[Block, ...]:
        """The layout multiplied out; see `Block`."""
        return layout_blocks(self.layout, self.name)

    @cached_property
    def groups(self) -> frozenset[str]:
        """Names of the groups that act on this tensor."""
        return frozenset(unit.group for axis in self.layout for unit in axis.units())

    def notation(self) -> str:
        """Write the layout in the notation, without sizes of groups."""
        return format_layout(self.layout)


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
