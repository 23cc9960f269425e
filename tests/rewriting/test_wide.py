"""Weights in float64: read and written at the positions of an axis, and nowhere else."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from alignkit.graph import AxisOf
from alignkit.rewriting import WideWeights


@st.composite
def places(draw: st.DrawFn) -> tuple[tuple[int, ...], AxisOf]:
    """A shape, and some positions of one of its axes."""
    shape = draw(st.lists(st.integers(1, 4), min_size=1, max_size=4))
    axis = draw(st.integers(0, len(shape) - 1))
    period = draw(st.integers(1, 6))
    shape[axis] = period * draw(st.integers(1, 3))
    start = draw(st.integers(0, period - 1))
    length = draw(st.none() | st.integers(1, period - start))
    every = period if shape[axis] > period else draw(st.sampled_from([None, period]))
    return tuple(shape), AxisOf("w", axis, start, length, every)


@given(places())
def test_only_the_positions_of_a_place_are_written(case: tuple[tuple[int, ...], AxisOf]) -> None:
    shape, place = case
    given_weights = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    before = given_weights.clone()
    weights = WideWeights({"w": given_weights})
    period = place.every or shape[place.axis]
    end = period if place.length is None else place.start + place.length
    chosen = [position for position in range(shape[place.axis]) if place.start <= position % period < end]
    expected = before.double().movedim(place.axis, -1).clone()
    torch.testing.assert_close(weights.take(place), expected[..., chosen], rtol=0, atol=0)
    expected[..., chosen] *= 2
    weights.put(place, 2 * weights.take(place))
    assert torch.equal(weights["w"].movedim(place.axis, -1), expected)
    assert torch.equal(weights.rounded()["w"], expected.movedim(-1, place.axis).float())
    assert torch.equal(given_weights, before), "the network that was given stays"
