"""From constraints to layouts: solve, read off, and give up what the notation cannot say, until all is faithful."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from alignkit.errors import TraceError
from alignkit.tracing.labels.constraints import Constraints
from alignkit.tracing.labels.tensor_labels import IntArray, Labels
from alignkit.tracing.reading.axes import InexpressibleError, LabelledAxis, VaryingRowsError, read_axes
from alignkit.tracing.solving.closure import Closed, close, seeded_hash
from alignkit.tracing.solving.orbits import Symmetry, broken_groups, solve

_MAX_ROUNDS = 200
"""Maximum number of solutions that are read and rejected. Each tells classes apart, so that rounds end by themselves;
traced models took a few. More are a defect, which should be an error instead of a long wait."""
_ROUND_SEED = 100
"""Seed of the hashes that tell classes apart in the first round."""


@dataclass(eq=False)
class TracedLayouts:
    """The layouts of a traced model: the segments of each axis of each tensor, on which the groups of `symmetry` act.

    Classes in `given_up` were told apart because the notation cannot express how they move. Tensors in `varying` have
    axes that depend on each other in a way that has no notation; label them without contexts and read again.
    """

    axes: dict[str, tuple[LabelledAxis, ...]]
    symmetry: Symmetry
    closed: Closed
    given_up: list[IntArray] = field(default_factory=list)
    varying: tuple[str, ...] = ()


def read_layouts(c: Constraints, tensors: Mapping[str, Labels]) -> TracedLayouts:
    """Solve the constraints and return the layouts of parameters with these first labels.

    Raises:
        TraceError: The reading does not settle, which is a defect of the tracer.
    """
    closed = close(c)
    extra = np.zeros(closed.count, np.uint64)
    given_up: list[IntArray] = []
    for number in range(_MAX_ROUNDS):
        symmetry = solve(closed, extra)
        traced = TracedLayouts({}, symmetry, closed, given_up)
        rejected = list(symmetry.undecided)
        if not rejected:
            groups: set[int] = set()
            varying = []
            for name, labels in tensors.items():
                try:
                    traced.axes[name] = read_axes(labels, closed.classes, symmetry)
                except InexpressibleError as error:
                    groups |= error.args[0]
                except VaryingRowsError:
                    varying.append(name)
            if varying:
                traced.varying = tuple(varying)
                return traced
            groups = groups or broken_groups(closed, symmetry)
            rejected = [(symmetry.orbits[g].members, symmetry.orbits[g].place) for g in sorted(groups)]
        if not rejected:
            return traced
        for members, keys in rejected:
            extra[members] += seeded_hash(_ROUND_SEED + number, keys)
            given_up.append(members)
    raise TraceError(
        "the labels of this model do not settle into groups. Please report the model; a written spec still works."
    )
