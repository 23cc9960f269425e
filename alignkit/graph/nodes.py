"""The two kinds of node of a symmetry graph: groups and tensors."""

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
