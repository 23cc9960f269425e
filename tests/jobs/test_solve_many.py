"""`solve_many`: every solution is that of `solve`, whatever runs it; failures and Ctrl-C lose no other pair."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import alignkit
from alignkit import Alignment, SymmetryGraph, solve, solve_many
from alignkit.errors import ArgumentError, SolverError
from alignkit.graph import Pair
from alignkit.jobs import SolvedPair, SolvedPairs
from alignkit.solver import Outcome, Solution, Solver, SolverOptions, Status
from alignkit.solvers.weight_matching import WeightMatching
from alignkit.testing import independent_pair, mlp, planted_pair
from helpers.comparison_solvers import Raises, Shuffle
from helpers.small_pairs import SPECS, pair_of

State = dict[str, Tensor]
SPEC = {"w1": "a .", "b1": "a", "w2": "b a", "b2": "b", "w3": ". b"}
SHAPES = {"w1": (12, 5), "b1": (12,), "w2": (9, 12), "b2": (9,), "w3": (3, 9)}
GRAPH = SymmetryGraph.from_spec(SPEC, SHAPES)


def network(seed: int, scale: float = 1.0, dtype: torch.dtype = torch.float32) -> State:
    generator = torch.Generator().manual_seed(seed)
    return {n: (torch.randn(s, generator=generator, dtype=torch.float64) * scale).to(dtype) for n, s in SHAPES.items()}


def pairs_of(count: int) -> list[tuple[State, State]]:
    return [(network(2 * i), network(2 * i + 1)) for i in range(count)]


def numbers(solution: Solution) -> tuple[Any, ...]:
    """What does not depend on the clock."""
    return solution.alignment, solution.status, dict(solution.options), solution.solver, dict(solution.moved)


def check_against_solve(solved: SolvedPairs, pairs: Sequence[Any], **arguments: Any) -> None:
    seed = arguments.pop("seed", 0)
    assert len(solved) == len(pairs)
    for index, given in enumerate(pairs):
        pair = given if isinstance(given, Pair) else solved.graph.bind(*given)
        one, alone = solved[index], solve(pair, seed=seed + index, **arguments)
        assert numbers(one) == numbers(alone)
        for name in ("objective_before", "objective_init", "objective_after"):
            assert getattr(one, name) == pytest.approx(getattr(alone, name), rel=1e-9, abs=1e-12)
        assert dict(one.gain) == pytest.approx(dict(alone.gain), rel=1e-6, abs=1e-9)
        assert dict(one.stats) == dict(alone.stats)
        assert [step.iteration for step in one.history] == [step.iteration for step in alone.history]
        steps = [step.objective for step in alone.history]
        assert [step.objective for step in one.history] == pytest.approx(steps, rel=1e-9, abs=1e-9)
        assert (one.soft is None) == (alone.soft is None)


# ---------------------------------------------------------------------- the same as solve


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


# ---------------------------------------------------------------------- failures


def bad_pairs() -> dict[str, tuple[Any, str]]:
    good = network(1)
    nan = {**good, "w2": good["w2"].clone().fill_(float("nan"))}
    return {
        "another shape": (({**good, "w2": torch.zeros(3, 3)}, good), "w2"),
        "a tensor too few": ((good, {n: good[n] for n in ("w1", "b1")}), "w2"),
        "NaN": ((good, nan), "NaN or infinity"),
        "overflow": ((network(1, 1e200, torch.float64), network(2, 1e200, torch.float64)), "overflow"),
        "vanishing": ((network(1, 1e-200, torch.float64), network(2, 1e-200, torch.float64)), "vanish"),
        "complex": ((network(1, 1, torch.complex64), network(2, 1, torch.complex64)), "complex"),
        "no file": ((good, "no/such.safetensors"), "no/such.safetensors"),
        "a single network": (good, "A pair is two networks"),
        "three": ((good, good, good), "A pair is two networks"),
        "a text": ("ab", "A pair is two networks"),
        "a number": (3, "A pair is two networks"),
        "another graph": (pair_of("flatten"), "another graph"),
        "numbers": ((1, 2), "int"),
    }


@pytest.mark.parametrize("kind", bad_pairs())
@pytest.mark.parametrize("place", [0, 2, 4])
def test_a_pair_that_cannot_be_solved_is_told_and_the_others_go_on(kind: str, place: int) -> None:
    bad, words = bad_pairs()[kind]
    good = pairs_of(4)
    reported: list[SolvedPair] = []
    solved = solve_many(GRAPH, [*good[:place], bad, *good[place:]], report=reported.append)
    assert list(solved.reasons) == [place]
    assert words in solved.reasons[place]
    assert [one.alignment for one in solved.solutions] == [solve(GRAPH, *given).alignment for given in good]
    assert sorted(pair.index for pair in reported) == list(range(5))
    with pytest.raises(SolverError, match=rf"pair {place} has no solution\. "):
        solved[place]
    assert f"pair {place}: " in solved.explain()
    assert not solved.interrupted


class FailsAt(Solver[SolverOptions]):
    """Fails, in one of many ways, for some seeds."""

    name = "fails_at"

    def __init__(self, ways: dict[int, Any]) -> None:
        super().__init__()
        self.ways = ways

    def solve(self, problem, report):
        way = self.ways.get(problem.seed)
        if isinstance(way, BaseException):
            raise way
        return Outcome(problem.start) if way is None else way


def test_a_solver_that_fails_for_some_pairs_is_told_for_these() -> None:
    ways = {1: ValueError("singular"), 2: SystemExit(3), 3: None, 4: "no outcome", 5: Outcome("x"), 6: MemoryError()}
    solved = solve_many(GRAPH, pairs_of(8), solver=FailsAt(ways))
    assert list(solved.reasons) == [1, 2, 4, 5, 6]
    assert "singular" in solved.reasons[1]
    assert len(solved.solutions) == 3


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"solver": "wieght_matching"}, "Did you mean 'weight_matching'"),
        ({"restart": 3}, "restart"),
        ({"solver": "activation_matching"}, "pass task="),
        ({"solver": []}, "empty sequence"),
        ({"path": "no/such/folder/rows.jsonl"}, "cannot be used for the rows"),
        ({"device": "nowhere"}, "nowhere"),
        ({"executor": 3}, "executor="),
        ({"seed": 0.5}, "seed="),
        ({"pairs": 3}, "pairs="),
    ],
)
def test_wrong_calls_raise_before_a_pair_is_taken(wrong: dict[str, Any], message: str) -> None:
    def pairs() -> Iterator[Any]:
        pytest.fail("a pair was taken")
        yield

    with pytest.raises((SolverError, ArgumentError), match=message):
        solve_many(GRAPH, **{"pairs": pairs(), **wrong})


# ---------------------------------------------------------------------- Ctrl-C


@pytest.mark.parametrize("place", [0, 3, 7])
def test_ctrl_c_returns_what_is_done_and_a_file_goes_on_there(place: int, tmp_path: Path) -> None:
    path, pairs = tmp_path / "rows.jsonl", pairs_of(8)
    solved = solve_many(GRAPH, pairs, solver=FailsAt({place: KeyboardInterrupt()}), path=path)
    assert solved.interrupted
    assert [pair.index for pair in solved.pairs if not pair.reason] == list(range(place))
    assert solved[place].status is Status.INTERRUPTED
    assert "Ctrl-C" in solved.reasons[7] or place == 7
    done: list[int] = []
    rest = solve_many(GRAPH, pairs, solver=FailsAt({}), path=path, report=lambda pair: done.append(pair.index))
    assert done == list(range(place, 8))
    assert (len(rest.solutions), rest.interrupted) == (8, False)


def test_ctrl_c_while_pairs_are_read_or_stacked(monkeypatch: pytest.MonkeyPatch) -> None:
    def pairs() -> Iterator[tuple[State, State]]:
        yield from pairs_of(5)
        raise KeyboardInterrupt

    monkeypatch.setattr("alignkit.jobs.pair_batches.STACKED", 2)
    solved = solve_many(GRAPH, pairs())
    assert solved.interrupted
    assert [len(solved), len(solved.solutions)] == [5, 4]
    calls: list[int] = []

    def pressed(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return whole(*arguments)

    from alignkit.solvers.stacked_matching import StackedMatching

    whole = StackedMatching.run
    monkeypatch.setattr(StackedMatching, "run", pressed)
    solved = solve_many(GRAPH, pairs_of(7))
    assert [pair.index for pair in solved.pairs if pair.solution is not None] == [0, 1, 2, 3]
    assert solved.interrupted
    assert len(solved) == 7


# ---------------------------------------------------------------------- resuming


def test_what_is_in_the_file_is_not_solved_again(tmp_path: Path) -> None:
    path, log, pairs = tmp_path / "rows.jsonl", tmp_path / "log", pairs_of(5)
    shuffle = Shuffle(log=str(log))
    first = solve_many(GRAPH, pairs[:3], solver=shuffle, seed=4, path=path)
    again = solve_many(GRAPH, pairs, solver=shuffle, seed=4, path=path)
    assert [line.split()[0] for line in log.read_text().splitlines()] == ["4", "5", "6", "7", "8"]
    assert [numbers(one) for one in again][:3] == [numbers(one) for one in first]
    assert [one.seconds for one in again][:3] == [one.seconds for one in first]
    changed = [pairs[0], (pairs[1][1], pairs[1][0]), *pairs[2:]]
    done: list[int] = []
    solve_many(GRAPH, changed, solver=shuffle, seed=4, path=path, report=lambda pair: done.append(pair.index))
    assert done == [1]
    done.clear()
    solve_many(GRAPH, changed, solver=shuffle, seed=5, path=path, report=lambda pair: done.append(pair.index))
    assert done == list(range(5))


def test_a_soft_alignment_survives_the_file(tmp_path: Path) -> None:
    pair = planted_pair(mlp(4, 5, 3), noise=0.1)
    given, path = [(pair.a, pair.b)] * 2, tmp_path / "rows.jsonl"
    first = solve_many(pair.graph, given, solver="sinkhorn > weight_matching", max_steps=3, path=path)
    again = solve_many(
        pair.graph, given, solver="sinkhorn > weight_matching", max_steps=3, path=path, report=pytest.fail
    )
    for one, other in zip(first, again, strict=True):
        assert numbers(one) == numbers(other)
        assert one.facts() == other.facts()
        soft, read = one.stages[0].soft, other.stages[0].soft
        assert soft is not None
        assert read is not None
        assert all(torch.equal(soft.matrices[n], read.matrices[n]) for n in soft.matrices)


def test_failures_are_solved_again(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    assert len(solve_many(GRAPH, pairs_of(3), solver=FailsAt({1: ValueError()}), path=path).solutions) == 2
    done: list[int] = []
    solve_many(GRAPH, pairs_of(3), solver=FailsAt({}), path=path, report=lambda pair: done.append(pair.index))
    assert done == [1]


def test_files_of_something_else_are_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    solve_many(GRAPH, pairs_of(2), path=path)
    kept = path.read_bytes()
    other = pair_of("flatten")
    with pytest.raises(SolverError, match="graph differ"):
        solve_many(other.graph, [other], path=path)
    with pytest.raises(SolverError, match="device differ"):
        solve_many(GRAPH, pairs_of(2), path=path, device="cpu")
    assert path.read_bytes() == kept
    pair = independent_pair(mlp(3, 4, 2))
    rows = tmp_path / "compare.jsonl"
    alignkit.compare(pair.bind(), solvers=[], path=rows)
    with pytest.raises(SolverError, match="cannot be resumed"):
        solve_many(pair.graph, [pair.bind()], path=rows)


@pytest.mark.parametrize("cut", [1, 30, 700])
def test_a_line_that_was_cut_off_is_solved_again(cut: int, tmp_path: Path) -> None:
    path, pairs = tmp_path / "rows.jsonl", pairs_of(4)
    whole = solve_many(GRAPH, pairs, path=path)
    path.write_bytes(path.read_bytes()[:-cut])
    again = solve_many(GRAPH, pairs, path=path)
    assert [numbers(one) for one in again] == [numbers(one) for one in whole]
    solve_many(GRAPH, pairs, path=path, report=pytest.fail)


def test_damaged_rows_are_named_by_their_line(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    solve_many(GRAPH, pairs_of(2), path=path)
    lines = path.read_text().splitlines()
    row = {key: value for key, value in json.loads(lines[2]).items() if key != "digest"}
    tensors = row["solution"]["tensors"]
    damages = [
        lines[2].replace('"sweeps": ', '"sweeps": 1'),
        "[]",
        "{",
        json.dumps({**row, "pair": "x"}),
        *(json.dumps({**row, "solution": {**row["solution"], "tensors": text}}) for text in ("?", "", tensors[:-8], 3)),
        json.dumps({**row, "solution": {**row["solution"], "status": "FINE"}}),
        json.dumps({**row, "solution": {**row["solution"], "gain": {}}}),
    ]
    for damage in damages:
        path.write_text("\n".join([*lines[:2], damage]) + "\n")
        with pytest.raises(SolverError, match=r"line 3 of .*rows\.jsonl"):
            solve_many(GRAPH, pairs_of(2), path=path)


KILLED = """
import sys
sys.path[:0] = {paths!r}
from helpers.comparison_solvers import Shuffle
from alignkit import SymmetryGraph, solve_many
from helpers.small_pairs import pair_of
pairs = [pair_of("two layers", seed) for seed in range(4)]
solve_many(pairs[0].graph, pairs, solver=Shuffle(log={log!r}, hang_at=2), path={path!r})
"""


@pytest.mark.slow
def test_a_killed_run_goes_on_where_it_was(tmp_path: Path) -> None:
    path, log = tmp_path / "rows.jsonl", tmp_path / "log"
    paths = [str(Path(__file__).parents[1]), *sys.path[1:]]
    script = KILLED.format(paths=paths, log=str(log), path=str(path))
    process = subprocess.Popen([sys.executable, "-c", script], env={**os.environ, "OMP_NUM_THREADS": "1"})
    try:
        deadline = time.monotonic() + 120
        while not (log.exists() and len(log.read_text().splitlines()) == 3):  # it hangs in the third pair now
            assert process.poll() is None
            assert time.monotonic() < deadline, "it never came to its third pair"
            time.sleep(0.05)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    log.unlink()
    pairs = [pair_of("two layers", seed) for seed in range(4)]
    resumed = Shuffle(log=str(log), hang_at=2)
    solve_many(pairs[0].graph, pairs[:2], solver=resumed, path=path, report=pytest.fail)
    assert not log.exists()


# ---------------------------------------------------------------------- executors


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
            if solver == "weight_matching":
                solve_many(GRAPH, pairs, solver=solver, seed=2, path=path, report=pytest.fail)


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


# ---------------------------------------------------------------------- forms


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
