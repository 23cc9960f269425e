"""Groups that the constraints leave, where refinement alone does not tell."""

from __future__ import annotations

import numpy as np

from alignkit.tracing.solving.closure import Closed
from alignkit.tracing.solving.orbits import solve


def test_relations_that_contradict_each_other_are_settled_by_fixing() -> None:
    # Three classes on a circle: 3, 4, 5 name 0, 1, 2 and also the next one. Only rotations respect that, so that
    # the three are no group; what tells them apart has to differ, or solving again would change nothing.
    child = np.arange(3, 6)
    circle = [(child, np.array([0, 1, 2])), (child, np.array([1, 2, 0]))]
    closed = Closed(np.arange(6), 6, circle, [], [], np.array([0, 0, 0, 1, 1, 1], np.uint64))
    closed.first = np.arange(6)
    ((members, keys),) = solve(closed, np.zeros(6, np.uint64)).undecided
    assert members.tolist() == [3, 4, 5]
    assert len(set(keys.tolist())) == 3
