"""Why axes are fixed: the op that pinned each, and where."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from alignkit.graph import PinnedAxis
from alignkit.tracing.labels.constraints import Cause, Constraints
from alignkit.tracing.labels.labels import IntArray, Labels
from alignkit.tracing.reading.layouts import LabelledAxis
from alignkit.tracing.reading.readoff import TracedLayouts

_NOTATION = Cause("no faithful notation")


def pinned_axes(c: Constraints, reading: TracedLayouts, tensors: Mapping[str, Labels]) -> tuple[PinnedAxis, ...]:
    """Return each axis with positions that cannot move, and what fixed them."""
    source = _sources(c, reading)
    pinned = []
    for name, layout in tensors.items():
        for dim, axis in enumerate(reading.axes[name]):
            block = layout.owner.get(dim)
            if block is None or not _has_fixed(axis):
                continue
            classes = reading.closed.classes[block.atoms].ravel()
            still = classes[reading.symmetry.orbit_of[classes] < 0]
            # Positions inside of a unit that moves, such as units inside of heads, are classes that move too.
            causes = source[still if len(still) else classes]
            causes = causes[causes >= 0]
            cause = _cause(c, causes)
            pinned.append(PinnedAxis(name, dim, cause.op, cause.where))
    return tuple(pinned)


def _cause(c: Constraints, causes: IntArray) -> Cause:
    """Return what fixed most of an axis."""
    if not len(causes):
        return _NOTATION
    values, counts = np.unique(causes, return_counts=True)
    first = int(values[np.argmax(counts)])
    return _NOTATION if first == len(c.sources) else c.sources[first]


def _has_fixed(axis: LabelledAxis) -> bool:
    """Return whether any position, or several positions inside of a unit, cannot move."""
    for segment in axis:
        if segment.group is None:
            return True
        if any(part.size > 1 or part.group is not None for part in segment.inner) and _has_fixed(segment.inner):
            return True
    return False


def _sources(c: Constraints, reading: TracedLayouts) -> IntArray:
    """Return for each class the number of the source that first fixed it or a relative of it, -1 if nothing did."""
    closed = reading.closed
    none = len(c.sources) + 1
    source = np.full(closed.count, none)
    for colour in c.colours:
        if colour.keys is not None:
            np.minimum.at(source, closed.classes[colour.atoms], colour.source)
    for members in reading.given_up:
        np.minimum.at(source, members, len(c.sources))
    relations = [*closed.maps, *closed.multiple, *closed.nested]
    if relations:
        child, target = (np.concatenate(side) for side in zip(*relations, strict=True))
        for _ in range(8):
            before = source.copy()
            unknown = before == none
            for a, b in ((child, target), (target, child)):
                here = unknown[a]
                np.minimum.at(source, a[here], before[b[here]])
            if np.array_equal(before, source):
                break
    source[source == none] = -1
    return source
