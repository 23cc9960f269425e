"""Solvers that follow gradients on groups of every kind: with labels, without, from any start."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import nn

import alignkit
from alignkit import Alignment, SymmetryGraph, Task
from alignkit.errors import SolverError, TaskError
from alignkit.graph.kinds import KINDS, PLANES
from alignkit.matching.soft_alignment import SoftAlignment
from alignkit.solver import Problem
from alignkit.solvers.moving_alignment import MovingAlignment, rotations_of_pairs
from alignkit.solvers.sinkhorn import Sinkhorn
from alignkit.solvers.straight_through import StraightThrough
from alignkit.tasks.goals import by_outputs
from alignkit.tasks.merged_runs import merged_runs
from alignkit.testing import KIND_ARCHITECTURES, decoder, independent_pair, mlp, planted_pair
from alignkit.testing.contract import reproduction

kinds = pytest.mark.parametrize("kind", KIND_ARCHITECTURES)
STEPS = {"max_steps": 30, "check_every": 5, "patience": 100, "batch_size": 32}
SOLVERS = {
    "sinkhorn": lambda objective: Sinkhorn(objective=objective, **STEPS),
    "sinkhorn that moves orders": lambda objective: Sinkhorn(objective=objective, learning_rate=0.1, **STEPS),
    "straight_through": lambda objective: StraightThrough(objective=objective, learning_rate=0.05, **STEPS),
}
solvers = pytest.mark.parametrize("solver", SOLVERS)


def unlabelled(pair, targets=0.0):
    inputs = pair.architecture.inputs(64, seed=5)
    return Task(pair.a, (inputs, torch.full((64,), targets)), "mse")


@kinds
@solvers
@pytest.mark.parametrize("objective", ["midpoint", "outputs"])
def test_the_loss_in_the_middle_falls_below_that_of_the_start(kind, solver, objective):
    pair = independent_pair(KIND_ARCHITECTURES[kind](), seed=1)
    task = reproduction(pair) if objective == "midpoint" else unlabelled(pair)
    start = Alignment.random(pair.graph, 3)
    solution = alignkit.solve(pair.bind(), solver=SOLVERS[solver](objective), init=start, task=task)
    values = [step.objective for step in solution.history]
    assert values[-1] < 0.95 * values[0]
    assert all(after <= before for before, after in pairwise(values))
    problem = Problem(pair.bind(), None, task)
    own = SOLVERS[solver](objective).objective
    assert own(problem, solution.alignment) == pytest.approx(values[-1], rel=1e-5)
    assert own(problem, start) == pytest.approx(values[0], rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("kind", "size"), [(k, n) for k, facts in KINDS.items() if facts.mark for n in (1, 2)])
@solvers
def test_graphs_of_one_small_group(solver, kind, size, dtype):
    """Nothing but one group of a kind: no orders that could move beside it, one unit, half precision."""
    mark, size = KINDS[kind].mark, 2 * size if kind in PLANES else size
    graph = SymmetryGraph.from_spec(
        {"0.weight": f"{mark}h .", "1.weight": f". {mark}h"}, {"0.weight": (size, 3), "1.weight": (2, size)}
    )
    generator = torch.Generator().manual_seed(size)
    a, b = (torch.nn.Sequential(nn.Linear(3, size, bias=False), nn.Linear(size, 2, bias=False)) for _ in "ab")
    for model in (a, b):
        for parameter in model.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator).to(dtype)
    task = Task(a, (torch.randn(16, 3, generator=generator).to(dtype), torch.zeros(16, 2, dtype=dtype)), "mse")
    solution = alignkit.solve(graph, a, b, solver=SOLVERS[solver]("outputs"), task=task)
    assert solution.history[-1].objective <= solution.history[0].objective


@kinds
@solvers
def test_planted_elements_are_found_without_labels(kind, solver):
    pair = planted_pair(KIND_ARCHITECTURES[kind](), seed=2)
    solution = alignkit.solve(pair.bind(), solver=SOLVERS[solver]("outputs"), task=unlabelled(pair))
    assert solution.alignment == pair.answer
    assert solution.objective_after <= 1e-20 * solution.objective_before


@pytest.mark.parametrize("name", ["sinkhorn", "straight_through"])
def test_without_labels_targets_have_no_say(name):
    pair = independent_pair(decoder("centred"), seed=3)
    found = [
        alignkit.solve(pair.bind(), solver=SOLVERS[name]("outputs"), task=unlabelled(pair, targets)).alignment
        for targets in (0.0, 7.0)
    ]
    assert found[0] == found[1]


def test_sinkhorn_turns_noise_back():
    """From an alignment beside the planted one, with nothing but outputs to go by."""
    pair = planted_pair(decoder(), seed=1)
    near = {}
    for name, element in pair.answer.elements.items():
        if pair.graph.rotates(name):
            drawn = torch.randn(element.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
            element = torch.linalg.matrix_exp(0.1 * (drawn - drawn.mT)) @ element
        near[name] = element
    init = Alignment(pair.graph, near)
    solution = alignkit.solve(
        pair.bind(), solver="sinkhorn", objective="outputs", init=init, task=unlabelled(pair), max_steps=200
    )
    assert solution.objective_after < 0.25 * solution.objective_init
    assert solution.history[-1].objective < 0.05 * solution.history[0].objective


def test_orders_stay_where_units_rotate_unless_a_rate_is_given():
    pair = independent_pair(decoder(), seed=4)
    start = Alignment.random(pair.graph, 1)

    def moved(**options):
        found = alignkit.solve(
            pair.bind(), solver="sinkhorn", objective="outputs", init=start, task=unlabelled(pair), **STEPS, **options
        )
        count = (found.alignment @ start.inverse()).moved()
        return {name for name, each in count.items() if each}, found

    groups, found = moved()
    assert groups == {"model", "qk", "v"}
    assert isinstance(found.soft, SoftAlignment)
    assert found.soft.round() == found.alignment
    assert "hidden" in moved(learning_rate=0.5)[0]


@kinds
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("rate", "turn"), [(0.2, 1.0), (1e3, 0.06), (1e6, 1.0)])
def test_steps_of_any_size_end_at_an_element_and_at_something_to_start_from(kind, rate, turn, dtype):
    pair = independent_pair(KIND_ARCHITECTURES[kind](), seed=2)
    a, b = pair.a.to(dtype), pair.b.to(dtype)
    quick = {"objective": "distance", "max_steps": 12, "check_every": 4, "patience": 100, "scalings": 1}
    solver = Sinkhorn(learning_rate=rate, turn_rate=turn, final_temperature=0.02, **quick)
    solution = alignkit.solve(pair.graph, a, b, solver=solver)
    Alignment(pair.graph, solution.alignment.elements)
    assert all(matrix.isfinite().all() for matrix in solution.soft.matrices.values())
    assert solution.objective_after <= solution.objective_before
    again = alignkit.solve(pair.graph, a, b, solver=solver, init=solution)
    assert again.objective_after <= solution.objective_after * (1 + 1e-12)


@pytest.mark.parametrize("solver", [Sinkhorn, StraightThrough])
@pytest.mark.parametrize("rate", [-1.0, 0.0, 1e7, 1e38, float("inf"), float("nan")])
def test_learning_rates_that_no_float_can_follow_are_refused(solver, rate):
    with pytest.raises(SolverError, match="learning_rate"):
        solver(learning_rate=rate)


@kinds
def test_rotations_of_pairs_that_are_not_put_together_are_the_best_by_weights(kind):
    """A copy whose heads changed places is found from its own heads, because those of every pair are known."""
    pair = planted_pair(KIND_ARCHITECTURES[kind](), seed=0)
    graph, problem = pair.graph, Problem(pair.bind())
    matrices = rotations_of_pairs(problem, pair.answer)
    assert set(matrices) == {name for name in graph.groups if graph.rotates(name)}
    orders = {n: m for n, m in SoftAlignment.from_alignment(pair.answer).matrices.items() if n not in matrices}
    assert SoftAlignment(graph, {**orders, **matrices}).round() == pair.answer
    for matrix in matrices.values():
        eye = torch.eye(matrix.shape[-1], dtype=torch.float64)
        torch.testing.assert_close(matrix @ matrix.mT, eye.expand_as(matrix))


def test_units_that_change_sign_have_logits_of_both_signs():
    pair = planted_pair(KIND_ARCHITECTURES["signed"](), seed=1)
    moving = MovingAlignment(pair.answer, Problem(pair.bind(), dtype=torch.float64), confidence=1.5)
    soft = moving.now(1.0)
    assert soft.round() == pair.answer
    hard = SoftAlignment.from_alignment(pair.answer).matrices
    for name, matrix in soft.matrices.items():
        assert (matrix[hard[name] == 0] == 0).all()  # one sign is as likely as the other
        assert torch.equal(matrix.sign(), hard[name].sign().double())
        assert float(matrix.detach().abs().sum(-1).max()) < 1
    sure = MovingAlignment(pair.answer, Problem(pair.bind(), dtype=torch.float64), confidence=40.0).now(1.0)
    for name, matrix in sure.matrices.items():
        torch.testing.assert_close(matrix.detach(), hard[name].double(), atol=1e-6, rtol=0)


class TestOutputs:
    """What "outputs" measures."""

    def test_it_is_zero_where_the_middle_does_what_both_do_on_average(self):
        pair = planted_pair(mlp(3, 4, 2), seed=0)
        task = unlabelled(pair)
        problem = Problem(pair.bind(), None, task)
        for solver in (Sinkhorn(objective="outputs"), StraightThrough(objective="outputs")):
            assert solver.objective(problem, pair.answer) == pytest.approx(0, abs=1e-10)
            assert solver.objective(problem, Alignment.identity(pair.graph)) > 1e-3

    def test_it_needs_data_and_outputs(self):
        pair = independent_pair(mlp(3, 4, 2), seed=0)
        with pytest.raises(SolverError, match="objective='outputs' works with data"):
            alignkit.solve(pair.bind(), solver="sinkhorn", objective="outputs")

        class Silent(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.weight = torch.nn.Parameter(torch.ones(2))

            def forward(self, x):
                return {"ids": x.argmax(-1)}

        model = Silent()
        task = Task(model, (torch.ones(4, 2), torch.ones(4)), "mse")
        weights = task.checked(model)
        with pytest.raises(TaskError, match="outputs in the middle are compared, and the model returns dict"):
            by_outputs(merged_runs(task), weights, weights, next(iter(task.batches)))
