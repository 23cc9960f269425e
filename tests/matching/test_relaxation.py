"""The relaxed objective against plain sums."""

from __future__ import annotations

import pytest
import torch

from alignkit import Alignment, SoftAlignment
from alignkit.graph import Pair
from alignkit.matching import Objective
from alignkit.matching.relaxation import Relaxation, best_step
from alignkit.solvers.frank_wolfe import random_point
from helpers.small_pairs import SPECS, pair_of

COUPLED = {"grouped convolution"}


def random_soft(pair: Pair, seed: int) -> SoftAlignment:
    return random_point(pair.graph, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", SPECS)
def test_the_relaxed_value_is_the_inner_product_with_softly_moved_weights(name: str) -> None:
    pair = pair_of(name)
    relaxation = Relaxation(pair, dtype=torch.float64)
    soft = random_soft(pair, 1)
    found = relaxation.gradient(relaxation.point(soft)).value + Objective(pair).fixed_value
    assert found == pytest.approx(Objective(pair).value(soft), rel=1e-9)


@pytest.mark.parametrize("name", SPECS)
def test_the_objective_along_a_line_is_the_polynomial(name: str) -> None:
    pair = pair_of(name)
    relaxation = Relaxation(pair, dtype=torch.float64)
    start = relaxation.point(random_soft(pair, 2))
    elements = dict(Alignment.random(pair.graph, 3).elements)
    corner = relaxation.corner(elements)
    line = relaxation.along(start, corner, elements, relaxation.gradient(start))
    for step in (0.0, 0.2, 0.5, 0.9, 1.0):
        expected = relaxation.gradient(relaxation.between(start, corner, step)).value
        assert float(line(step)) == pytest.approx(expected, abs=1e-2 if name in COUPLED else 1e-9)


@pytest.mark.parametrize("name", SPECS)
def test_derivatives_by_masses_are_the_slope_along_every_line(name: str) -> None:
    pair = pair_of(name)
    relaxation = Relaxation(pair, dtype=torch.float64)
    start = relaxation.point(random_soft(pair, 2))
    gradient = relaxation.gradient(start)
    for seed in range(4):
        corner = relaxation.corner(Alignment.random(pair.graph, seed).elements)
        slope = sum(float((g * (corner[n] - start.masses[n])).sum()) for n, g in gradient.groups.items())
        tiny = relaxation.gradient(relaxation.between(start, corner, 1e-6)).value
        assert (tiny - gradient.value) / 1e-6 == pytest.approx(slope, abs=1e-3)


def test_best_step_is_the_largest_value_on_the_line() -> None:
    from numpy.polynomial import Polynomial

    assert best_step(Polynomial([0.0, 1.0, 2.0])) == 1.0
    assert best_step(Polynomial([0.0, 1.0, -1.0])) == pytest.approx(0.5)
    assert best_step(Polynomial([0.0, -1.0, 0.5])) == 0.0
