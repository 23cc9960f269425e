"""`solve_many` on executors: the same solutions, whatever runs them."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from alignkit import Alignment, SoftAlignment, solve, solve_many
from alignkit.errors import SolverError
from alignkit.solver import Status
from alignkit.testing import mlp, planted_pair
from helpers.comparison_solvers import Raises, Shuffle
from helpers.many_pairs import GRAPH, SHAPES, FailsAt, network, numbers, pairs_of


@contextmanager
def threads() -> Iterator[Executor]:
    with ThreadPoolExecutor(2) as executor:
        yield executor


@contextmanager
def processes() -> Iterator[Executor]:
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as executor:
        yield executor


@contextmanager
def dask() -> Iterator[Executor]:
    distributed = pytest.importorskip("distributed", reason='needs the extra: pip install "alignkit[dask]"')
    preload = f"import sys; sys.path.insert(0, {str(Path(__file__).parents[1])!r})"
    options = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": ":0", "preload": [preload]}
    with distributed.LocalCluster(**options) as cluster, distributed.Client(cluster) as client:
        yield client.get_executor()


EXECUTORS = [threads, pytest.param(processes, marks=pytest.mark.slow), pytest.param(dask, marks=pytest.mark.slow)]


@pytest.mark.parametrize("kind", EXECUTORS)
def test_every_executor_gives_the_same(kind: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("alignkit.jobs.pair_batches.STACKED", 2)
    pairs, bad = pairs_of(5), (network(0), {"w1": torch.zeros(1)})
    with kind() as executor:
        for solver in ("weight_matching", [Shuffle(), "weight_matching"], Raises()):
            path = tmp_path / f"{len(list(tmp_path.iterdir()))}.jsonl"
            there = solve_many(GRAPH, [*pairs, bad], solver=solver, seed=2, executor=executor, path=path)
            here = solve_many(GRAPH, [*pairs, bad], solver=solver, seed=2)
            assert [numbers(one) for one in there.solutions] == [numbers(one) for one in here.solutions]
            assert there.reasons == here.reasons
            starts = [*(Alignment.random(GRAPH, seed) for seed in range(4)), None]
            there = solve_many(GRAPH, pairs, solver=solver, init=starts, executor=executor)
            here = solve_many(GRAPH, pairs, solver=solver, init=starts)
            assert [numbers(one) for one in there.solutions] == [numbers(one) for one in here.solutions]
            if solver == "weight_matching":
                solve_many(GRAPH, pairs, solver=solver, seed=2, path=path, report=pytest.fail)


@pytest.mark.parametrize("kind", EXECUTORS)
def test_soft_starts_reach_the_pairs(kind: Any) -> None:
    pairs, plain = pairs_of(5), {"solver": "sinkhorn", "max_steps": 4, "check_every": 2}
    hard = Alignment.random(GRAPH, 0)
    solved = solve_many(GRAPH, pairs, **plain).solutions
    starts = [hard, SoftAlignment.from_alignment(hard), SoftAlignment.centre(GRAPH), solved[3], None]
    with kind() as executor:
        there = solve_many(GRAPH, pairs, init=starts, executor=executor, **plain).solutions
    here = solve_many(GRAPH, pairs, init=starts, **plain).solutions
    numbered = enumerate(zip(pairs, starts, strict=True))
    alone = [solve(GRAPH, *pair, init=start, seed=at, **plain) for at, (pair, start) in numbered]
    assert [numbers(one) for one in there] == [numbers(one) for one in here] == [numbers(one) for one in alone]


def test_ctrl_c_in_a_worker_ends_the_run_and_loses_nothing_that_is_done(tmp_path: Path) -> None:
    path, pairs = tmp_path / "rows.jsonl", pairs_of(8)
    with threads() as executor:
        pressed = FailsAt({3: KeyboardInterrupt()})
        solved = solve_many(GRAPH, pairs, solver=pressed, executor=executor, path=path)
        done = [pair.index for pair in solved.pairs if not pair.reason]
        assert solved.interrupted
        assert 3 not in done
        again: list[int] = []
        rest = solve_many(GRAPH, pairs, solver=FailsAt({}), path=path, report=lambda pair: again.append(pair.index))
    assert sorted([*done, *again]) == list(range(8))
    assert len(rest.solutions) == 8


@pytest.mark.slow
def test_a_worker_that_dies_is_told_of_its_pairs() -> None:
    with processes() as executor:
        solved = solve_many(GRAPH, pairs_of(6), solver=Shuffle(die_at=3), executor=executor)
    assert "the executor failed" in solved.reasons[3]
    assert len(solved) == 6
    assert all(one.status is Status.OK for one in solved.solutions)


def test_what_cannot_be_sent_is_told() -> None:
    pair = planted_pair(mlp(3, 4, 2))
    pair.a.extra = lambda: None
    with threads() as executor:
        given = [(pair.a, pair.a), (pair.b, pair.b)]
        assert not solve_many(pair.graph, given, executor=executor).reasons  # a stack has no use for modules
        solved = solve_many(pair.graph, given, solver="identity", executor=executor)
        assert "pair 0 cannot be sent to the executor" in solved.reasons[0]
        assert solved[1].objective_after == 0
        with pytest.raises(SolverError, match="the solvers cannot be sent"):
            solve_many(GRAPH, pairs_of(1), solver=FailsAt({0: lambda: 0}), executor=executor)


def test_views_of_stacks_are_sent_without_what_lies_beside(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[int] = []
    stack = {n: torch.randn(500, *s) for n, s in SHAPES.items()}
    pairs = [({n: t[i] for n, t in stack.items()}, {n: t[i + 1] for n, t in stack.items()}) for i in range(3)]
    with threads() as executor:
        submit = executor.submit
        monkeypatch.setattr(
            executor, "submit", lambda f, *data: (sent.append(sum(map(len, data))), submit(f, *data))[1]
        )
        solve_many(GRAPH, pairs, executor=executor)
    assert sum(sent) < 50_000
