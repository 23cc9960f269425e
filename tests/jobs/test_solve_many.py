"""`solve_many`: every solution is that of `solve`, and its result says what came out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

import alignkit
from alignkit import Alignment, SymmetryGraph, solve, solve_many
from alignkit.graph import Pair
from alignkit.jobs import SolvedPairs
from alignkit.solvers.weight_matching import WeightMatching
from alignkit.testing import mlp, planted_pair
from helpers.comparison_solvers import Shuffle
from helpers.many_pairs import GRAPH, SHAPES, network, numbers, pairs_of
from helpers.small_pairs import SPECS, pair_of


def check_against_solve(solved: SolvedPairs, pairs: Sequence[Any], **arguments: Any) -> None:
    seed = arguments.pop("seed", 0)
    starts = arguments.pop("init", [None] * len(pairs))
    assert len(solved) == len(pairs)
    for index, given in enumerate(pairs):
        pair = given if isinstance(given, Pair) else solved.graph.bind(*given)
        one, alone = solved[index], solve(pair, seed=seed + index, init=starts[index], **arguments)
        assert numbers(one) == numbers(alone)
        for name in ("objective_before", "objective_init", "objective_after"):
            assert getattr(one, name) == pytest.approx(getattr(alone, name), rel=1e-9, abs=1e-12)
        assert dict(one.gain) == pytest.approx(dict(alone.gain), rel=1e-6, abs=1e-9)
        assert dict(one.stats) == dict(alone.stats)
        assert [step.iteration for step in one.history] == [step.iteration for step in alone.history]
        steps = [step.objective for step in alone.history]
        assert [step.objective for step in one.history] == pytest.approx(steps, rel=1e-9, abs=1e-9)
        assert (one.soft is None) == (alone.soft is None)


@pytest.mark.parametrize("name", SPECS)
def test_every_kind_of_graph_gives_what_solve_gives(name: str) -> None:
    pairs = [pair_of(name, seed) for seed in range(7)]
    check_against_solve(solve_many(pairs[0].graph, pairs), pairs)


@pytest.mark.parametrize(
    "arguments",
    [
        {"max_steps": 1},
        {"rtol": 0.05},
        {"start": "identity"},
        {"start": "random", "seed": 11},
        {"restarts": 3, "seed": 5},
        {"solver": WeightMatching(products="float32")},
        {"solver": "identity > weight_matching"},
        {"solver": [Shuffle(), "weight_matching"], "seed": 3},
        {"solver": "frank_wolfe", "max_steps": 3},
        {"device": "cpu"},
    ],
)
def test_every_solver_and_option_gives_what_solve_gives(arguments: dict[str, Any]) -> None:
    pairs = pairs_of(4)
    check_against_solve(solve_many(GRAPH, pairs, **arguments), pairs, **arguments)


@pytest.mark.parametrize("solver", ["weight_matching", "frank_wolfe > weight_matching"])
@pytest.mark.parametrize("name", SPECS)
def test_every_start_gives_what_solve_gives(name: str, solver: str) -> None:
    pairs = [pair_of(name, seed) for seed in range(8)]
    graph = pairs[0].graph
    # In stacks of starts, of none, and of both in turn; one start is that of an earlier solution.
    kinds = [Alignment.random(graph, 3), Alignment.identity(graph), solve(pairs[2]), None, None, None, solve(pairs[6])]
    starts = [*kinds, Alignment.random(graph, 4)]
    check_against_solve(solve_many(graph, pairs, solver=solver, init=starts), pairs, solver=solver, init=starts)


def test_an_earlier_result_is_a_start_for_every_pair() -> None:
    pairs = pairs_of(5)
    first = solve_many(GRAPH, pairs, max_steps=1)
    second = solve_many(GRAPH, pairs, init=first)
    assert [one.objective_init for one in second] == pytest.approx([one.objective_after for one in first], rel=1e-9)
    assert all(later.objective_after <= one.objective_after for later, one in zip(second, first, strict=True))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16, torch.float8_e5m2])
def test_every_dtype_gives_what_solve_gives(dtype: torch.dtype) -> None:
    pairs = [(network(i, dtype=dtype), network(i + 50, dtype=dtype)) for i in range(3)]
    check_against_solve(solve_many(GRAPH, [*pairs, *pairs_of(2), *pairs]), [*pairs, *pairs_of(2), *pairs])


@pytest.mark.parametrize("scale", [1e-100, 1e-20, 1e20, 1e100])
def test_every_scale_gives_what_solve_gives(scale: float) -> None:
    pairs = [(network(i, scale, torch.float64), network(i + 50, scale, torch.float64)) for i in range(3)]
    for index, (one, given) in enumerate(zip(solve_many(GRAPH, pairs), pairs, strict=True)):
        alone = solve(GRAPH, *given, seed=index)
        assert one.alignment == alone.alignment
        assert one.objective_after == pytest.approx(alone.objective_after, rel=1e-9)


def test_pairs_that_matching_would_make_worse_are_solved_as_alone() -> None:
    pairs = []
    for i in range(40):  # nearly aligned: matching from the centre of all orders often ends in a worse place
        a, noise = network(i), network(i + 100)
        pairs.append((a, {n: a[n] + noise[n] for n in a}))
    for one, given in zip(solve_many(GRAPH, pairs), pairs, strict=True):
        alone = solve(GRAPH, *given)
        assert one.alignment == alone.alignment
        assert one.objective_after == pytest.approx(alone.objective_after, rel=1e-9)
        assert one.objective_after <= one.objective_before


def test_copies_zeros_and_ties_are_solved_as_well_as_alone() -> None:
    a, zero = network(0), {n: torch.zeros(s) for n, s in SHAPES.items()}
    whole = {n: t.round() for n, t in network(3).items()}
    copy = Alignment.random(GRAPH, 5).apply(a)
    twins = {n: torch.cat([t[:6], t[:6]]) if n in ("w1", "b1") else t for n, t in a.items()}
    pairs = [(a, copy), (zero, zero), (a, zero), (whole, copy), (twins, copy), (zero, a), (a, a)]
    for given, one in zip(pairs, solve_many(GRAPH, pairs), strict=True):
        assert one.objective_after == pytest.approx(solve(GRAPH, *given).objective_after, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("stacked", [1, 2, 3, 100])
def test_the_size_of_a_stack_is_irrelevant(stacked: int, monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = pairs_of(7)
    whole = solve_many(GRAPH, pairs)
    monkeypatch.setattr("alignkit.jobs.pair_batches.STACKED", stacked)
    for one, other in zip(whole, solve_many(GRAPH, pairs), strict=True):
        assert numbers(one) == numbers(other)
    monkeypatch.setattr("alignkit.jobs.pair_batches.STACK_ELEMENTS", stacked * 500)
    for one, other in zip(whole, solve_many(GRAPH, pairs), strict=True):
        assert numbers(one) == numbers(other)


def test_modules_paths_and_bound_pairs_are_taken(tmp_path: Path) -> None:
    pair = planted_pair(mlp(6, 12, 10, 3), noise=0.1)
    alignkit.write_weights(tmp_path / "b.safetensors", pair.b.state_dict())
    given = [(pair.a, pair.b), pair.bind(), (pair.a.state_dict(), tmp_path / "b.safetensors"), [pair.a, pair.b]]
    for one in solve_many(pair.graph, given):
        assert one.alignment == solve(pair.bind()).alignment
    task = alignkit.Task(pair.a, (pair.architecture.inputs(20), torch.zeros(20, 3)), "mse")
    solved = solve_many(pair.graph, given[:2], solver="activation_matching", task=task)
    assert solved[0].alignment == solve(pair.bind(), solver="activation_matching", task=task).alignment


def test_a_graph_without_groups_and_no_pairs_at_all() -> None:
    graph = SymmetryGraph.from_spec({"w": ". ."}, {"w": (2, 3)})
    a, b = {"w": torch.ones(2, 3)}, {"w": torch.zeros(2, 3)}
    assert [one.objective_after for one in solve_many(graph, [(a, b)] * 3)] == [6.0] * 3
    assert list(solve_many(graph, [])) == []
    counters = {"w": torch.ones(2, 3, dtype=torch.int64)}
    assert [one.objective_after for one in solve_many(graph, [(counters, counters)] * 2)] == [0.0] * 2


def test_observers_see_the_same_of_a_stack() -> None:
    seen: list[Any] = []

    class Watches:
        @alignkit.hookimpl
        def alignkit_solve_started(self, problem, solver):
            seen.append(("started", problem.seed, solver.name, float(problem.a["w1"][0, 0])))

        @alignkit.hookimpl
        def alignkit_solve_step(self, problem, solver, step):
            seen.append(("step", problem.seed, step.iteration, round(step.objective, 6)))

        @alignkit.hookimpl
        def alignkit_solve_finished(self, problem, solver, solution):
            seen.append(("finished", problem.seed, solution.alignment))

    with alignkit.plugins.watched(Watches()):
        solve_many(GRAPH, pairs_of(3))
        stacked = list(seen)
        seen.clear()
        for seed, (a, b) in enumerate(pairs_of(3)):
            solve(GRAPH, a, b, seed=seed)
    assert stacked == seen


def test_forms_say_what_came_out(tmp_path: Path) -> None:
    solved = solve_many(GRAPH, [*pairs_of(2), (network(0), {})])
    assert solved.explain().startswith("weight_matching: 2 of 3 pairs solved")
    assert repr(solved) == "SolvedPairs(weight_matching: 2 of 3 pairs solved)"
    facts = json.loads(json.dumps(solved.facts()))
    assert [entry.get("after") for entry in facts["pairs"]] == [
        *(one.objective_after for one in solved.solutions),
        None,
    ]
    assert facts["pairs"][2]["reason"] == solved.reasons[2]
    alignkit.reports.write_report(solved.report(names=["one", "two", "three"]), tmp_path / "report.html")
    html = (tmp_path / "report.html").read_text()
    assert "three" in html
    assert "2 of 3 solved" in html
    alignkit.reports.write_report(solve_many(GRAPH, []).report(), tmp_path / "empty.html")
    with pytest.raises(IndexError):
        solved[3]
