"""Sinkhorn re-basin: what it minimises, from where, and what it says."""

from __future__ import annotations

import copy
import math
from itertools import permutations, product
from typing import ClassVar

import pytest
import torch

import alignkit
from alignkit.errors import SolverError, TaskError
from alignkit.solver import Problem, Status
from alignkit.solvers.sinkhorn import Sinkhorn
from alignkit.tasks.task import Task
from alignkit.testing import SolverContract, attention, convnet, independent_pair, mlp, planted_pair

# ---------------------------------------------------------------------- the solver


def task_of(pair, samples=64):
    """Reproduce what A computes."""
    inputs = pair.architecture.inputs(samples, seed=5)
    model = copy.deepcopy(pair.a).eval()
    with torch.no_grad():
        return Task(model, (inputs, model(inputs)), "mse")


QUICK = {"max_steps": 40, "check_every": 10, "learning_rate": 0.2}


class TestWithTask(SolverContract):
    """The contract holds for losses of a task too."""

    solver = Sinkhorn(objective="midpoint", max_steps=6, check_every=3, scalings=4)
    known_gaps: ClassVar = {
        "test_swap_gives_inverse": "the task is to do what A does: the two directions are two problems"
    }
    seeds = (0,)

    def task(self, pair):
        return task_of(pair, 32)


class TestWithoutLabels(SolverContract):
    """The contract holds for what the two networks do on average, which is the same in both directions."""

    solver = Sinkhorn(objective="outputs", max_steps=6, check_every=3, scalings=4)
    seeds = (0,)

    def task(self, pair):
        return Task(pair.a, (pair.architecture.inputs(32, seed=5), torch.zeros(32)), "mse")


@pytest.mark.parametrize("build", [lambda: mlp(4, 6, 5, 3), convnet, attention])
@pytest.mark.parametrize("objective", ["interpolation", "midpoint", "mixed"])
def test_task_objectives_lower_the_loss_between_the_models(build, objective):
    pair = independent_pair(build(), seed=1)
    solver = Sinkhorn(objective=objective, **QUICK)
    init = alignkit.Alignment.random(pair.graph, 3)
    solution = alignkit.solve(pair.bind(), solver=solver, init=init, task=task_of(pair))
    problem = Problem(pair.bind(), init, task_of(pair))
    before, after = solver.objective(problem, init), solver.objective(problem, solution.alignment)
    assert after < before
    assert (solution.history[0].objective, solution.history[-1].objective) == pytest.approx((before, after), rel=1e-5)


def test_midpoint_finds_the_best_of_all_orders_of_a_small_network():
    pair = independent_pair(mlp(3, 4, 3, 2), seed=2)
    task = task_of(pair)
    solver = Sinkhorn(objective="midpoint", max_steps=200, check_every=5, patience=100)
    problem = Problem(pair.bind(), None, task)
    orders = product(permutations(range(4)), permutations(range(3)))
    scores = sorted(
        solver.objective(problem, alignkit.Alignment(pair.graph, {"h1": torch.tensor(p), "h2": torch.tensor(q)}))
        for p, q in orders
    )
    solution = alignkit.solve(pair.bind(), solver=solver, task=task)
    assert solver.objective(problem, solution.alignment) <= scores[2]


def test_distance_goes_down_from_a_bad_start():
    pair = planted_pair(mlp(6, 10, 10, 4), noise=0.2)
    init = alignkit.Alignment.random(pair.graph, 1)
    solution = alignkit.solve(pair.bind(), solver=Sinkhorn(objective="distance", patience=100), init=init)
    assert solution.objective_after < 0.6 * solution.objective_init


def test_distance_is_taken_without_a_task_and_a_loss_needs_one():
    pair = independent_pair(mlp(3, 5, 2))
    solution = alignkit.solve(pair.bind(), solver="sinkhorn", start="identity", max_steps=20, check_every=5)
    assert solution.history[-1].objective == pytest.approx(solution.objective_after)
    with pytest.raises(SolverError, match=r"objective='mixed' works with data: pass task=alignkit\.Task"):
        alignkit.solve(pair.bind(), solver="sinkhorn", objective="mixed")


