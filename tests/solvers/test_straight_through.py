"""Straight-through matching: what it finds, from where, and what it says."""

from __future__ import annotations

import copy
import math
from itertools import permutations, product

import pytest
import torch

import alignkit
from alignkit.errors import SolverError
from alignkit.solver import Problem, Status
from alignkit.solvers.straight_through import FreeWeights, StraightThrough, StraightThroughOptions
from alignkit.tasks.task import Task
from alignkit.testing import attention, convnet, independent_pair, mlp, planted_pair


def task_of(pair, samples=64):
    """Reproduce what A computes."""
    inputs = pair.architecture.inputs(samples, seed=5)
    model = copy.deepcopy(pair.a).eval()
    with torch.no_grad():
        return Task(model, (inputs, model(inputs)), "mse")


QUICK = {"max_steps": 60, "check_every": 3, "learning_rate": 0.03, "patience": 100}


@pytest.mark.parametrize("build", [lambda: mlp(4, 8, 7, 3), convnet, attention])
def test_the_loss_in_the_middle_goes_down(build):
    pair = independent_pair(build(), seed=1)
    init = alignkit.Alignment.random(pair.graph, 3)
    solver = StraightThrough(**QUICK)
    solution = alignkit.solve(pair.bind(), solver=solver, init=init, task=task_of(pair))
    problem = Problem(pair.bind(), init, task_of(pair))
    before, after = solver.objective(problem, init), solver.objective(problem, solution.alignment)
    assert after < before
    assert (solution.history[0].objective, solution.history[-1].objective) == pytest.approx((before, after), rel=1e-5)


@pytest.mark.parametrize("seed", [0, 1])
def test_the_best_of_all_orders_of_a_small_network(seed):
    """Where weight matching is in the middle of them."""
    pair = independent_pair(mlp(3, 4, 3, 2), seed=seed)
    task = task_of(pair)
    solver = StraightThrough(max_steps=200, check_every=1, patience=200, learning_rate=0.05)
    problem = Problem(pair.bind(), None, task)
    scores = [
        solver.objective(problem, alignkit.Alignment(pair.graph, {"h1": torch.tensor(p), "h2": torch.tensor(q)}))
        for p, q in product(permutations(range(4)), permutations(range(3)))
    ]
    solution = alignkit.solve(pair.bind(), solver=solver, task=task)
    assert solver.objective(problem, solution.alignment) <= sorted(scores)[2]


@pytest.mark.parametrize("build", [lambda: mlp(4, 8, 7, 3), attention])
def test_the_first_projection_is_no_farther_than_the_start(build):
    """Free weights begin halfway to the start, and projecting them never moves away from them."""
    pair = planted_pair(build(), noise=0.1)
    problem = Problem(pair.bind())
    free = FreeWeights(problem, pair.answer, StraightThroughOptions(learning_rate=0.01, projection_sweeps=5))
    projected = free.project()
    assert projected == pair.answer
    far = alignkit.Alignment.random(pair.graph, 5)
    free = FreeWeights(problem, far, StraightThroughOptions(learning_rate=0.01, projection_sweeps=5))
    found = free.project()

    def distance(alignment):
        moved = alignment.apply(dict(problem.b))
        return sum(float((free.weights[n] - moved[n]).double().square().sum()) for n in moved)

    assert distance(found) <= distance(far)


def test_it_runs_after_other_solvers_and_never_ends_worse():
    pair = independent_pair(mlp(4, 8, 7, 3))
    task = task_of(pair)
    first = alignkit.solve(pair.bind(), solver="sinkhorn", task=task, max_steps=40, check_every=10)
    solver = StraightThrough(**QUICK)
    second = alignkit.solve(pair.bind(), solver=solver, init=first, task=task)
    problem = Problem(pair.bind(), first.alignment, task)
    assert solver.objective(problem, second.alignment) <= solver.objective(problem, first.alignment)
    assert second.objective_init == first.objective_after


def test_without_a_task_it_says_what_to_pass():
    pair = independent_pair(mlp(3, 5, 2))
    with pytest.raises(SolverError, match=r"works with data: pass task=alignkit\.Task"):
        alignkit.solve(pair.bind(), solver="straight_through")


def test_early_stopping_and_steps_are_reported():
    pair = independent_pair(mlp(4, 6, 3))
    solution = alignkit.solve(
        pair.bind(),
        solver="straight_through",
        task=task_of(pair),
        learning_rate=1e-9,
        check_every=2,
        patience=3,
    )
    assert [step.iteration for step in solution.history] == [0, 2, 4, 6]
    assert solution.status is Status.OK


def test_a_diverging_loss_says_so():
    pair = independent_pair(mlp(4, 6, 3))

    def explodes(outputs, targets):
        return (outputs - targets).square().mean() * (math.nan if outputs.requires_grad else 1.0)

    task = Task(pair.a, (pair.architecture.inputs(16), torch.zeros(16, 3)), explodes)
    solution = alignkit.solve(pair.bind(), solver="straight_through", task=task, throw=False)
    assert solution.status is Status.NONFINITE


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_lowers_the_loss_too():
    pair = independent_pair(mlp(4, 8, 7, 3))
    on_device = pair.graph.bind(copy.deepcopy(pair.a).cuda(), copy.deepcopy(pair.b).cuda())
    inputs = pair.architecture.inputs(64, seed=5)
    task = Task(pair.a, (inputs, pair.a(inputs).detach()), "mse", device="cuda")
    init = alignkit.Alignment.random(pair.graph, 3)
    solution = alignkit.solve(on_device, solver=StraightThrough(**QUICK), init=init, task=task)
    assert solution.history[-1].objective < solution.history[0].objective
