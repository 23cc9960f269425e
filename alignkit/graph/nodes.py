"""What a symmetry graph is made of: groups, tensors, and where it comes from (written by hand, or traced)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from alignkit.graph.kinds import GroupKind
from alignkit.graph.layout import Block, Layout, groups_of_layout, layout_blocks
from alignkit.graph.notation import format_layout
from alignkit.text import list_some

Role = Literal["parameter", "buffer", "tensor"]


@dataclass(frozen=True)
class Group:
    """A set of units that may be exchanged, or rotated into each other.

    Attributes:
        size: Number of units; for a family, of each unit of the parent.
        parent: Group whose units own these units, or None.
        kind: What may be done to the units, such as ``"permutation"`` or ``"orthogonal"``; `alignkit.graph.kinds`
            lists all.
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
    def mentions(self) -> Mapping[str, Mapping[str, str | None]]:
        """For each name in the layout the groups that it stands for, with their parents: several below a stack."""
        self.blocks  # noqa: B018  multiplying the layout out checks that children stand with their parents
        return groups_of_layout(self.layout)

    @cached_property
    def groups(self) -> frozenset[str]:
        """Names of the groups that act on this tensor."""
        return frozenset(name for groups in self.mentions.values() for name in groups)

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
class AxisPositions:
    """Some positions along axis number ``axis`` of a tensor. ``ranges`` are their first and last positions."""

    tensor: str
    axis: int
    ranges: tuple[tuple[int, int], ...]

    @classmethod
    def of(cls, tensor: str, axis: int, positions: Sequence[int]) -> AxisPositions:
        """Gather ascending positions in ranges."""
        starts = [p for i, p in enumerate(positions) if i == 0 or positions[i - 1] != p - 1]
        ends = [p for i, p in enumerate(positions) if i + 1 == len(positions) or positions[i + 1] != p + 1]
        return cls(tensor, axis, tuple(zip(starts, ends, strict=True)))

    def __str__(self) -> str:
        spans = [str(first) if first == last else f"{first} to {last}" for first, last in self.ranges]
        return f"{self.tensor}, axis {self.axis}: {list_some(spans, 5)}"


@dataclass(frozen=True)
class SpaceLimit:
    """What keeps a group from a larger kind: an operation, or a norm that cannot be folded; ``""`` where nothing does.

    ``kind`` is the kind that it has, ``"fixed"`` where it is no group at all.
    """

    group: str
    kind: str
    reason: str = ""

    def __str__(self) -> str:
        return f"{self.group}: {self.kind}" + (f" ({self.reason})" if self.reason else "")


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
        unread: Positions of other tensors that it did not read; they stay where they are.
        constant: Buffers outside the state dict that the trace read and found to hold one value everywhere. So they
            have to in every model of the graph: see `alignkit.graph.hidden_state`.
        single_step: Positions of weights that it multiplied with nothing but constants, such as a state of zeros. They
            and what these products wrote stay where they are.
        choosing: Modules whose code reads values of tensors, "" for the model itself. Other inputs may take other paths
            through them, which the traced run did not see.
        joint: Tensors of stacked matrices, such as experts, that have one order of units for all: labels of each would
            take too much memory.
        outputs: Names of the outputs that count, where `trace` was told; the order of others may change.
        inputs: What the traced run was called with; empty where that is not known, or was more than tensors.
        limits: What keeps each space of units from a larger kind, where all symmetries were looked for.
        proved: Whether kinds, folds and balances were tried on weights while tracing; None where they were not looked
            for.
        contracted: Positions of weights that read a space: values are multiplied with them and summed over its units,
            where all symmetries were looked for. At all others a weight writes the space.
    """

    source: Literal["written", "traced"] = "written"
    tensors: Literal["fake", "real"] | None = None
    pinned: tuple[PinnedAxis, ...] = ()
    unknown_ops: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()
    unread: tuple[AxisPositions, ...] = ()
    single_step: tuple[AxisPositions, ...] = ()
    constant: tuple[str, ...] = ()
    choosing: tuple[str, ...] = ()
    joint: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    inputs: tuple[TracedInput, ...] = ()
    limits: tuple[SpaceLimit, ...] = ()
    proved: bool | None = None
    contracted: tuple[AxisPositions, ...] = ()
