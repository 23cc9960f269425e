"""Reading the layout of an axis off its labels, in the notation of `SymmetryGraph.from_spec`.

The notation is stricter than what labels can say: units stand in one order everywhere, and axes are sums of row-major
products. An axis that does not fit raises `InexpressibleError` with the groups to give up; nothing is ever written
that is not so.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from alignkit.tracing.labels.labels import IntArray, LabelBlock, Labels
from alignkit.tracing.solving.orbits import Symmetry

_WRITE_OUT = 4
"""Equal segments are written out up to this number ("h+h+h+h"), and as a product from there on ("(49 c)")."""


class InexpressibleError(Exception):
    """An axis has no faithful notation unless `groups` stay where they are."""

    def __init__(self, groups: set[int]) -> None:
        super().__init__(groups)
        self.groups = groups


class VaryingRowsError(Exception):
    """The labels of an axis differ from row to row in a way that the notation cannot tell."""


@dataclass(frozen=True)
class LabelledSegment:
    """Part of an axis.

    Fixed positions (`group` is None), or a group of which each unit owns the positions of `inner`.
    """

    group: int | None
    size: int
    inner: tuple[LabelledSegment, ...] = ()


LabelledAxis = tuple[LabelledSegment, ...]


def read_axes(layout: Labels, classes: IntArray, symmetry: Symmetry) -> tuple[LabelledAxis, ...]:
    """Return each dimension's segments.

    Args:
        layout: Labels of a parameter: each dimension is owned alone, if at all.
        classes: Class of each atom.
        symmetry: The solved symmetry.

    Raises:
        InexpressibleError: Some groups have no faithful notation on one of the axes.
        VaryingRowsError: An axis depends on another one in a way that has no notation.
    """
    axes: list[LabelledAxis] = []
    for dim, size in enumerate(layout.shape):
        block = layout.owner.get(dim)
        if block is None:
            axes.append((LabelledSegment(None, size),))
            continue
        found = np.moveaxis(classes[block.atoms], block.span.index(dim), -1)
        rows = found.reshape(-1, size)
        consumed = _context_units(layout, block, classes, symmetry)
        places, orbits = _places(rows, consumed, symmetry)
        if any((table != table[0]).any() for table in (*places.values(), orbits)):
            raise VaryingRowsError
        known = frozenset(consumed) - frozenset(places)
        axes.append(_sum({g: t[0] for g, t in places.items()}, orbits[0], known, symmetry))
    return tuple(axes)


def _context_units(layout: Labels, block: LabelBlock, classes: IntArray, symmetry: Symmetry) -> dict[int, IntArray]:
    """Return, for each group that acts on the context of a block, the unit at each row."""
    shape = [layout.shape[d] for d in block.context]
    units: dict[int, IntArray] = {}
    for axis, dim in enumerate(block.context):
        owner = layout.owner.get(dim)
        if owner is None or owner.context:
            continue
        spread = [-1 if k == axis else 1 for k in range(len(shape))]
        for group, column in _units(classes[owner.atoms], symmetry).items():
            units[group] = np.broadcast_to(column.reshape(spread), shape).ravel()
    return units


def _units(classes: IntArray, symmetry: Symmetry) -> dict[int, IntArray]:
    """Return, for each group, the unit (a class) at each position, -1 where the group does not act."""
    orbits = symmetry.orbit_of[classes]
    units: dict[int, IntArray] = {}
    for key in np.unique(orbits[orbits >= 0]).tolist():
        here = orbits == key
        index = symmetry.index_of[classes[here]]
        for group, column in symmetry.orbits[key].coordinates.items():
            units.setdefault(group, np.full(classes.shape, -1, np.int64))[here] = column[index]
    return units


def _places(rows: IntArray, consumed: dict[int, IntArray], symmetry: Symmetry) -> tuple[dict[int, IntArray], IntArray]:
    """Return, for each group not settled by the context, the place of the unit at each position; and the orbits."""
    places: dict[int, IntArray] = {}
    for group, units in _units(rows, symmetry).items():
        if (
            group in consumed
            and (np.where(units >= 0, units, consumed[group][:, None]) == consumed[group][:, None]).all()
        ):
            continue
        orbit = symmetry.orbits[group]
        places[group] = np.where(units >= 0, orbit.place[symmetry.index_of[units.clip(min=0)]], -1)
    orbits = symmetry.orbit_of[rows]
    return places, orbits


def _sum(places: dict[int, IntArray], orbits: IntArray, known: frozenset[int], symmetry: Symmetry) -> LabelledAxis:
    """Read a run of positions as segments laid end to end."""
    segments: list[LabelledSegment] = []
    at, n = 0, len(orbits)
    while at < n:
        acting = {g for g, place in places.items() if place[at] >= 0 and g not in known}
        if not acting:
            free = np.ones(n - at, bool)
            for g, place in places.items():
                if g not in known:
                    free &= place[at:] < 0
            length = n - at if free.all() else int(np.argmin(free))
            segments.append(LabelledSegment(None, length))
        else:
            segment, length = _product(places, orbits, at, acting, known, symmetry)
            segments.append(segment)
        at += length
    return tuple(segments)


def _product(
    places: dict[int, IntArray], orbits: IntArray, at: int, acting: set[int], known: frozenset[int], symmetry: Symmetry
) -> tuple[LabelledSegment, int]:
    """Read the longest product that starts at a position: its outermost group is the one that changes most slowly."""

    def run(group: int) -> int:
        changed = places[group][at:] != places[group][at]
        return int(np.argmax(changed)) if changed.any() else len(changed)

    roots = [g for g in acting if symmetry.orbits[g].parent is None or symmetry.orbits[g].parent in known]
    for group in sorted(roots, key=run, reverse=True):
        size, each = symmetry.orbits[group].size, run(group)
        stop = at + size * each
        if stop > len(orbits):
            continue
        table = {g: place[at:stop].reshape(size, each) for g, place in places.items()}
        kinds = orbits[at:stop].reshape(size, each)
        if not (table[group] == np.arange(size)[:, None]).all() or not (kinds == kinds[0]).all():
            continue
        if any((t != t[0]).any() for g, t in table.items() if g != group):
            continue
        inner = _sum({g: t[0] for g, t in table.items() if g != group}, kinds[0], known | {group}, symmetry)
        return LabelledSegment(group, size * each, inner), size * each
    raise InexpressibleError(set(roots) or acting)


def write_axis(axis: LabelledAxis, names: Mapping[int, str]) -> str:
    """Write segments in the notation. `names` gives the text of each group, such as "qk[heads]"."""
    if len(axis) == 1 and axis[0].group is None:
        return "."
    return _write_sum(axis, names)


def _write_sum(axis: LabelledAxis, names: Mapping[int, str]) -> str:
    parts: list[str] = []
    at = 0
    while at < len(axis):
        count = next((k for k, other in enumerate(axis[at:]) if other != axis[at]), len(axis) - at)
        text = _write_segment(axis[at], names)
        parts += (
            [text] * count if count <= _WRITE_OUT else [f"({count} {text[1:-1] if text.startswith('(') else text})"]
        )
        at += count
    return "+".join(parts)


def _write_segment(segment: LabelledSegment, names: Mapping[int, str]) -> str:
    if segment.group is None:
        return str(segment.size)
    text = names[segment.group]
    if len(segment.inner) == 1:
        only = segment.inner[0]
        if only.group is None:
            return text if only.size == 1 else f"({text} {only.size})"
        inner = _write_segment(only, names)
        return f"({text} {inner[1:-1] if inner.startswith('(') else inner})"
    return f"({text} ({_write_sum(segment.inner, names)}))"


def groups_of(axis: LabelledAxis) -> list[int]:
    """Return the groups that act on an axis, outer ones first."""
    found: list[int] = []
    for segment in axis:
        if segment.group is not None:
            found += [segment.group, *groups_of(segment.inner)]
    return list(dict.fromkeys(found))
