"""From constraints to layouts: solve, read off, and give up what the notation cannot say, until all is faithful."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

from alignkit.errors import TraceError
from alignkit.tracing.labels.constraints import Constraints
from alignkit.tracing.labels.tensor_labels import IntArray, Labels
from alignkit.tracing.reading.axes import InexpressibleError, LabelledAxis, VaryingRowsError, groups_on, read_axes
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
    axes that depend on each other in a way that has no notation; label them without contexts and read again. Tensors in
    `joint` were labelled without contexts because these would have too many labels.
    """

    axes: dict[str, tuple[LabelledAxis, ...]]
    symmetry: Symmetry
    closed: Closed
    given_up: list[IntArray] = field(default_factory=list)
    varying: tuple[str, ...] = ()
    joint: tuple[str, ...] = ()


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
            if varying or (varying := _clashing(traced)):
                traced.varying = tuple(varying)
                return traced
            groups = groups or broken_groups(closed, symmetry)
            if stacked := [name for name, axes in traced.axes.items() if not groups.isdisjoint(_stacked(axes))]:
                traced.varying = tuple(stacked)  # by themselves, their groups need not be given up
                return traced
            rejected = [(symmetry.orbits[g].members, symmetry.orbits[g].place) for g in sorted(groups)]
        if not rejected:
            return traced
        for members, keys in rejected:
            extra[members] += seeded_hash(_ROUND_SEED + number, keys)
            given_up.append(members)
    raise TraceError(
        "the labels of this model do not settle into groups. Please report the model; a written spec still works."
    )


def _clashing(traced: TracedLayouts) -> list[str]:
    """List tensors whose stacks have no notation: a group at two places, here or in a tensor before.

    So it is with layers in one tensor, each of which reads what another writes. Also, groups in a stack have their
    parents there, or none.
    """
    orbits = traced.symmetry.orbits
    stack_of: dict[int, tuple[int, ...]] = {}
    clashing = []
    for name, axes in traced.axes.items():
        stacked = {group for axis in axes for group in groups_on(axis) if isinstance(group, tuple)}
        parents = {tuple(orbits[group].parent for group in groups) for groups in stacked}
        fits = all(set(above) == {None} or above in stacked for above in parents)
        fits &= len({group for groups in stacked for group in groups}) == sum(map(len, stacked))
        fits &= all(stack_of.get(group, groups) == groups for groups in stacked for group in groups)
        if fits:
            stack_of |= {group: groups for groups in stacked for group in groups}
        else:
            clashing.append(name)
    return clashing


def _stacked(axes: Iterable[LabelledAxis]) -> set[int]:
    """Return the groups of a tensor that has a stack."""
    groups = [group for axis in axes for group in groups_on(axis)]
    if all(isinstance(group, int) for group in groups):
        return set()
    return {number for group in groups for number in ((group,) if isinstance(group, int) else group)}
