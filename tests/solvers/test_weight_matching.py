"""Weight matching: planted permutations, monotone histories, restarts, starts."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from alignkit import Alignment, Status, SymmetryGraph, solve
from alignkit.errors import SolverError
from alignkit.graph import Pair


def residual_net(seed: int) -> tuple[SymmetryGraph, dict[str, Tensor]]:
    """Two residual blocks of hidden size 50 on a stream of 30 units, without an input layer that tells them apart."""
    generator = torch.Generator().manual_seed(seed)
    spec: dict[str, str] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    for block in "12":
        spec |= {f"{block}.fc1.weight": f"h{block} s", f"{block}.fc1.bias": f"h{block}"}
        spec |= {f"{block}.fc2.weight": f"s h{block}", f"{block}.fc2.bias": "s"}
        shapes |= {f"{block}.fc1.weight": (50, 30), f"{block}.fc1.bias": (50,)}
        shapes |= {f"{block}.fc2.weight": (30, 50), f"{block}.fc2.bias": (30,)}
    spec |= {"out.weight": ". s", "out.bias": "."}
    shapes |= {"out.weight": (10, 30), "out.bias": (10,)}
    weights = {name: torch.randn(shape, generator=generator) / shape[-1] ** 0.5 for name, shape in shapes.items()}
    return SymmetryGraph.from_spec(spec, weights), weights


def noisy_pair(seed: int, noise: float) -> Pair:
    graph, a = residual_net(seed)
    generator = torch.Generator().manual_seed(1000 + seed)
    b = {n: t + noise * t.std() * torch.randn(t.shape, generator=generator) for n, t in a.items()}
    return graph.bind(a, Alignment.random(graph, seed).apply(b))


@pytest.mark.parametrize("seed", range(20))
def test_planted_permutations_of_a_residual_net_are_found_without_restarts(seed: int) -> None:
    graph, a = residual_net(seed)
    planted = Alignment.random(graph, seed)
    solution = solve(graph, a, planted.apply(a), solver="weight_matching")
    assert solution.alignment == planted.inverse()
    assert solution.objective_after == 0.0


@pytest.mark.parametrize("seed", range(5))
def test_restarts_never_end_worse_and_histories_fall(seed: int) -> None:
    pair = noisy_pair(seed, 1.0)
    once = solve(pair, solver="weight_matching")
    often = solve(pair, solver="weight_matching", restarts=15)
    assert often.objective_after <= once.objective_after
    for solution in (once, often):
        objectives = [step.objective for step in solution.history]
        assert objectives == sorted(objectives, reverse=True)
        assert objectives[-1] == pytest.approx(solution.objective_after, rel=1e-9)


def test_restarts_improve_hard_problems() -> None:
    pairs = [noisy_pair(seed, 1.5) for seed in range(6)]
    once = sum(solve(pair, solver="weight_matching").objective_after for pair in pairs)
    often = sum(solve(pair, solver="weight_matching", restarts=20).objective_after for pair in pairs)
    assert often < once


@pytest.mark.parametrize("start", ["centre", "identity", "random"])
@pytest.mark.parametrize("seed", range(3))
def test_every_start_ends_in_a_place_that_one_more_run_does_not_improve(start: str, seed: int) -> None:
    pair = noisy_pair(seed, 0.8)
    first = solve(pair, solver="weight_matching", start=start)
    again = solve(pair, solver="weight_matching", init=first)
    assert again.objective_after == pytest.approx(first.objective_after, rel=1e-9)


@pytest.mark.parametrize("seed", range(10))
def test_aligned_networks_are_never_moved_to_a_worse_place(seed: int) -> None:
    graph, a = residual_net(seed)
    generator = torch.Generator().manual_seed(seed)
    b = {n: t + 2.0 * t.std() * torch.randn(t.shape, generator=generator) for n, t in a.items()}
    solution = solve(graph, a, b, solver="weight_matching")
    assert solution.objective_after <= solution.objective_before


@pytest.mark.parametrize("seed", range(3))
def test_products_in_float32_find_planted_orders_and_stay_monotone(seed: int) -> None:
    graph, a = residual_net(seed)
    planted = Alignment.random(graph, seed)
    assert solve(graph, a, planted.apply(a), products="float32").alignment == planted.inverse()
    pair = noisy_pair(seed, 1.0)
    narrow, wide = solve(pair, products="float32"), solve(pair)
    objectives = [step.objective for step in narrow.history]
    assert objectives == sorted(objectives, reverse=True)
    assert narrow.objective_after == pytest.approx(wide.objective_after, rel=0.02)


@pytest.mark.parametrize("noise", [0.0, 1e-3])
@pytest.mark.parametrize(("width", "depth"), [(3, 2), (6, 3), (8, 5)])
def test_copies_of_chains_of_rotations_are_found(width: int, depth: int, noise: float) -> None:
    """Each space of a chain is rotated by itself, and only its two ends stay: most starts end in another optimum."""
    generator = torch.Generator().manual_seed(width)
    sizes = [2, *[width] * (depth + 1), 2]
    names = [f"layer{at}" for at in range(len(sizes) - 1)]
    a = {
        name: torch.randn(sizes[at + 1], sizes[at], generator=generator, dtype=torch.float64)
        for at, name in enumerate(names)
    }
    marks = [".", *(f"~s{at}" for at in range(depth + 1)), "."]
    graph = SymmetryGraph.from_spec({name: f"{marks[at + 1]} {marks[at]}" for at, name in enumerate(names)}, a)
    planted = Alignment.random(graph, 1)
    b = planted.apply({n: t + noise * torch.randn(t.shape, generator=generator).double() for n, t in a.items()})
    pair = graph.bind(a, b)
    solution = solve(pair, solver="weight_matching")
    truth = solve(pair, solver="weight_matching", init=planted.inverse())
    size = sum(float(tensor.square().sum()) for tensor in a.values())
    assert solution.objective_after <= 1.001 * truth.objective_after + 1e-12 * size
    assert solution.history[-1].objective == pytest.approx(solution.objective_after, rel=1e-6, abs=1e-12 * size)


def test_too_few_steps_are_told() -> None:
    solution = solve(noisy_pair(0, 1.0), solver="weight_matching", max_steps=1)
    assert solution.status is Status.MAX_STEPS


def test_options_out_of_range_are_refused() -> None:
    with pytest.raises(SolverError, match="shuffle"):
        solve(noisy_pair(0, 1.0), solver="weight_matching", shuffle=0.0)
