"""The canonical order of units, which does not depend on how they are stored."""

from __future__ import annotations

import pytest
import torch

from alignkit import Alignment
from alignkit.matching import Objective
from alignkit.matching.canonical_order import Frame, canonical_order
from alignkit.testing.problems import ARCHITECTURES, independent_pair


@pytest.mark.parametrize("build", ARCHITECTURES.values(), ids=ARCHITECTURES)
def test_the_canonical_order_undoes_every_reordering(build) -> None:
    pair = independent_pair(build())
    weights = dict(pair.bind().b)
    moved = Alignment.random(pair.graph, 2).apply(weights)
    one, other = (canonical_order(pair.graph, w).apply(w) for w in (weights, moved))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_frame_is_left_as_it_was_entered() -> None:
    pair = independent_pair(ARCHITECTURES["attention"]()).bind()
    alignment = Alignment.random(pair.graph, 9)
    for bound in (pair, pair.swapped()):
        frame = Frame.of(bound)
        assert frame.leave(frame.enter(alignment)) == alignment
        inside = Objective(frame.bound).distance2(frame.enter(alignment))
        assert inside == pytest.approx(Objective(bound).distance2(alignment), rel=1e-9)
