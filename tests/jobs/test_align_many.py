"""Many models: planted orders, cycle consistency, monotone sweeps, and messages."""

from __future__ import annotations

from itertools import combinations, product
from typing import get_args

import pytest
import torch
from torch import nn

from alignkit import Alignment, SymmetryGraph
from alignkit.errors import AlignmentError, BindError, SolverError
from alignkit.jobs.align_many import Method, align_many
from alignkit.jobs.spread import cycle_error, direct_pairs, fitted_models, spread
from alignkit.testing.problems import ARCHITECTURES, ProblemArchitecture, independent_pair, mlp, planted_pair
from helpers.small_pairs import every_alignment

METHODS = get_args(Method)


def unrelated(architecture: ProblemArchitecture, count: int) -> tuple[SymmetryGraph, list[nn.Module]]:
    pairs = [independent_pair(architecture, seed=seed) for seed in range(count)]
    return architecture.graph(), [pair.a for pair in pairs]


def copies(architecture: ProblemArchitecture, count: int, noise: float) -> tuple[SymmetryGraph, list[nn.Module]]:
    """Networks that are one network, reordered and with noise; `planted_pair` with one seed keeps A."""
    pair = planted_pair(architecture, seed=3)
    models = [pair.a]
    for seed in range(1, count):
        moved = Alignment.random(pair.graph, seed).apply(pair.a)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for tensor in moved.parameters():
                tensor += noise * tensor.std(unbiased=False) * torch.randn(tensor.shape, generator=generator)
        models.append(moved)
    return pair.graph, models


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("build", ARCHITECTURES.values(), ids=ARCHITECTURES)
def test_planted_orders_are_recovered(build, method) -> None:
    graph, models = copies(build(), 4, 0.1)
    many_alignment = align_many(graph, *models, method=method, reference=1)
    for i in range(4):
        planted = Alignment.identity(graph) if i == 0 else Alignment.random(graph, i).inverse()
        start = Alignment.random(graph, 1)
        assert many_alignment.alignments[i] == start @ planted
    assert many_alignment.cycle_error == 0
    assert many_alignment.spread_after < 0.1 * many_alignment.spread_before


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("build", ARCHITECTURES.values(), ids=ARCHITECTURES)
def test_compositions_close_every_circle_and_keep_the_function(build, method) -> None:
    architecture = build()
    graph, models = unrelated(architecture, 4)
    many_alignment = align_many(graph, *models, method=method, reference=2)
    assert many_alignment.alignments[2].is_identity
    for i, j, k in product(range(4), repeat=3):
        assert many_alignment.pairwise(i, j) @ many_alignment.pairwise(j, k) == many_alignment.pairwise(i, k)
    inputs = architecture.inputs()
    for before, after in zip(models, many_alignment.apply(models), strict=True):
        assert torch.allclose(before(inputs), after(inputs), atol=1e-4)


def test_direct_pairs_do_not_close_circles() -> None:
    graph, models = unrelated(mlp(4, 12, 12, 3), 4)
    direct = direct_pairs(graph, models)
    assert direct.cycle_error > 0.1
    assert direct.spread <= align_many(graph, *models, method="universe").spread_after


def test_cycle_error_counts_the_units_that_do_not_come_back() -> None:
    graph = SymmetryGraph.from_spec({"w": "h ."}, {"w": (4, 1)})
    identity = Alignment.identity(graph)
    swap = Alignment(graph, {"h": torch.tensor([1, 0, 2, 3])})
    assert cycle_error({(0, 1): identity}) == 0
    assert cycle_error({(0, 1): identity, (1, 2): identity, (0, 2): swap}) == 0.5
    assert cycle_error({(0, 1): identity, (1, 2): swap, (0, 2): swap}) == 0


@pytest.mark.slow
@pytest.mark.parametrize("method", ["merge_many", "universe"])
def test_it_comes_close_to_the_best_of_all_elements(method) -> None:
    graph, models = unrelated(mlp(2, 3, 3, 1), 3)
    weights = fitted_models(graph, models)
    elements = list(every_alignment(graph))
    best = min(spread(weights, (elements[0], g, h)) for g, h in product(elements, repeat=2))
    many_alignment = align_many(graph, *models, method=method)
    assert best - 1e-9 <= many_alignment.spread_after <= 1.1 * best
    assert many_alignment.spread_after < many_alignment.spread_before


def test_the_spread_is_the_mean_squared_distance_of_pairs() -> None:
    graph, models = unrelated(ARCHITECTURES["attention"](), 3)
    many_alignment = align_many(graph, *models)
    moved = [model.state_dict() for model in many_alignment.apply(models)]
    squares = [sum(float((x[n] - y[n]).double().square().sum()) for n in x) for x, y in combinations(moved, 2)]
    assert many_alignment.spread_after == pytest.approx(sum(squares) / 3, rel=1e-5)