def test_weight_of_the_distance_counts_in_the_score():
    pair = independent_pair(mlp(3, 5, 2))
    problem = Problem(pair.bind(), None, task_of(pair))
    at = alignkit.Alignment.random(pair.graph, 0)
    plain, weighted = (Sinkhorn(objective="midpoint", distance_weight=w).objective(problem, at) for w in (0.0, 0.5))
    share = problem.objective.distance2(at) / problem.objective.squares
    assert weighted == pytest.approx(plain + 0.5 * share)


def test_the_start_can_be_any_alignment_and_a_chain_works():
    pair = independent_pair(mlp(4, 8, 7, 3))
    solution = alignkit.solve(
        pair.bind(), solver="weight_matching > sinkhorn", task=task_of(pair), objective="midpoint", max_steps=20
    )
    first, second = solution.stages
    assert second.objective_init == first.objective_after
    assert second.soft is not None


def test_soft_families_mix_the_units_of_every_pair_of_parents():
    pair = independent_pair(attention())
    solution = alignkit.solve(pair.bind(), solver="sinkhorn", max_steps=10, check_every=5)
    assert {name: tuple(m.shape) for name, m in solution.soft.matrices.items()} == {
        "model": (6, 6),
        "heads": (3, 3),
        "qk": (3, 3, 4, 4),
        "v": (3, 3, 4, 4),
        "hidden": (7, 7),
    }


def test_early_stopping_and_steps_are_reported():
    pair = independent_pair(mlp(4, 6, 3))
    solution = alignkit.solve(pair.bind(), solver="sinkhorn", check_every=2, patience=3, learning_rate=1e-9)
    assert solution.stats["steps"] == 6
    assert solution.status is Status.OK
    assert [step.iteration for step in solution.history] == [0, 2, 4, 6]


def test_a_diverging_loss_says_so_and_keeps_the_best():
    pair = independent_pair(mlp(4, 6, 3))

    def explodes(outputs, targets):
        return (outputs - targets).square().mean() * (math.nan if outputs.requires_grad else 1.0)

    inputs = pair.architecture.inputs(16)
    task = Task(pair.a, (inputs, torch.zeros(16, 3)), explodes)
    solution = alignkit.solve(pair.bind(), solver="sinkhorn", task=task, throw=False)
    assert solution.status is Status.NONFINITE
    assert solution.alignment.graph == pair.graph
    with pytest.raises(SolverError, match="Lower its learning rate"):
        alignkit.solve(pair.bind(), solver="sinkhorn", task=task)


def test_data_with_nan_and_tasks_of_another_model_are_refused():
    pair = independent_pair(mlp(4, 6, 3))
    inputs = pair.architecture.inputs(16)
    inputs[9] = math.nan
    task = Task(pair.a, (inputs, torch.zeros(16, 3)), "mse", chunk=8)
    with pytest.raises(TaskError, match=r"the data \(samples 8 to 15\) holds NaN"):
        alignkit.solve(pair.bind(), solver="sinkhorn", task=task)
    other = Task(mlp(4, 5, 3).model, (pair.architecture.inputs(4), torch.zeros(4, 3)), "mse")
    with pytest.raises(TaskError, match=r"'0\.weight' has shape \(6, 4\) in the weights, the model says \(5, 4\)"):
        alignkit.solve(pair.bind(), solver="sinkhorn", task=other)


# ---------------------------------------------------------------------- devices


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_ends_where_the_cpu_does():
    pair = independent_pair(mlp(4, 8, 7, 3))
    task = task_of(pair)
    on_cpu = alignkit.solve(pair.bind(), solver="sinkhorn", task=task, max_steps=20, check_every=5)
    pair_cuda = pair.graph.bind(copy.deepcopy(pair.a).cuda(), copy.deepcopy(pair.b).cuda())
    inputs = pair.architecture.inputs(64, seed=5)
    task_cuda = Task(pair.a, (inputs, pair.a(inputs).detach()), "mse", device="cuda")
    on_cuda = alignkit.solve(pair_cuda, solver="sinkhorn", task=task_cuda, max_steps=20, check_every=5)
    assert on_cuda.history[-1].objective == pytest.approx(on_cpu.history[-1].objective, rel=1e-3)
    assert all(matrix.is_cuda for matrix in on_cuda.soft.matrices.values())
