"""From constraints to layouts.

Solve, read off, and give up what the notation cannot say, until all of it is faithful.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from alignkit.errors import TraceError
from alignkit.tracing.labels.constraints import Constraints
from alignkit.tracing.labels.labels import IntArray, Labels
from alignkit.tracing.reading.layouts import InexpressibleError, LabelledAxis, VaryingRowsError, read_axes
from alignkit.tracing.solving.check import broken_groups
from alignkit.tracing.solving.closure import Closed, close, seeded
from alignkit.tracing.solving.orbits import Symmetry, solve

_ROUNDS = 200


@dataclass(eq=False)
class TracedLayouts:
    """What was read off.

    Attributes:
        axes: Segments of each axis of each tensor.
        symmetry: The groups.
        closed: Classes of atoms and their relations.
        given_up: Classes told apart because the notation cannot express how they move.
        varying: Tensors whose axes depend on each other in a way that has no notation; label them without contexts
            and read again.
    """

    axes: dict[str, tuple[LabelledAxis, ...]]
    symmetry: Symmetry
    closed: Closed
    given_up: list[IntArray] = field(default_factory=list)
    varying: tuple[str, ...] = ()


def read(c: Constraints, tensors: Mapping[str, Labels]) -> TracedLayouts:
    """Solve the constraints and return the layouts of labelled tensors.

    Args:
        c: What the run demands.
        tensors: First labels of the parameters.

    Raises:
        TraceError: The reading does not settle, which is a defect of the tracer.
    """
    closed = close(c)
    extra = np.zeros(closed.count, np.uint64)
    given_up: list[IntArray] = []
    for number in range(_ROUNDS):
        symmetry = solve(closed, extra)
        reading = TracedLayouts({}, symmetry, closed, given_up)
        rejected = list(symmetry.undecided)
        if not rejected:
            groups = _read_tensors(reading, tensors)
            if reading.varying:
                return reading
            groups = groups or broken_groups(closed, symmetry)
            rejected = [(symmetry.orbits[g].members, symmetry.orbits[g].place) for g in sorted(groups)]
        if not rejected:
            return reading
        for members, keys in rejected:
            extra[members] += seeded(100 + number, keys)
            given_up.append(members)
    raise TraceError(
        "the labels of this model do not settle into groups. Please report the model; a written spec still works."
    )


def _read_tensors(reading: TracedLayouts, tensors: Mapping[str, Labels]) -> set[int]:
    """Fill in the axes; return groups that have no faithful notation."""
    rejected: set[int] = set()
    varying = []
    for name, layout in tensors.items():
        try:
            reading.axes[name] = read_axes(layout, reading.closed.classes, reading.symmetry)
        except InexpressibleError as error:
            rejected |= error.groups
        except VaryingRowsError:
            varying.append(name)
    reading.varying = tuple(varying)
    return rejected
