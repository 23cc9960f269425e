"""What is written, read back with TensorBoard's own reader; and that nothing is written unasked."""

from __future__ import annotations

import threading
import warnings
from importlib.metadata import PackageNotFoundError, distribution

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import alignkit_tensorboard
from alignkit.jobs.solve import solve
from alignkit.plugins.plugin_registry import Registry, registry
from alignkit.solver import Outcome, Solver, SolverOptions, Step
from alignkit.testing import mlp, planted_pair
from alignkit_tensorboard import VARIABLE, log_to


class Halves(Solver[SolverOptions]):
    """Reports 8, 4, 2 and 1, and keeps the units where they are."""

    name = "halves"

    def solve(self, problem, report):
        for i in range(4):
            report(Step(i + 1, 8.0 / 2**i))
        return Outcome(problem.start)


class Interrupted(Solver[SolverOptions]):
    name = "interrupted"

    def solve(self, problem, report):
        report(Step(1, 5.0))
        raise KeyboardInterrupt


@pytest.fixture
def pair():
    return planted_pair(mlp(3, 6, 2), noise=0.1).bind()


@pytest.fixture
def bare():
    return Registry([])


def runs(folder):
    return sorted(path for path in folder.iterdir() if path.is_dir())


def scalars(run, tag):
    events = EventAccumulator(str(run))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(tag)]


def test_every_step_and_the_result_are_written(pair, bare, tmp_path):
    with log_to(tmp_path / "runs", bare):
        solution = solve(pair, solver=Halves(), registry=bare, seed=7)
    (run,) = runs(tmp_path / "runs")
    assert run.name.endswith("halves-seed7")
    assert scalars(run, "objective") == [(1, 8), (2, 4), (3, 2), (4, 1)]
    before, after = pytest.approx(solution.objective_before), pytest.approx(solution.objective_after)
    assert scalars(run, "squared_distance") == [(0, before), (4, after)]
    assert scalars(run, "seconds") == [(4, pytest.approx(solution.seconds))]


def test_stages_of_a_chain_and_solves_in_threads_are_runs_of_their_own(pair, bare, tmp_path):
    with log_to(tmp_path, bare):
        solve(pair, solver=["weight_matching", Halves()], registry=bare)
        threads = [
            threading.Thread(target=solve, args=(pair,), kwargs={"solver": Halves(), "registry": bare})
            for _ in range(3)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    names = [run.name.split("-", 3)[3] for run in runs(tmp_path)]
    assert sorted(names) == sorted(["weight_matching-seed0", *["halves-seed0"] * 4])
    for run in runs(tmp_path):
        if "halves" in run.name:
            assert [value for _, value in scalars(run, "objective")] == [8, 4, 2, 1]


def test_an_interrupted_solve_keeps_its_steps(pair, bare, tmp_path):
    with log_to(tmp_path, bare):
        solve(pair, solver=Interrupted(), registry=bare)
    (run,) = runs(tmp_path)
    assert scalars(run, "objective") == [(1, 5)]


def test_nothing_is_written_outside_of_the_block(pair, bare, tmp_path):
    with log_to(tmp_path / "runs", bare):
        pass
    solve(pair, solver=Halves(), registry=bare)
    assert not (tmp_path / "runs").exists()


def test_the_environment_variable_switches_the_package_on(pair, bare, tmp_path, monkeypatch):
    bare.register(alignkit_tensorboard)
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.chdir(tmp_path)
    solve(pair, solver=Halves(), registry=bare)
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setenv(VARIABLE, str(tmp_path / "runs"))
    solve(pair, solver=Halves(), registry=bare)
    assert len(runs(tmp_path / "runs")) == 1


def test_a_folder_that_cannot_be_written_does_not_stop_the_solve(pair, bare, tmp_path):
    (tmp_path / "file").write_text("")
    with warnings.catch_warnings(record=True) as caught, log_to(tmp_path / "file", bare):
        warnings.simplefilter("always")
        assert solve(pair, solver=Halves(), registry=bare).status.name == "OK"
    assert any("The solve continues" in str(warning.message) for warning in caught)


def is_installed() -> bool:
    try:
        distribution("alignkit-tensorboard")
    except PackageNotFoundError:
        return False
    return True


@pytest.mark.skipif(
    not is_installed(), reason="alignkit-tensorboard is not installed: pip install plugins/alignkit-tensorboard"
)
def test_the_installed_package_is_loaded():
    assert alignkit_tensorboard in registry().plugins.manager.get_plugins()
