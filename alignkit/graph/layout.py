"""Layouts: how groups act on the axes of a tensor.

An axis is a concatenation of segments, a segment is a row-major product of factors, and a factor is a fixed size,
the units of a group, or again an axis (a concatenation inside a product, as in fused attention weights).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from math import prod
from typing import TypeAlias

import torch
from torch import Tensor

from alignkit.errors import GraphError


@dataclass(frozen=True)
class Fixed:
    """Positions that no group moves. ``size`` is None while it is not known."""

    size: int | None = None


@dataclass(frozen=True)
class Units:
    """The units of a group; ``parent`` names the group whose units own them, if any."""

    group: str
    parent: str | None = None
    size: int | None = None


@dataclass(frozen=True)
class Segment:
    """A row-major product of factors: the last factor varies fastest."""

    factors: tuple[Factor, ...]


@dataclass(frozen=True)
class Axis:
    """A concatenation of segments."""

    segments: tuple[Segment, ...]

    def units(self) -> Iterator[Units]:
        """Every mention of a group, from left to right."""
        for segment in self.segments:
            for factor in segment.factors:
                if isinstance(factor, Units):
                    yield factor
                elif isinstance(factor, Axis):
                    yield from factor.units()

    @property
    def is_fixed(self) -> bool:
        """Whether no group acts on this axis."""
        return next(self.units(), None) is None


Factor: TypeAlias = Fixed | Units | Axis
Layout: TypeAlias = tuple[Axis, ...]

FIXED_AXIS = Axis((Segment((Fixed(),)),))


def factor_size(factor: Factor) -> int:
    """Number of positions of a factor whose sizes are all known."""
    if isinstance(factor, Axis):
        return axis_size(factor)
    if factor.size is None:
        raise GraphError(f"the size of {factor} is not known")
    return factor.size


def axis_size(axis: Axis) -> int:
    """Number of positions of an axis whose sizes are all known."""
    return sum(prod(factor_size(f) for f in segment.factors) for segment in axis.segments)


def simplified(axis: Axis) -> Axis:
    """The same action on an axis of known sizes, written in one way: fixed parts that meet are merged."""
    segments: list[Segment] = []
    for segment in axis.segments:
        factors = _merged_factors(segment)
        if len(factors) == 1 and isinstance(factors[0], Axis):
            segments.extend(factors[0].segments)
        else:
            segments.append(Segment(factors))
    merged: list[Segment] = []
    for segment in segments:
        if merged and _is_fixed(segment) and _is_fixed(merged[-1]):
            both = factor_size(Axis((merged.pop(), segment)))
            merged.append(Segment((Fixed(both),)))
        else:
            merged.append(segment)
    return Axis(tuple(merged))


def _is_fixed(segment: Segment) -> bool:
    return len(segment.factors) == 1 and isinstance(segment.factors[0], Fixed)


def _merged_factors(segment: Segment) -> tuple[Factor, ...]:
    """The factors of a segment, neighbouring fixed ones multiplied and ones left out."""
    factors: list[Factor] = []
    for factor in segment.factors:
        inner = simplified(factor) if isinstance(factor, Axis) else None
        parts: tuple[Factor, ...] = (factor,)
        if inner is not None:
            parts = inner.segments[0].factors if len(inner.segments) == 1 else (inner,)
        for part in parts:
            if factors and isinstance(part, Fixed) and isinstance(factors[-1], Fixed):
                part = Fixed(factor_size(factors.pop()) * factor_size(part))
            factors.append(part)
    kept = tuple(f for f in factors if f != Fixed(1))
    return kept or (Fixed(1),)


@dataclass(frozen=True)
class Dim:
    """One factor of a block: ``size`` positions, ``stride`` apart on ``axis``; ``group`` is None where fixed.

    ``ancestors`` are the positions, within the block, of the dims of the group's parents, outermost first.
    """

    axis: int
    size: int
    stride: int
    group: str | None = None
    ancestors: tuple[int, ...] = ()


@dataclass(frozen=True)
class Block:
    """A part of a tensor that is a plain product of factors: one term of the layout multiplied out.

    The blocks of a tensor are disjoint and cover it, and every element of the symmetry group maps each block to
    itself. ``offsets`` is where the block starts, one number an axis.
    """

    offsets: tuple[int, ...]
    dims: tuple[Dim, ...]

    @property
    def groups(self) -> frozenset[str]:
        """Names of the groups that act on this block."""
        return frozenset(d.group for d in self.dims if d.group is not None)

    def view(self, tensor: Tensor) -> Tensor:
        """The block as a view of a tensor, one dimension for each of ``dims``; nothing is copied."""
        strides = tensor.stride()
        offset = tensor.storage_offset() + sum(o * s for o, s in zip(self.offsets, strides, strict=True))
        return torch.as_strided(
            tensor,
            [d.size for d in self.dims],
            [d.stride * strides[d.axis] for d in self.dims],
            offset,
        )


@dataclass(frozen=True)
class _Term:
    """One term of one axis: an offset and its factors from left to right as (units or None, size, stride)."""

    offset: int
    factors: tuple[tuple[Units | None, int, int], ...]


def _axis_terms(axis: Axis, stride: int) -> Iterator[_Term]:
    start = 0
    for segment in axis.segments:
        size = prod(factor_size(f) for f in segment.factors)
        for term in _segment_terms(segment.factors, stride):
            yield _Term(term.offset + start * stride, term.factors)
        start += size


def _segment_terms(factors: tuple[Factor, ...], stride: int) -> Iterator[_Term]:
    if not factors:
        yield _Term(0, ())
        return
    head, tail = factors[0], factors[1:]
    head_stride = stride * prod(factor_size(f) for f in tail)
    if isinstance(head, Axis):
        heads = list(_axis_terms(head, head_stride))
    else:
        units = head if isinstance(head, Units) else None
        heads = [_Term(0, ((units, factor_size(head), head_stride),))]
    for left, right in product(heads, list(_segment_terms(tail, stride))):
        yield _Term(left.offset + right.offset, left.factors + right.factors)


def layout_blocks(layout: Layout, tensor: str) -> tuple[Block, ...]:
    """Multiply a layout out into blocks.

    Args:
        layout: One axis for each dimension of the tensor, all sizes known.
        tensor: Name of the tensor, for messages.

    Raises:
        GraphError: A child group stands without its parent further left, or it is ambiguous which parent is meant.
    """
    axes = [list(_axis_terms(axis, 1)) for axis in layout]
    return tuple(_block(terms, tensor) for terms in product(*axes))


def _block(terms: tuple[_Term, ...], tensor: str) -> Block:
    dims: list[Dim] = []
    for axis, term in enumerate(terms):
        for units, size, stride in term.factors:
            if units is None:
                dims.append(Dim(axis, size, stride))
                continue
            ancestors: tuple[int, ...] = ()
            if units.parent is not None:
                parent = _parent_dim(dims, units, axis, tensor)
                ancestors = (*dims[parent].ancestors, parent)
            dims.append(Dim(axis, size, stride, units.group, ancestors))
    return Block(tuple(term.offset for term in terms), tuple(dims))


def _parent_dim(dims: list[Dim], units: Units, axis: int, tensor: str) -> int:
    found = [i for i, d in enumerate(dims) if d.group == units.parent]
    here = [i for i in found if dims[i].axis == axis]
    if here:
        return here[-1]
    if len(found) == 1:
        return found[0]
    if not found:
        raise GraphError(
            f"tensor {tensor!r}, axis {axis}: group {units.group!r} stands without its parent {units.parent!r}. "
            f"A child needs its parent further left, in the same segment or on an earlier axis: write "
            f"'({units.parent} {units.group}[{units.parent}])'."
        )
    raise GraphError(
        f"tensor {tensor!r}, axis {axis}: it is ambiguous which {units.parent!r} owns {units.group!r}, because the "
        f"parent acts on axes {[dims[i].axis for i in found]}. Write both in one segment: "
        f"'({units.parent} {units.group}[{units.parent}])'."
    )
