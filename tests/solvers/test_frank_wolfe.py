"""Frank-Wolfe: solutions against brute force and planted orders."""

from __future__ import annotations

import pytest

from alignkit import Alignment, solve
from alignkit.matching import Objective
from alignkit.solvers.frank_wolfe import FrankWolfe
from alignkit.testing.problems import ARCHITECTURES, independent_pair, mlp, planted_pair
from helpers.small_pairs import SPECS, every_alignment, pair_of


@pytest.mark.parametrize("name", SPECS)
def test_the_best_of_all_elements_is_found(name: str) -> None:
    for seed in range(3):
        pair = pair_of(name, seed)
        objective = Objective(pair)
        best = objective.squares - 2 * max(objective.value(g) for g in every_alignment(pair.graph))
        solution = solve(pair, solver="frank_wolfe", restarts=8, shuffle=1.0)
        assert solution.objective_after == pytest.approx(best, rel=1e-6)


@pytest.mark.parametrize("start", ["centre", "identity", "random"])
@pytest.mark.parametrize("build", ARCHITECTURES.values(), ids=ARCHITECTURES)
def test_planted_orders_are_recovered_through_noise(build, start: str) -> None:
    for noise in (0.0, 0.1, 0.2):
        pair = planted_pair(build(), seed=1, noise=noise)
        assert solve(pair.bind(), solver="frank_wolfe", start=start).alignment == pair.answer, noise


@pytest.mark.parametrize("noise", [0.2, 0.4])
def test_orders_are_recovered_that_only_the_hidden_layers_tell(noise: float) -> None:
    for seed in range(2):
        pair = planted_pair(mlp(2, 24, 24, 24, 2), seed=seed, noise=noise)
        assert solve(pair.bind(), solver=FrankWolfe(polish=False)).alignment == pair.answer


def test_it_finds_closer_networks_at_noise_where_the_planted_order_is_lost() -> None:
    better = 0
    for seed in range(3):
        pair = planted_pair(mlp(8, 24, 24, 24, 4), seed=seed, noise=1.6).bind()
        matched, found = (solve(pair, solver=solver).objective_after for solver in ("weight_matching", "frank_wolfe"))
        assert found <= matched * (1 + 1e-12)
        better += found < 0.9999 * matched
    assert better > 0


@pytest.mark.parametrize("options", [{}, {"polish": False}, {"concavity": 0}, {"max_steps": 1}])
def test_it_never_ends_worse_than_a_warm_start(options: dict) -> None:
    for seed in range(3):
        pair = independent_pair(mlp(4, 8, 7, 3), seed=seed).bind()
        for init in (Alignment.random(pair.graph, seed), solve(pair, restarts=20).alignment):
            solution = solve(pair, solver=FrankWolfe(**options), init=init)
            assert solution.objective_after <= solution.objective_init * (1 + 1e-12)


def test_weight_matching_never_beats_it() -> None:
    for seed in range(3):
        pair = independent_pair(mlp(5, 20, 20, 20, 3), seed=seed).bind()
        assert solve(pair, solver="frank_wolfe").objective_after <= solve(pair).objective_after * (1 + 1e-12)


def test_plain_frank_wolfe_beats_the_identity() -> None:
    pair = independent_pair(mlp(5, 20, 20, 20, 3)).bind()
    plain = FrankWolfe(concavity=0, polish=False, start="identity")
    solution = solve(pair, solver=plain)
    assert solution.objective_after < 0.95 * solution.objective_before


def test_restarts_only_help_and_depend_on_the_seed_alone() -> None:
    pair = independent_pair(mlp(5, 20, 20, 20, 3)).bind()
    one, many = (solve(pair, solver="frank_wolfe", start="random", restarts=n, seed=3) for n in (0, 5))
    again = solve(pair, solver="frank_wolfe", start="random", restarts=5, seed=3)
    assert many.objective_after <= one.objective_after
    assert many.alignment == again.alignment
    values = [step.objective for step in many.history]
    assert values == sorted(values, reverse=True)


@pytest.mark.parametrize("build", ARCHITECTURES.values(), ids=ARCHITECTURES)
def test_random_starts_do_not_see_how_units_are_stored(build) -> None:
    pair = independent_pair(build())
    left, right = Alignment.random(pair.graph, 5), Alignment.random(pair.graph, 6)
    solver = FrankWolfe(start="random", restarts=1)
    plain = solve(pair.bind(), solver=solver).alignment
    stored = solve(pair.graph, left.apply(pair.a), right.apply(pair.b), solver=solver).alignment
    assert stored == left @ plain @ right.inverse()
    assert solve(pair.bind().swapped(), solver=solver).alignment == plain.inverse()
