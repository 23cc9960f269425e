"""`compare`: what is always in the table, failures as rows, resuming, and other processes."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from io import StringIO
from pathlib import Path

import pytest
import torch
from rich.console import Console

from alignkit.errors import BindError, ComparisonError, SolverError
from alignkit.jobs.average import average
from alignkit.jobs.compare.compare import compare
from alignkit.jobs.compare.comparison import Comparison, ComparisonRow
from alignkit.jobs.compare.job import Evaluation
from alignkit.jobs.repair import repair
from alignkit.jobs.solve import solve
from alignkit.plugins.plugin_registry import list_solvers
from alignkit.solvers.weight_matching import WeightMatching
from alignkit.tasks.interpolation import interpolate
from alignkit.tasks.task import Task
from alignkit.testing import independent_pair, mlp, planted_pair
from helpers.comparison_solvers import Raises, Shuffle


@pytest.fixture
def pair():
    return planted_pair(mlp(6, 12, 10, 3), noise=0.1)


@pytest.fixture
def task(pair):
    inputs = pair.architecture.inputs(40, seed=5)
    with torch.no_grad():
        return Task(pair.a, (inputs, pair.a(inputs).argmax(1)), "cross_entropy", "accuracy")


def numbers(comparison):
    """What does not depend on the clock or on the process."""
    return [(r.solver, r.seed, r.status, r.reason, r.distance, r.barrier, r.middle_metric) for r in comparison.rows]


# ---------------------------------------------------------------------- the table


def test_identity_is_first_and_activation_matching_is_there_with_a_task(pair, task):
    assert compare(pair.bind(), solvers=["weight_matching"]).solvers == ("identity", "weight_matching")
    expected = ("identity", "activation_matching", "weight_matching")
    assert compare(pair.bind(), solvers=["weight_matching", "identity"], task=task).solvers == expected
    shown = compare(pair.bind(), solvers=["weight_matching", "activation_matching"], task=task).solvers
    assert shown == ("identity", "weight_matching", "activation_matching")


def test_numbers_are_those_of_solve_and_interpolate(pair, task):
    comparison = compare(pair.bind(), solvers=["weight_matching"], task=task, evaluation=Evaluation(points=5))
    row = comparison.row("weight_matching")
    solution = solve(pair.bind())
    line = interpolate(task, pair.a, solution.apply(pair.b), 5)
    assert row.distance == solution.objective_after
    assert row.gain == solution.objective_before - solution.objective_after > 0
    assert (row.barrier, row.auc) == pytest.approx((line.barrier, line.auc))
    assert (row.middle_loss, row.middle_metric) == pytest.approx((line.midpoint.loss, line.midpoint.metric))
    assert row.moved == sum(solution.moved.values())
    identity = comparison.row("identity")
    assert identity.gain == 0
    assert identity.barrier == pytest.approx(interpolate(task, pair.a, pair.b, 5).barrier)


def test_the_test_task_is_what_is_measured_on(pair, task):
    inputs = pair.architecture.inputs(40, seed=6)
    other = Task(pair.a, (inputs, pair.b(inputs).argmax(1)), "cross_entropy", "accuracy")
    row = compare(pair.bind(), solvers=[], task=task, evaluation=Evaluation(test=other)).row("activation_matching")
    aligned = solve(pair.bind(), solver="activation_matching", task=task).apply(pair.b)
    assert row.barrier == pytest.approx(interpolate(other, pair.a, aligned).barrier)


def test_the_repaired_average_is_measured_when_asked(pair, task, tmp_path):
    row = compare(pair.bind(), solvers=["weight_matching"], task=task, evaluation=Evaluation(repair=True)).row(
        "weight_matching"
    )
    parents = [pair.a, solve(pair.bind()).apply(pair.b)]
    expected = task.evaluate(repair(average(parents), parents, task))
    assert (row.repaired_loss, row.repaired_metric) == pytest.approx((expected.loss, expected.metric))
    assert row.repaired_loss != row.middle_loss
    assert compare(pair.bind(), solvers=["weight_matching"], task=task).row("weight_matching").repaired_loss is None
    states = pair.graph.bind(pair.a.state_dict(), pair.b.state_dict())
    for networks, data in ((states, task), (pair.bind(), None)):
        with pytest.raises(ComparisonError, match="bind modules"):
            compare(networks, solvers=[], task=data, evaluation=Evaluation(repair=True))


def test_seeds_make_rows_but_the_identity_is_run_once(pair):
    comparison = compare(pair.bind(), solvers=[Shuffle(), "weight_matching"], seeds=(0, 1, 1, 2))
    assert [row.seed for row in comparison.rows] == [0, 0, 1, 2, 0, 1, 2]
    assert (
        comparison.row("shuffle", 1).distance
        == compare(pair.bind(), solvers=[Shuffle()], seeds=[1]).row("shuffle").distance
    )
    mean = comparison.averages[1].mean("distance")
    assert mean == pytest.approx(sum(comparison.row("shuffle", seed).distance for seed in range(3)) / 3)


def test_chains_start_where_the_stage_before_ended(pair):
    comparison = compare(
        pair.bind(), solvers=["weight_matching", "identity > weight_matching", [Shuffle(), "identity"]]
    )
    assert comparison.solvers == ("identity", "weight_matching", "identity > weight_matching", "shuffle > identity")
    chained = solve(pair.bind(), solver=[Shuffle(), "identity"], seed=0)
    assert comparison.row("shuffle > identity").distance == chained.objective_after


def test_options_go_to_the_solvers_that_have_them(pair):
    comparison = compare(pair.bind(), solvers=["weight_matching", "identity"], restarts=3)
    assert comparison.row("weight_matching").options["restarts"] == 3
    assert "restarts" not in comparison.row("identity").options
    with pytest.raises(SolverError, match=r"none of the compared solvers has an option 'restart'.*'restarts'"):
        compare(pair.bind(), solvers=["weight_matching"], restart=3)


def test_one_solver_with_several_options_needs_names_or_shows_them(pair):
    comparison = compare(pair.bind(), solvers={"plain": "weight_matching", "many": WeightMatching(restarts=5)})
    assert comparison.solvers == ("identity", "plain", "many")
    assert comparison.row("many").options["restarts"] == 5
    shown = compare(pair.bind(), solvers=["weight_matching", WeightMatching(restarts=5)]).solvers
    assert shown[1:] == ("weight_matching", "weight_matching(restarts=5)")
    with pytest.raises(ComparisonError, match="two solvers would be called 'shuffle'"):
        compare(pair.bind(), solvers=[Shuffle(), type("Other", (Shuffle,), {})()])


def test_every_registered_solver_is_a_row_with_numbers_or_with_a_reason(pair):
    comparison = compare(pair.bind(), solvers=list(list_solvers()), max_steps=5)
    assert set(comparison.solvers) == set(list_solvers())
    for row in comparison.rows:
        assert (row.distance is None) == bool(row.reason)
    assert "pass task=" in comparison.row("activation_matching").reason


# ---------------------------------------------------------------------- failures


def test_a_solver_that_fails_is_a_row_and_the_others_go_on(pair, task):
    comparison = compare(pair.bind(), solvers=[Raises(), "weight_matching"], task=task)
    row = comparison.row("raises")
    assert (row.status, row.failed, row.distance) == ("FAILED", True, None)
    assert "the matrix is singular" in row.reason
    assert not comparison.row("weight_matching").failed
    assert "the matrix is singular" in str(comparison)


def test_a_result_that_cannot_be_evaluated_keeps_its_distance(pair):
    inputs = pair.architecture.inputs(8)
    broken = Task(pair.a, (inputs, torch.zeros(8, 7)), "mse")
    row = compare(pair.bind(), solvers=["weight_matching"], evaluation=Evaluation(test=broken)).row("weight_matching")
    assert row.failed
    assert row.distance < row.distance_before
    assert row.line is None
    assert "could not be evaluated" in row.reason


def test_wrong_calls_raise_before_anything_is_solved(pair, tmp_path):
    log = tmp_path / "log"
    for wrong, message in (
        ({"solvers": [Shuffle(log=str(log)), "wieght_matching"]}, "Did you mean 'weight_matching'"),
        ({"solvers": [Shuffle(log=str(log))], "seeds": []}, "seeds is empty"),
        ({"seeds": [0, {}]}, "seeds are whole numbers, found {}"),
        ({"seeds": [0.5]}, "seeds are whole numbers, found 0.5"),
        ({"solvers": [Shuffle(log=str(log))], "path": tmp_path / "no" / "x.jsonl"}, "cannot be used"),
    ):
        with pytest.raises((SolverError, ComparisonError), match=message):
            compare(pair.bind(), **wrong)
    with pytest.raises(ComparisonError, match="odd"):
        Evaluation(points=4)
    with pytest.raises(BindError, match=r"call compare\(graph, a, b\)"):
        compare(pair.graph, solvers=["weight_matching"])
    assert not log.exists()


# ---------------------------------------------------------------------- forms


def test_json_holds_everything(pair, task):
    comparison = compare(pair.bind(), solvers=[Raises(), "weight_matching"], task=task, seeds=(0, 1))
    assert Comparison.from_json(comparison.to_json()) == comparison
    json.loads(comparison.to_json(), parse_constant=pytest.fail)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": "alignkit.interpolation", "version": 1}', "null"])
def test_other_texts_are_refused(text):
    with pytest.raises(ComparisonError):
        Comparison.from_json(text)


def test_pictures(pair, task, tmp_path):
    compare(pair.bind(), solvers=["weight_matching"], task=task, seeds=(0, 1)).plot(tmp_path / "lines.png")
    compare(pair.bind(), solvers=["weight_matching"]).plot(tmp_path / "bars.svg")
    assert (tmp_path / "lines.png").read_bytes()[:4] == b"\x89PNG"
    assert "weight_matching" in (tmp_path / "bars.svg").read_text()


def test_the_table_names_its_columns(pair, task):
    text = str(compare(pair.bind(), solvers=["weight_matching"], task=task, seeds=(0, 1)))
    for word in ("solver", "squared", "gain", "barrier", "AUC", "middle", "metric", "seconds", "identity"):
        assert word in text
    assert "barrier" not in str(compare(pair.bind(), solvers=["weight_matching"]))


def test_numbers_fit_a_terminal_of_80_columns(pair, task):
    comparison = compare(
        pair.bind(), solvers={"a name that is far too long for its column": "weight_matching"}, task=task
    )
    text = StringIO()
    Console(file=text, width=80).print(comparison)
    lines = text.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    assert "…" not in text.getvalue()
    row = comparison.row("identity")
    assert f"{row.distance:.5g}" in text.getvalue()
    assert f"{row.middle_metric:.4f}" in text.getvalue()


@pytest.mark.slow
def test_peak_memory_sees_a_large_allocation():
    from alignkit.jobs.memory_use import CLEAR, peak_memory

    if not CLEAR.exists():
        pytest.skip("peak memory on the CPU is read from /proc, which this system does not have")
    # A process of its own: here the allocator may hold enough memory from earlier tests.
    script = (
        "import torch\nfrom alignkit.jobs.memory_use import peak_memory\n"
        "with peak_memory(torch.device('cpu')) as reading: torch.ones(1 << 24).sum()\nprint(reading.peak)"
    )
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert int(done.stdout) >= 1 << 25
    with peak_memory(torch.device("cpu")) as outer, peak_memory(torch.device("cpu")) as inner:
        pass
    assert outer.peak is inner.peak is None


# ---------------------------------------------------------------------- resuming


def test_what_is_in_the_file_is_not_computed_again(pair, task, tmp_path):
    path, log, wanted = tmp_path / "rows.jsonl", tmp_path / "log", {"x": Shuffle(log=str(tmp_path / "log"))}
    first = compare(pair.bind(), solvers=wanted, task=task, seeds=(0, 1), path=path)
    reported = []
    again = compare(pair.bind(), solvers=wanted, task=task, seeds=(0, 1, 2), path=path, report=reported.append)
    assert [line.split()[0] for line in log.read_text().splitlines()] == ["0", "1", "2"]
    assert [(row.solver, row.seed) for row in reported] == [("activation_matching", 2), ("x", 2)]
    assert [row for row in again.rows if row.seed < 2] == list(first.rows)


def test_failed_rows_and_changed_options_are_computed_again(pair, tmp_path):
    path = tmp_path / "rows.jsonl"
    compare(pair.bind(), solvers={"x": Raises()}, path=path)
    assert not compare(pair.bind(), solvers={"x": "weight_matching"}, path=path).row("x").failed
    assert compare(pair.bind(), solvers={"x": WeightMatching(restarts=2)}, path=path).row("x").options["restarts"] == 2
    assert compare(pair.bind(), solvers={"x": WeightMatching(restarts=2)}, path=path, report=pytest.fail).row("x")


def test_a_file_of_something_else_is_refused_and_left_alone(pair, task, tmp_path):
    path = tmp_path / "rows.jsonl"
    compare(pair.bind(), solvers=["weight_matching"], task=task, path=path)
    other = independent_pair(mlp(6, 12, 10, 3), seed=3)
    kept = path.read_bytes()
    with pytest.raises(ComparisonError, match="weights of A, weights of B differ"):
        compare(other.bind(), solvers=["weight_matching"], task=task, path=path)
    with pytest.raises(ComparisonError, match="task, task for the test differ"):
        compare(pair.bind(), solvers=["weight_matching"], path=path)
    with pytest.raises(ComparisonError, match="points differ"):
        compare(pair.bind(), solvers=["weight_matching"], task=task, path=path, evaluation=Evaluation(points=7))
    assert path.read_bytes() == kept
    notes = tmp_path / "notes.txt"
    for text in ("my notes\n", "my notes", '{"a": 1}\n'):
        notes.write_text(text)
        with pytest.raises(ComparisonError, match="cannot be resumed"):
            compare(pair.bind(), solvers=["weight_matching"], path=notes)
        assert notes.read_text() == text


@pytest.mark.parametrize("cut", [1, 20, 200])
def test_a_line_that_was_cut_off_is_computed_again(pair, tmp_path, cut):
    path = tmp_path / "rows.jsonl"
    whole = compare(pair.bind(), solvers=[Shuffle()], seeds=(0, 1), path=path)
    path.write_bytes(path.read_bytes()[:-cut])
    again = compare(pair.bind(), solvers=[Shuffle()], seeds=(0, 1), path=path)
    assert numbers(again) == numbers(whole)
    assert numbers(compare(pair.bind(), solvers=[Shuffle()], seeds=(0, 1), path=path, report=pytest.fail)) == numbers(
        whole
    )


def test_a_header_that_was_cut_off_begins_anew(pair, tmp_path):
    path = tmp_path / "rows.jsonl"
    compare(pair.bind(), solvers=[Shuffle()], path=path)
    path.write_bytes(path.read_bytes()[:30])
    compare(pair.bind(), solvers=[Shuffle()], path=path)
    compare(pair.bind(), solvers=[Shuffle()], path=path, report=pytest.fail)


KILLED = """
import sys
sys.path[:0] = {paths!r}
from helpers.comparison_solvers import Shuffle
from alignkit.jobs.compare.compare import compare
from alignkit.testing import mlp, planted_pair
pair = planted_pair(mlp(6, 12, 10, 3), noise=0.1)
compare(pair.bind(), solvers={{"x": Shuffle(log={log!r}, hang_at={hang})}}, seeds=range(4), path={path!r})
"""


@pytest.mark.slow
def test_a_killed_run_goes_on_where_it_was(pair, tmp_path):
    path, log = tmp_path / "rows.jsonl", tmp_path / "log"
    here = str(Path(__file__).parents[1])
    script = KILLED.format(paths=[here, *sys.path[1:]], log=str(log), path=str(path), hang=2)
    process = subprocess.Popen([sys.executable, "-c", script], env={**os.environ, "OMP_NUM_THREADS": "1"})
    try:
        deadline = time.monotonic() + 120
        while not (log.exists() and len(log.read_text().splitlines()) == 3):  # it hangs in the third run now
            assert process.poll() is None
            assert time.monotonic() < deadline, "the comparison never came to its third run"
            time.sleep(0.05)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert process.returncode == -signal.SIGKILL
    log.unlink()
    # The same comparison again. hang_at is an option like any other, so only an equal one finds its rows.
    resumed = Shuffle(log=str(log), hang_at=2)
    done = compare(pair.bind(), solvers={"x": resumed}, seeds=(0, 1), path=path, report=pytest.fail)
    assert [row.seed for row in done.rows] == [0, 0, 1]
    assert not log.exists()
    rest = compare(pair.bind(), solvers={"x": resumed}, seeds=(0, 1, 3), path=path)
    assert log.read_text().split()[0] == "3"
    assert len(log.read_text().splitlines()) == 1
    assert numbers(rest) == numbers(compare(pair.bind(), solvers={"x": Shuffle()}, seeds=(0, 1, 3)))


# ---------------------------------------------------------------------- executors


def pool(workers=1):
    return ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"))


@pytest.mark.slow
def test_a_process_pool_gives_the_same_rows(pair, task, tmp_path):
    wanted = {"shuffle": Shuffle(log=str(tmp_path / "log")), "matched": "weight_matching", "raises": Raises()}
    here = compare(pair.bind(), solvers=wanted, task=task, seeds=(0, 1))
    (tmp_path / "log").unlink()
    with pool(2) as executor:
        there = compare(
            pair.bind(), solvers=wanted, task=task, seeds=(0, 1), executor=executor, path=tmp_path / "rows.jsonl"
        )
    assert numbers(there) == numbers(here)
    assert str(os.getpid()) not in (tmp_path / "log").read_text().split()
    assert numbers(
        compare(pair.bind(), solvers=wanted, task=task, seeds=(0, 1), path=tmp_path / "rows.jsonl")
    ) == numbers(here)


def test_threads_give_the_same_rows(pair, task):
    with ThreadPoolExecutor(2) as executor:
        there = compare(pair.bind(), solvers=["weight_matching", Shuffle()], task=task, seeds=(0, 1), executor=executor)
    assert numbers(there) == numbers(
        compare(pair.bind(), solvers=["weight_matching", Shuffle()], task=task, seeds=(0, 1))
    )


@pytest.mark.slow
def test_a_worker_that_dies_is_rows_with_the_reason(pair):
    with pool() as executor:
        comparison = compare(pair.bind(), solvers={"x": Shuffle(die_at=1)}, seeds=(1,), executor=executor)
    assert "the executor failed: BrokenProcessPool" in comparison.row("x").reason


def test_what_cannot_be_sent_is_named(pair, task):
    loss = Task(pair.a, task.batches, lambda outputs, targets: outputs.mean())
    with pool() as executor, pytest.raises(ComparisonError, match=r"the task cannot be sent to the executor"):
        compare(pair.bind(), solvers=["weight_matching"], task=loss, executor=executor)


@pytest.mark.slow
def test_dask_workers_give_the_same_rows(pair, task):
    distributed = pytest.importorskip("distributed", reason='needs the extra: pip install "alignkit[dask]"')
    here = compare(pair.bind(), solvers={"shuffle": Shuffle(), "matched": "weight_matching"}, task=task, seeds=(0, 1))
    preload = f"import sys; sys.path.insert(0, {str(Path(__file__).parents[1])!r})"
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, dashboard_address=":0", preload=[preload]
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        executor = client.get_executor()
        there = compare(
            pair.bind(),
            solvers={"shuffle": Shuffle(), "matched": "weight_matching"},
            task=task,
            seeds=(0, 1),
            executor=executor,
        )
    assert numbers(there) == numbers(here)


@pytest.mark.parametrize(("columns", "widest"), [(40, 80), (80, 80), (100, 100), (500, 160)])
def test_the_table_is_as_wide_as_the_terminal(columns: int, widest: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    name = "activation_matching > weight_matching > frank_wolfe"
    rows = [
        ComparisonRow(solver, 0, "OK", "", 1e5, 2e4, None, 0.1, 0.2, 3.5, 10**9, 7) for solver in ("identity", name)
    ]
    shown = Comparison(tuple(rows), "cpu").explain()
    assert max(map(len, shown.splitlines())) <= widest
    for word in ("activation_matching", "weight_matching", "frank_wolfe"):
        assert word in shown