@pytest.mark.parametrize("method", ["merge_many", "universe"])
def test_sweeps_never_raise_the_spread(method) -> None:
    graph, models = unrelated(mlp(4, 12, 12, 3), 5)
    reference = align_many(graph, *models, method="reference")
    many_alignment = align_many(graph, *models, method=method)
    values = [step.objective for step in many_alignment.history]
    assert values == sorted(values, reverse=True)
    assert many_alignment.spread_after <= values[-1] * (1 + 1e-9)
    assert many_alignment.spread_after < reference.spread_after


@pytest.mark.parametrize("method", ["merge_many", "universe"])
def test_a_warm_start_is_never_made_worse(method) -> None:
    graph, models = unrelated(mlp(4, 12, 12, 3), 4)
    weights = fitted_models(graph, models)
    for seed in range(3):
        init = [Alignment.random(graph, 10 * seed + i) for i in range(4)]
        assert align_many(graph, *models, method=method, init=init).spread_after <= spread(weights, init)
    best = align_many(graph, *models, method="universe")
    assert align_many(graph, *models, method=method, init=best).spread_after <= best.spread_after * (1 + 1e-12)


def test_to_a_reference_is_what_solving_each_pair_gives() -> None:
    graph, models = unrelated(mlp(4, 12, 12, 3), 3)
    many_alignment = align_many(graph, *models, method="reference", solver="frank_wolfe", reference=0)
    direct = direct_pairs(graph, models, solver="frank_wolfe")
    assert many_alignment.alignments[1:] == (direct.alignments[0, 1], direct.alignments[0, 2])


def test_the_universe_does_not_depend_on_the_order_of_the_models() -> None:
    graph, models = unrelated(mlp(4, 12, 12, 3), 4)
    order = [2, 0, 3, 1]
    plain = align_many(graph, *models, method="universe")
    shuffled = align_many(graph, *[models[i] for i in order], method="universe")
    for i, j in product(range(4), repeat=2):
        assert shuffled.pairwise(i, j) == plain.pairwise(order[i], order[j])
    assert shuffled.spread_after == pytest.approx(plain.spread_after, rel=1e-9)


def test_one_seed_gives_one_result() -> None:
    graph, models = unrelated(mlp(4, 12, 12, 3), 4)
    first, second = (align_many(graph, *models, seed=5) for _ in range(2))
    assert first.alignments == second.alignments


def test_two_models_are_solved_as_a_pair() -> None:
    pair = planted_pair(mlp(4, 8, 7, 3), seed=1, noise=0.1)
    for method in METHODS:
        assert align_many(pair.graph, pair.a, pair.b, method=method).pairwise(0, 1) == pair.answer


def test_a_graph_without_groups_is_left_alone() -> None:
    graph, models = unrelated(mlp(3, 2), 3)
    for method in METHODS:
        many_alignment = align_many(graph, *models, method=method)
        assert many_alignment.spread_after == many_alignment.spread_before


def test_wrong_calls_say_what_is_wrong() -> None:
    graph, models = unrelated(mlp(4, 8, 7, 3), 3)
    with pytest.raises(BindError, match="at least two networks"):
        align_many(graph, *models[:1])
    with pytest.raises(BindError, match="bound to its networks already"):
        align_many(graph.bind(*models[:2]), models[2])
    with pytest.raises(SolverError, match="reference=3 is not a model"):
        align_many(graph, *models, reference=3)
    with pytest.raises(AlignmentError, match="2 alignments for 3 models"):
        align_many(graph, *models, init=[Alignment.identity(graph)] * 2)
    narrow = unrelated(mlp(4, 6, 7, 3), 1)[1]
    with pytest.raises(BindError, match=r"'0.weight' has shape \(6, 4\) in model 1, the graph says \(8, 4\)"):
        align_many(graph, models[0], narrow[0])
    broken = {name: tensor.clone() for name, tensor in models[1].state_dict().items()}
    broken["2.bias"][0] = float("nan")
    with pytest.raises(BindError, match=r"'2.bias' of model 2 holds NaN"):
        align_many(graph, models[0], models[1], broken)
    with pytest.raises(BindError, match=r"float32 in model 0 but int64 in model 1"):
        align_many(graph, models[0].state_dict(), {n: t.long() for n, t in models[1].state_dict().items()})
    with pytest.raises(AlignmentError, match="3 models were aligned, but 2 were given"):
        align_many(graph, *models).apply(models[:2])
