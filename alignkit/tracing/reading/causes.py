"""Why axes are fixed: the op that pinned each, and where."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from alignkit.graph import PinnedAxis
from alignkit.tracing.labels.constraints import Cause, Constraints
from alignkit.tracing.labels.tensor_labels import IntArray, Labels
from alignkit.tracing.reading.axes import LabelledAxis, LabelledSegment
from alignkit.tracing.reading.traced_layouts import TracedLayouts

_NOTATION = Cause("no faithful notation")
_MAX_DISTANCE = 8
"""Maximum number of relations between a class and the fixed relative that explains it. Each costs a pass over all
relations; an explanation from further away would not help a reader."""


def pinned_axes(c: Constraints, traced: TracedLayouts, tensors: Mapping[str, Labels]) -> tuple[PinnedAxis, ...]:
    """Return each axis with positions that cannot move, and what fixed most of them."""
    cause_of = _find_causes(c, traced)
    pinned = []
    for name, labels in tensors.items():
        for dim, axis in enumerate(traced.axes[name]):
            block = labels.owner.get(dim)
            if block is None or not _has_fixed(axis):
                continue
            classes = traced.closed.classes[block.atoms].ravel()
            still = classes[traced.symmetry.orbit_of[classes] < 0]
            # Positions inside of a unit that moves, such as units inside of heads, are classes that move too.
            numbers = cause_of[still if len(still) else classes]
            numbers, counts = np.unique(numbers[numbers >= 0], return_counts=True)
            number = int(numbers[np.argmax(counts)]) if len(numbers) else len(c.causes)
            cause = _NOTATION if number == len(c.causes) else c.causes[number]
            pinned.append(PinnedAxis(name, dim, cause.op, cause.where))
    return tuple(pinned)


def _has_fixed(axis: LabelledAxis) -> bool:
    """Return whether any position, or several positions inside of a unit, cannot move."""
    single = (LabelledSegment(None, 1),)
    return any(part.group is None or (part.inner != single and _has_fixed(part.inner)) for part in axis)


def _find_causes(c: Constraints, traced: TracedLayouts) -> IntArray:
    """Return for each class the number of the cause that first fixed it or a relative, -1 if nothing did.

    The number after the last cause stands for the notation.
    """
    closed = traced.closed
    unknown = len(c.causes) + 1
    cause_of = np.full(closed.count, unknown)
    for colour in c.colours:
        if colour.keys is not None:
            np.minimum.at(cause_of, closed.classes[colour.atoms], colour.cause)
    for members in traced.given_up:
        np.minimum.at(cause_of, members, len(c.causes))
    relations = [*closed.maps, *closed.multiple, *closed.nested]
    if relations:
        child, target = (np.concatenate(side) for side in zip(*relations, strict=True))
        for _ in range(_MAX_DISTANCE):
            before = cause_of.copy()
            for a, b in ((child, target), (target, child)):
                here = before[a] == unknown
                np.minimum.at(cause_of, a[here], before[b[here]])
            if np.array_equal(before, cause_of):
                break
    cause_of[cause_of == unknown] = -1
    return cause_of
