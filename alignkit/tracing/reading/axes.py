"""Reading the layout of an axis off its labels, in the notation of `SymmetryGraph.from_spec`.

The notation is stricter than what labels can say: units stand in one order everywhere, and axes are sums of row-major
products. An axis that does not fit raises `InexpressibleError` with the groups to give up; nothing is ever written
that is not so.

The example of this file is an axis of 8 positions: a head for each half, with two units and two fixed positions. For
each group that acts, a row of places tells which unit stands where, -1 where none does:

    heads    0  0  0  0  1  1  1  1
    units    0  1 -1 -1  0  1 -1 -1

The heads change most slowly: they are the outer factor, and each owns the positions `0 1 -1 -1` of the units, which are
a segment of units and one of two fixed positions. In the notation: `(heads (units[heads]+2))`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TypeAlias

import numpy as np

from alignkit.tracing.labels.tensor_labels import IntArray, LabelBlock, Labels
from alignkit.tracing.solving.orbits import Symmetry

_WRITE_OUT = 4
"""Maximum number of equal segments that are written out, as the four gates of an LSTM are ("h+h+h+h"). More are written
as a product ("(49 c)")."""


class InexpressibleError(Exception):
    """An axis has no faithful notation unless the groups in the error's only argument, a set, stay where they are."""


class VaryingRowsError(Exception):
    """The labels of an axis differ from row to row in a way that the notation cannot tell."""


GroupKey: TypeAlias = int | tuple[int, ...]
"""A group, by the number of its orbit, or one for each place of a stack."""


@dataclass(frozen=True)
class LabelledSegment:
    """Part of an axis: the group that acts (None: fixed), the number of positions, and those that each unit owns.

    With `is_stack` the positions are the places of a stack: other axes have a group for each.
    """

    group: GroupKey | None
    size: int
    inner: tuple[LabelledSegment, ...] = ()
    is_stack: bool = False


LabelledAxis = tuple[LabelledSegment, ...]
Places = Mapping[int, IntArray]
"""For each group, the place of the unit at each position, -1 where the group does not act."""


def read_axes(labels: Labels, classes: IntArray, symmetry: Symmetry) -> tuple[LabelledAxis, ...]:
    """Return the segments of each dimension of a parameter, from its labels and the class of each atom.

    Raises:
        InexpressibleError: Some groups have no faithful notation on one of the axes.
        VaryingRowsError: An axis depends on another one in a way that has no notation.
    """
    axes: list[LabelledAxis] = []
    stacks: set[int] = set()
    for dim, size in enumerate(labels.shape):
        block = labels.owner.get(dim)
        if block is None:
            axes.append((LabelledSegment(None, size),))
            continue
        rows = np.moveaxis(classes[block.atoms], block.span.index(dim), -1).reshape(-1, size)
        # For each group that acts on the context, the unit at each row.
        context: dict[int, IntArray] = {}
        for owner in (labels.owner.get(d) for d in block.context):
            if owner is not None and not owner.context:
                for group, units in _units_at(classes[owner.atoms], symmetry).items():
                    along = LabelBlock(owner.dims, (), units)
                    context[group] = along.spread(block.context, labels.shape).ravel()
        # For each group that the context does not settle, the place of the unit at each position of each row.
        places: dict[int, IntArray] = {}
        for group, units in _units_at(rows, symmetry).items():
            if group in context:
                of_row = context[group][:, None]
                if (np.where(units >= 0, units, of_row) == of_row).all():
                    continue
            place = symmetry.orbits[group].place[symmetry.index_of[units.clip(min=0)]]
            places[group] = np.where(units >= 0, place, -1)
        orbits = symmetry.orbit_of[rows]
        settled = frozenset(context) - frozenset(places)
        varies = any((table != table[0]).any() for table in (*places.values(), orbits))
        if not varies:
            axes.append(_read_sum({g: table[0] for g, table in places.items()}, orbits[0], settled, symmetry))
            continue
        if context or len(block.context) != 1 or axes[block.context[0]] != (LabelledSegment(None, len(rows)),):
            raise VaryingRowsError
        stacks.add(block.context[0])
        axes.append(_read_stack(places, orbits, symmetry))
    if stacks and not any(isinstance(group, tuple) for axis in axes for group in groups_on(axis)):
        raise VaryingRowsError
    for dim in stacks:
        axes[dim] = (LabelledSegment(None, labels.shape[dim], is_stack=True),)
    return tuple(axes)


def _read_stack(places: Places, orbits: IntArray, symmetry: Symmetry) -> LabelledAxis:
    """Read the rows of an axis of which each has groups of its own, at places that stay."""
    try:
        rows = [
            _read_sum({g: table[row] for g, table in places.items()}, orbits[row], frozenset(), symmetry)
            for row in range(len(orbits))
        ]
    except InexpressibleError as error:
        raise VaryingRowsError from error
    return _stack_rows(rows)


