"""Layouts: how groups act on the axes of a tensor.

An axis is a concatenation of segments, a segment is a row-major product of factors, and a factor is a fixed size,
the units of a group, or again an axis (a concatenation inside a product, as in fused attention weights).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from math import prod
from typing import TypeAlias

import torch
from torch import Tensor

from alignkit.errors import GraphError
from alignkit.graph.kinds import GroupKind


@dataclass(frozen=True)
class Fixed:
    """Positions that no group moves. ``size`` is None while it is not known."""

    size: int | None = None


@dataclass(frozen=True)
class Units:
    """The units of a group of some kind; ``parent`` names the group whose units own them, if any."""

    group: str
    parent: str | None = None
    size: int | None = None
    kind: GroupKind = "permutation"


@dataclass(frozen=True)
class StackPlaces(Units):
    """Places that stay, each of which owns groups of its own: those of ``units`` below it are ``units.0``, ``units.1``.

    ``group`` is the name of the stack, which no group has.
    """


@dataclass(frozen=True)
class Segment:
    """A row-major product of factors: the last factor varies fastest."""

    factors: tuple[Factor, ...]


@dataclass(frozen=True)
class Axis:
    """A concatenation of segments."""

    segments: tuple[Segment, ...]

    def leaves(self) -> Iterator[Fixed | Units]:
        """List fixed factors and mentions of groups from left to right, those of nested sums too."""
        for segment in self.segments:
            for factor in segment.factors:
                yield from factor.leaves() if isinstance(factor, Axis) else (factor,)

    def units(self) -> Iterator[Units]:
        """List every mention of a group or stack, from left to right."""
        return (leaf for leaf in self.leaves() if isinstance(leaf, Units))

    @property
    def is_fixed(self) -> bool:
        """Whether no group or stack stands on this axis."""
        return next(self.units(), None) is None


Factor: TypeAlias = Fixed | Units | Axis
Layout: TypeAlias = tuple[Axis, ...]
"""What each axis of one tensor is made of, as one string of the notation says it."""


def factor_size(factor: Factor) -> int:
    """Return the number of positions of a factor, or of an axis, whose sizes are all known."""
    if isinstance(factor, Axis):
        return sum(prod(map(factor_size, segment.factors)) for segment in factor.segments)
    if factor.size is None:
        raise GraphError(f"the size of {factor} is not known")
    return factor.size


def simplified(axis: Axis) -> Axis:
    """Write an axis of known sizes in one way, with the same action: fixed parts that meet are merged.

    ``(h 2 3)+.+(4 1)``, the ``.`` having 5 positions, becomes ``(h 6)+9``.
    """
    segments: list[Segment] = []
    for segment in axis.segments:
        factors = _merge_factors(segment)
        nested = factors[0] if len(factors) == 1 else None
        for part in nested.segments if isinstance(nested, Axis) else (Segment(factors),):
            both = Axis((*segments[-1:], part))
            if segments and both.is_fixed:
                part = Segment((Fixed(factor_size(both)),))
                segments.pop()
            segments.append(part)
    return Axis(tuple(segments))


def _merge_factors(segment: Segment) -> tuple[Factor, ...]:
    """Multiply neighbouring fixed factors, dissolve nested products, and leave ones out."""
    factors: list[Factor] = []
    for factor in segment.factors:
        inner = simplified(factor) if isinstance(factor, Axis) else factor
        is_product = isinstance(inner, Axis) and len(inner.segments) == 1
        for part in inner.segments[0].factors if isinstance(inner, Axis) and is_product else (inner,):
            if factors and isinstance(part, Fixed) and isinstance(factors[-1], Fixed):
                part = Fixed(factor_size(factors.pop()) * factor_size(part))
            factors.append(part)
    return tuple(factor for factor in factors if factor != Fixed(1)) or (Fixed(1),)


@dataclass(frozen=True)
class Dim:
    """One factor of a block: ``size`` positions, ``stride`` apart on ``axis``; ``group`` is None where fixed.

    ``ancestors`` are the numbers, within the block, of the dims of the group's parents, outermost first, and ``kind``
    is that of the group.
    """

    axis: int
    size: int
    stride: int
    group: str | None = None
    ancestors: tuple[int, ...] = ()
    kind: GroupKind = "permutation"


@dataclass(frozen=True)
class Block:
    """A part of a tensor that is a plain product of factors: one term of the layout multiplied out.

    The blocks of a tensor are disjoint and cover it, and every element of the symmetry group maps each block to
    itself. ``offsets`` is where the block starts, one number an axis.
    """

    offsets: tuple[int, ...]
    dims: tuple[Dim, ...]

    @cached_property
    def moving(self) -> tuple[tuple[int, str], ...]:
        """The dims that belong to groups, each with the name of its group."""
        return tuple((at, dim.group) for at, dim in enumerate(self.dims) if dim.group is not None)

    @cached_property
    def groups(self) -> frozenset[str]:
        """Names of the groups that act on this block."""
        return frozenset(group for _, group in self.moving)

    @cached_property
    def _shape(self) -> tuple[int, ...] | None:
        """Shape of a tensor that is the block as it stands; None where a dim is not a whole axis."""
        starts = not any(self.offsets) and all(dim.axis == at and dim.stride == 1 for at, dim in enumerate(self.dims))
        return tuple(dim.size for dim in self.dims) if starts and len(self.dims) == len(self.offsets) else None

    def stacked(self, count: int) -> Block:
        """Return the block in a stack ``[count, *shape]`` of tensors; its dims are nested in the first, the tensors."""
        dims = (replace(d, axis=d.axis + 1, ancestors=(0, *(i + 1 for i in d.ancestors))) for d in self.dims)
        return Block((0, *self.offsets), (Dim(0, count, 1), *dims))

    def view(self, tensor: Tensor) -> Tensor:
        """View the block in a tensor, one dimension for each of ``dims``; nothing is copied."""
        if tensor.shape == self._shape:
            return tensor
        strides = tensor.stride()
        offset = tensor.storage_offset() + sum(o * s for o, s in zip(self.offsets, strides, strict=True))
        sizes = [d.size for d in self.dims]
        return torch.as_strided(tensor, sizes, [d.stride * strides[d.axis] for d in self.dims], offset)


def groups_of_layout(layout: Layout) -> dict[str, dict[str, str | None]]:
    """List the groups that each mention stands for, with their parents: one, or one for each place of a stack.

    Of ``"=experts:2 heads[experts] d[heads]"`` these are ``heads.0`` and ``heads.1`` for heads, and for d ``d.0``, a
    family below ``heads.0``, and ``d.1``. The layout has all sizes, and every child its parent further left.
    """
    mentions = {units.group: units for axis in layout for units in axis.units()}

    def owners(name: str | None) -> Iterator[tuple[str, str | None]]:
        """Yield the ending that each copy of ``name`` gives to what it owns, and the group that owns it."""
        if name is None:
            yield "", None
            return
        owner = mentions[name]
        for ending, parent in owners(owner.parent):
            if isinstance(owner, StackPlaces):
                yield from ((f"{ending}.{place}", parent) for place in range(factor_size(owner)))
            else:
                yield ending, name + ending

    groups = (units for units in mentions.values() if not isinstance(units, StackPlaces))
    return {u.group: {u.group + ending: parent for ending, parent in owners(u.parent)} for u in groups}


_Term: TypeAlias = tuple[int, tuple[tuple[Units | None, int, int, str], ...]]
"""One term of one axis: its offset, and of each of its factors units (or None), size, stride, and the place in a stack
as an ending of names, from left to right."""


def _axis_terms(axis: Axis, stride: int) -> Iterator[_Term]:
    """Multiply an axis out whose neighbouring positions are ``stride`` apart."""
    start = 0
    for segment in axis.segments:
        terms: list[_Term] = [(start, ())]
        sizes = [factor_size(factor) for factor in segment.factors]
        for at, factor in enumerate(segment.factors):
            step = stride * prod(sizes[at + 1 :])  # the last factor varies fastest
            units = factor if isinstance(factor, Units) else None
            parts: list[_Term] = [(0, ((units, sizes[at], step, ""),))]
            if isinstance(factor, Axis):
                parts = list(_axis_terms(factor, step))
            elif isinstance(factor, StackPlaces):
                parts = [(place * step, ((units, 1, step, f".{place}"),)) for place in range(sizes[at])]
            terms = [(offset + more, left + right) for (offset, left), (more, right) in product(terms, parts)]
        yield from terms
        start += stride * prod(sizes)


def layout_blocks(layout: Layout, tensor: str) -> tuple[Block, ...]:
    """Multiply a layout whose sizes are all known out into blocks; messages name the ``tensor``.

    Raises:
        GraphError: A child group stands without its parent further left, or it is ambiguous which parent is meant.
    """
    blocks = []
    for terms in product(*(list(_axis_terms(axis, 1)) for axis in layout)):
        dims: list[Dim] = []
        mentions: list[Units | None] = []
        endings: list[str] = []  # of the names of the groups that each dim owns
        for axis, (_, factors) in enumerate(terms):
            for units, size, stride, ending in factors:
                ancestors: tuple[int, ...] = ()
                if units is not None and units.parent is not None:
                    parent = _find_parent(dims, mentions, units, axis, tensor)
                    is_group = dims[parent].group is not None
                    ancestors = (*dims[parent].ancestors, *[parent] * is_group)
                    ending = endings[parent] + ending
                if units is None or isinstance(units, StackPlaces):
                    dims.append(Dim(axis, size, stride, None, ancestors))
                else:
                    dims.append(Dim(axis, size, stride, units.group + ending, ancestors, units.kind))
                mentions.append(units)
                endings.append(ending)
        blocks.append(Block(tuple(offset for offset, _ in terms), tuple(dims)))
    return tuple(blocks)


def _find_parent(dims: list[Dim], mentions: list[Units | None], units: Units, axis: int, tensor: str) -> int:
    """Find the dim of the parent: the last one on the same axis, or the only one further left."""
    candidates = [i for i, mention in enumerate(mentions) if mention is not None and mention.group == units.parent]
    here = [i for i in candidates if dims[i].axis == axis]
    if here or len(candidates) == 1:
        return (here or candidates)[-1]
    where, both = f"tensor {tensor!r}, axis {axis}", f"'({units.parent} {units.group}[{units.parent}])'"
    if not candidates:
        rule = "A child needs its parent further left, in the same segment or on an earlier axis"
        problem = f"group {units.group!r} stands without its parent {units.parent!r}"
        raise GraphError(f"{where}: {problem}. {rule}: write {both}.")
    reason = f"because the parent acts on axes {[dims[i].axis for i in candidates]}. Write both in one segment: {both}"
    raise GraphError(f"{where}: it is ambiguous which {units.parent!r} owns {units.group!r}, {reason}.")
