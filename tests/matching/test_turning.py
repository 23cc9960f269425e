"""Rotations that follow gradients: they stay in their group, go down, and know no axes."""

from __future__ import annotations

import pytest
import torch

from alignkit.graph.elements.rotations import planes_of, random_rotation, why_no_rotation
from alignkit.graph.kinds import KINDS, PLANES
from alignkit.matching.turning import Turning, generator

rotating = pytest.mark.parametrize("kind", [kind for kind, facts in KINDS.items() if facts.rotates])


def draw(kind, seed, *batch, size=6):
    return random_rotation(kind, batch, size, torch.Generator().manual_seed(seed))


def descend(kind, start, wanted, steps=120):
    """Turn towards a matrix; return the rotations of all steps and the squared distances."""
    turning, path, losses = Turning(kind, start), [], []
    for step in range(steps):
        loss = (turning.matrix - wanted).square().sum()
        loss.backward()
        path.append(turning.matrix.detach())
        losses.append(float(loss.detach()))
        turning.step(0.1 * (1 - step / steps))
    return path, losses


@rotating
@pytest.mark.parametrize("batch", [(), (3,), (2, 2)])
def test_steps_stay_in_the_group_and_end_at_the_rotation_that_is_wanted(kind, batch):
    start, turn = draw(kind, 1, *batch), generator(kind, torch.randn(*batch, 6, 6, dtype=torch.float64))
    near = torch.linalg.matrix_exp(0.3 * turn) @ start
    path, losses = descend(kind, start, near)
    assert all(why_no_rotation(kind, matrix) == "" for matrix in path)
    assert losses[-1] < 1e-2 * losses[0]


@rotating
def test_a_generator_is_the_slope_along_the_group(kind):
    matrix, gradient = draw(kind, 2), torch.randn(6, 6, dtype=torch.float64)
    slope, along = (generator(kind, each) for each in (gradient @ matrix.mT, torch.randn(6, 6, dtype=torch.float64)))
    ahead, behind = ((torch.linalg.matrix_exp(h * along) @ matrix * gradient).sum() for h in (1e-5, -1e-5))
    assert float((slope * along).sum()) == pytest.approx(float(ahead - behind) / 2e-5, rel=1e-6)
    torch.testing.assert_close(generator(kind, slope), slope)


@rotating
def test_what_is_done_does_not_depend_on_axes_nor_on_which_side_is_turned(kind):
    start, wanted, left, right = (draw(kind, seed) for seed in range(4))
    path, _ = descend(kind, start, wanted, 20)
    elsewhere, _ = descend(kind, left @ start @ right, left @ wanted @ right, 20)
    torch.testing.assert_close(elsewhere[-1], left @ path[-1] @ right)
    inverse, _ = descend(kind, start.mT, wanted.mT, 20)
    torch.testing.assert_close(inverse[-1], path[-1].mT)


def test_planes_turn_in_their_planes_alone():
    for kind in PLANES:
        slope = generator(kind, torch.randn(6, 6))
        first, second = planes_of(kind, 6)
        assert slope[first, second].all()
        slope[first, second] = slope[second, first] = 0
        assert not slope.any()


def test_what_has_no_gradient_stays():
    start = draw("orthogonal", 0)
    turning = Turning("orthogonal", start)
    turning.step(0.1)
    (0 * turning.matrix).sum().backward()
    turning.step(0.1)
    torch.testing.assert_close(turning.matrix.detach(), start, rtol=0, atol=0)


@rotating
def test_planes_of_small_gradients_turn_as_far_as_others(kind):
    """The loss weighs units by factors from 1 to 0.01, as inputs of very different sizes do."""
    start, weights = draw(kind, 1, size=24), torch.logspace(0, -2, 12, dtype=torch.float64)
    weights = weights.repeat_interleave(2) if kind == "adjacent_planes" else weights.repeat(2)
    turn = generator(kind, torch.randn(24, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(2)))
    wanted = torch.linalg.matrix_exp(0.15 * turn) @ start
    turning = Turning(kind, start)
    for step in range(100):
        ((turning.matrix - wanted) * weights[:, None]).square().sum().backward()
        turning.step(0.1 * (1 - step / 100))
    assert float((turning.matrix.detach() - wanted).norm()) < 0.5 * float((start - wanted).norm())
