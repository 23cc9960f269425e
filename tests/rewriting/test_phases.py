"""Half periods on any weights: moved to the one place nearest to 0, whatever the order and the signs of units."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from alignkit import Alignment, SymmetryGraph
from alignkit.graph import AxisOf, Phase
from alignkit.graph.phases import biases_of, half_periods_of, move_by_half_periods, move_phases, phases_in
from alignkit.rewriting import WideWeights, balance_weights, bring_near, follow_balances

SPEC = {"up": "-h .", "bias": "-h", "shift": "-h", "down": ". -h", "frequency": "."}
SHAPES = {"up": (5, 3), "bias": (5,), "shift": (5,), "down": (2, 5), "frequency": (1,)}


def drawn(seed: int, frequency: float) -> tuple[SymmetryGraph, dict[str, Tensor]]:
    """Return units ``down @ sin(frequency * 2 (up x + bias) + shift)`` with biases of many half periods."""
    phases = [
        Phase("h", AxisOf("bias", 0), (AxisOf("down", 1),), 2.0, ("frequency",)),
        Phase("h", AxisOf("shift", 0), (AxisOf("down", 1),)),
    ]
    generator = torch.Generator().manual_seed(seed)
    weights = {name: torch.randn(shape, generator=generator).double() for name, shape in SHAPES.items()}
    weights["bias"] *= 4 / abs(frequency)
    weights["shift"] *= 8
    weights["frequency"].fill_(frequency)
    return SymmetryGraph.from_spec(SPEC, SHAPES, balances=phases), weights


def function_of(weights: dict[str, Tensor]) -> Tensor:
    x = torch.linspace(-1, 1, 12).double().view(3, 4)
    inside = weights["frequency"] * 2 * (weights["up"] @ x + weights["bias"][:, None]) + weights["shift"][:, None]
    return weights["down"] @ torch.sin(inside)


def brought(graph: SymmetryGraph, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    wide = WideWeights(weights)
    balance_weights(wide, graph)
    return wide.rounded()


SEEDS = st.integers(0, 2**31)
FREQUENCIES = st.one_of(st.floats(0.1, 40), st.floats(-40, -0.1))


@settings(max_examples=40)
@given(SEEDS, SEEDS, FREQUENCIES)
def test_copies_come_to_one_place_and_stay_there(seed: int, other: int, frequency: float) -> None:
    graph, weights = drawn(seed, frequency)
    moved = {name: tensor.clone() for name, tensor in weights.items()}
    move_phases(graph, phases_in(graph), moved, torch.Generator().manual_seed(other))
    torch.testing.assert_close(function_of(moved), function_of(weights), rtol=0, atol=1e-9)
    one, two = brought(graph, weights), brought(graph, moved)
    torch.testing.assert_close(function_of(one), function_of(weights), rtol=0, atol=1e-9)
    torch.testing.assert_close(two, one, rtol=0, atol=1e-9)
    torch.testing.assert_close(brought(graph, one), one, rtol=0, atol=0)
    for phase in graph.balances:
        assert isinstance(phase, Phase)
        assert bool((biases_of(graph, phase, one).abs() <= half_periods_of(graph, phase, one) / 2 + 1e-9).all())


@settings(max_examples=40)
@given(SEEDS, SEEDS, FREQUENCIES)
def test_orders_and_signs_change_nothing_about_it(seed: int, other: int, frequency: float) -> None:
    graph, weights = drawn(seed, frequency)
    symmetry = Alignment.random(graph, other)
    first, then = brought(graph, dict(symmetry.apply(weights))), symmetry.apply(brought(graph, weights))
    torch.testing.assert_close(first, dict(then), rtol=0, atol=1e-9)


@settings(max_examples=40)
@given(SEEDS, SEEDS, FREQUENCIES)
def test_networks_of_one_order_come_near_to_each_other(seed: int, other: int, frequency: float) -> None:
    """Any half periods and signs of units are undone, of weights that noise has moved across edges as well."""
    graph, weights = drawn(seed, frequency)
    generator = torch.Generator().manual_seed(other)
    noisy = {name: tensor + 1e-3 * torch.randn(tensor.shape, generator=generator) for name, tensor in weights.items()}
    noisy["frequency"] = weights["frequency"]
    noise = sum(float((noisy[name] - tensor).square().sum()) for name, tensor in weights.items())
    signs = 1 - 2 * torch.randint(2, (5,), generator=generator).double()
    flipped = {**noisy, "up": noisy["up"] * signs[:, None], "down": noisy["down"] * signs}
    flipped |= {name: noisy[name] * signs for name in ("bias", "shift")}
    move_phases(graph, phases_in(graph), flipped, generator)
    like = brought(graph, weights)
    wide = WideWeights(brought(graph, flipped))
    bring_near(wide, graph, like)
    near = wide.rounded()
    torch.testing.assert_close(function_of(near), function_of(noisy), rtol=0, atol=1e-9)
    assert sum(float((near[name] - like[name]).square().sum()) for name in near) < 1.01 * noise + 1e-12


@pytest.mark.parametrize("way", ["as it was trained", "folded", "moved by half periods"])
def test_a_fine_tune_ends_beside_its_base(way: str) -> None:
    graph, weights = drawn(0, 3.0)
    generator = torch.Generator().manual_seed(1)
    step = {name: 0.01 * torch.randn(tensor.shape, generator=generator) for name, tensor in weights.items()}
    step["frequency"] = torch.zeros(1)
    base, tuned = WideWeights(weights), {name: tensor + step[name] for name, tensor in weights.items()}
    spaces = balance_weights(base, graph)
    if way == "folded":
        tuned = brought(graph, tuned)
    if way == "moved by half periods":
        move_phases(graph, phases_in(graph), tuned, generator)
    wide = WideWeights(tuned)
    follow_balances(wide, graph, spaces)
    ended = wide.rounded()
    torch.testing.assert_close(function_of(ended), function_of(tuned), rtol=0, atol=1e-9)
    for name, tensor in base.rounded().items():
        torch.testing.assert_close((ended[name] - tensor).abs(), step[name].abs(), rtol=0, atol=1e-9, check_dtype=False)


def test_a_bias_that_does_not_reach_its_sine_stays() -> None:
    graph, weights = drawn(0, 1.0)
    weights["frequency"].zero_()
    phase = graph.balances[0]
    assert isinstance(phase, Phase)
    still = {name: tensor.clone() for name, tensor in weights.items()}
    periods = half_periods_of(graph, phase, weights)
    assert bool(periods.isinf().all())
    move_by_half_periods(graph, phase, weights, torch.ones(1, 5).double(), periods)
    torch.testing.assert_close(weights, still, rtol=0, atol=0)
    result = brought(graph, weights)
    assert all(bool(tensor.isfinite().all()) for tensor in result.values())
    assert math.isclose(float(result["bias"].sum()), float(weights["bias"].sum()))