def _stack_rows(rows: Sequence[LabelledAxis]) -> LabelledAxis:
    """Read the same axis of each matrix in a stack as one whose groups are those of the matrices, in order."""
    segments = []
    for parts in zip(*rows, strict=True) if len({len(row) for row in rows}) == 1 else [()]:
        groups = tuple(part.group for part in parts)
        numbers = tuple(group for group in groups if isinstance(group, int))
        is_same, is_each = len(set(groups)) == 1, len(set(numbers)) == len(rows)
        if len({part.size for part in parts}) != 1 or not (is_same or is_each):
            raise VaryingRowsError
        inner = _stack_rows([part.inner for part in parts])
        segments.append(LabelledSegment(groups[0] if is_same else numbers, parts[0].size, inner))
    return tuple(segments)


def _units_at(classes: IntArray, symmetry: Symmetry) -> dict[int, IntArray]:
    """Return, for each group, the unit (a class) at each position, -1 where the group does not act."""
    orbits = symmetry.orbit_of[classes]
    units: dict[int, IntArray] = {}
    for key in np.unique(orbits[orbits >= 0]).tolist():
        here = orbits == key
        index = symmetry.index_of[classes[here]]
        for group, column in symmetry.orbits[key].coordinates.items():
            units.setdefault(group, np.full(classes.shape, -1, np.int64))[here] = column[index]
    return units


def _read_sum(places: Places, orbits: IntArray, outer: frozenset[int], symmetry: Symmetry) -> LabelledAxis:
    """Read positions as segments laid end to end. Units of groups in `outer` are settled by an outer factor."""
    segments: list[LabelledSegment] = []
    while len(orbits):
        inner = {g: place for g, place in places.items() if g not in outer}
        acting = {g for g, place in inner.items() if place[0] >= 0}
        if acting:
            segment = _read_product(places, orbits, acting, outer, symmetry)
        else:
            moving = np.any([place >= 0 for place in inner.values()], axis=0) if inner else np.zeros(len(orbits), bool)
            segment = LabelledSegment(None, int(np.argmax(moving)) if moving.any() else len(orbits))
        segments.append(segment)
        places = {g: place[segment.size :] for g, place in places.items()}
        orbits = orbits[segment.size :]
    return tuple(segments)


def _read_product(
    places: Places, orbits: IntArray, acting: set[int], outer: frozenset[int], symmetry: Symmetry
) -> LabelledSegment:
    """Read the longest product at the front. Its outermost group is the one that changes most slowly.

    A group of n units that stays at its first unit for m positions has to go on, in order, to n * m positions, and
    what stands inside of each unit has to be the same.
    """

    def count_equal(group: int) -> int:
        """Return for how many positions from the first the group stays at one unit."""
        changed = places[group] != places[group][0]
        return int(np.argmax(changed)) if changed.any() else len(changed)

    roots = [g for g in acting if symmetry.orbits[g].parent is None or symmetry.orbits[g].parent in outer]
    for group in sorted(roots, key=count_equal, reverse=True):
        size, each = symmetry.orbits[group].size, count_equal(group)
        if size * each > len(orbits):
            continue
        tables = {g: place[: size * each].reshape(size, each) for g, place in places.items()}
        kinds = orbits[: size * each].reshape(size, each)
        in_order = (tables.pop(group) == np.arange(size)[:, None]).all()
        if in_order and all((table == table[0]).all() for table in (kinds, *tables.values())):
            inner = _read_sum({g: table[0] for g, table in tables.items()}, kinds[0], outer | {group}, symmetry)
            return LabelledSegment(group, size * each, inner)
    raise InexpressibleError(set(roots) or acting)


def write_axis(axis: LabelledAxis, names: Mapping[GroupKey, str]) -> str:
    """Write segments in the notation. `names` gives the text of each group, such as "qk[heads]"."""
    return "." if len(axis) == 1 and axis[0].group is None else _write_sum(axis, names)


def _write_sum(axis: LabelledAxis, names: Mapping[GroupKey, str]) -> str:
    """Write segments laid end to end; many equal ones in a row are a product."""
    parts: list[str] = []
    for segment, run in groupby(axis):
        if segment.group is None:
            text = str(segment.size)
        elif segment.inner == (LabelledSegment(None, 1),):
            text = names[segment.group]
        else:
            inner = _write_sum(segment.inner, names)
            inner = _without_brackets(inner) if len(segment.inner) == 1 else f"({inner})"
            text = f"({names[segment.group]} {inner})"
        count = len(list(run))
        parts += [text] * count if count <= _WRITE_OUT else [f"({count} {_without_brackets(text)})"]
    return "+".join(parts)


def _without_brackets(text: str) -> str:
    return text[1:-1] if text.startswith("(") else text


def groups_on(axis: LabelledAxis) -> list[GroupKey]:
    """Return the groups that act on an axis, outer ones first."""
    groups: list[GroupKey] = []
    for segment in axis:
        if segment.group is not None:
            groups += [segment.group, *groups_on(segment.inner)]
    return list(dict.fromkeys(groups))
