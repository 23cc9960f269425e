"""Ctrl-C in `alignkit.solve` returns the best so far; jobs that solve inside stop."""

from __future__ import annotations

import pytest

import alignkit
from alignkit import Alignment, Status, Step
from alignkit.plugins.plugin_registry import Registry
from alignkit.solver import Solver, SolverOptions
from alignkit.testing import mlp, planted_pair


class Presses(Solver[SolverOptions]):
    """Reports some steps, then somebody presses Ctrl-C."""

    name = "presses"

    def __init__(self, *steps: Step) -> None:
        super().__init__()
        self.steps = steps

    def solve(self, problem, report):
        for step in self.steps:
            report(step)
        raise KeyboardInterrupt


@pytest.fixture
def pair():
    return planted_pair(mlp(3, 6, 2)).bind()


def test_the_alignment_of_the_lowest_objective_comes_back(pair) -> None:
    orders = [Alignment.random(pair.graph, seed) for seed in range(4)]
    objectives = [3.0, 1.0, 2.0, 0.5]
    steps = [Step(i, value, "", order) for i, (value, order) in enumerate(zip(objectives, orders, strict=True))]
    steps[3] = Step(3, 0.5)  # without an alignment it cannot be returned
    solution = alignkit.solve(pair, solver=Presses(*steps), registry=Registry([]))
    assert solution.status is Status.INTERRUPTED
    assert not solution.status.failed
    assert solution.alignment == orders[1]
    assert [step.objective for step in solution.history] == objectives
    assert all(step.alignment is None for step in solution.history)
    assert "was interrupted" in solution.explain()


def test_without_a_step_the_start_comes_back(pair) -> None:
    init = Alignment.random(pair.graph, 5)
    assert alignkit.solve(pair, solver=Presses(), init=init, registry=Registry([])).alignment == init
    assert alignkit.solve(pair, solver=Presses(), registry=Registry([])).alignment == Alignment.identity(pair.graph)


def test_an_alignment_of_another_graph_is_not_returned(pair) -> None:
    other = Alignment.identity(mlp(3, 4, 2).graph())
    solution = alignkit.solve(pair, solver=Presses(Step(1, 1.0, "", other)), registry=Registry([]))
    assert solution.status is Status.INTERRUPTED
    assert solution.alignment == Alignment.identity(pair.graph)
    assert "another graph" in solution.detail


def test_a_chain_stops(pair) -> None:
    order = Alignment.random(pair.graph, 1)
    chain = ["weight_matching", Presses(), "weight_matching"]
    solution = alignkit.solve(pair, solver=chain, registry=Registry([]))
    assert [stage.solver for stage in solution.stages] == ["weight_matching", "presses"]
    assert solution.status is Status.INTERRUPTED
    assert solution.objective_after == 0  # what the first stage found
    assert order.graph == solution.graph


def test_an_interrupted_solution_survives_a_file(pair, tmp_path) -> None:
    solution = alignkit.solve(pair, solver=Presses(), registry=Registry([]))
    solution.save(tmp_path / "s.safetensors")
    assert alignkit.Solution.load(tmp_path / "s.safetensors", pair.graph).status is Status.INTERRUPTED


JOBS = {
    "merge": lambda pair: alignkit.merge(pair, solver=Presses()),
    "distance": lambda pair: alignkit.distance(pair, solver=Presses()),
    "transport": lambda pair: alignkit.transport(pair, tuned=pair.a, solver=Presses()),
    "align_many": lambda pair: alignkit.align_many(pair, solver=Presses()),
    "compare": lambda pair: alignkit.compare(pair, solvers=[Presses()]),
}


@pytest.mark.parametrize("job", JOBS)
def test_jobs_stop(job: str, pair) -> None:
    with pytest.raises(KeyboardInterrupt):
        JOBS[job](pair)


def test_a_second_ctrl_c_ends_the_solve_and_closes_observers(pair, monkeypatch) -> None:
    ended = []

    class Watches:
        @alignkit.hookimpl
        def alignkit_solve_finished(self, solution):
            ended.append(solution)

    def pressed(*arguments):
        raise KeyboardInterrupt

    registry = Registry([])
    registry.register(Watches())
    monkeypatch.setattr("alignkit.jobs.solver_run.account", pressed)
    with pytest.raises(KeyboardInterrupt):
        alignkit.solve(pair, solver=Presses(), registry=registry)
    assert ended == [None]


def test_every_sweep_of_weight_matching_is_told_as_it_ends() -> None:
    """Not only when all is done: a Ctrl-C would lose them."""
    seen = []

    class Watches:
        @alignkit.hookimpl
        def alignkit_solve_step(self, step):
            seen.append(step.iteration)
            if len(seen) == 2:
                raise KeyboardInterrupt

    registry = Registry([])
    registry.register(Watches())
    solution = alignkit.solve(planted_pair(mlp(5, 30, 30, 30, 2), noise=1.0).bind(), registry=registry)
    assert solution.status is Status.INTERRUPTED
    assert len(solution.history) == 2
    assert any(solution.moved.values())
