"""The Sinkhorn operator and its gradient, and Sinkhorn re-basin."""

from __future__ import annotations

import copy
import math
from itertools import permutations, product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import alignkit
from alignkit.errors import SolverError, TaskError
from alignkit.matching.sinkhorn import doubly_stochastic, implicit_gradient, plan, potentials, sinkhorn
from alignkit.solver import Problem, Status
from alignkit.solvers.sinkhorn import Sinkhorn
from alignkit.tasks.minibatches import Minibatches
from alignkit.tasks.task import Task
from alignkit.testing import SolverContract, attention, convnet, independent_pair, mlp, planted_pair

# ---------------------------------------------------------------------- the operator


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def unrolled(logits, sweeps=400):
    """The textbook loop, differentiated through every iteration."""
    for _ in range(sweeps):
        logits = logits - logits.logsumexp(-1, keepdim=True)
        logits = logits - logits.logsumexp(-2, keepdim=True)
    return logits.exp()


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 9), st.floats(0.1, 4))
def test_rows_and_columns_sum_to_one_and_the_scaling_is_by_row_and_column(seed, n, spread):
    logits = spread * normal(2, n, n, seed=seed)
    matrix = sinkhorn(logits, max_scalings=20_000)
    for axis in (-1, -2):
        assert torch.allclose(matrix.sum(axis), torch.ones(2, n, dtype=torch.float64), atol=1e-8)
    # What was added to the logits has no interaction of rows and columns.
    added = matrix.log() - logits
    centred = added - added.mean(-1, keepdim=True) - added.mean(-2, keepdim=True) + added.mean((-1, -2), keepdim=True)
    assert float(centred.abs().max()) < 1e-8


def test_columns_of_cold_logits_follow_linear_assignment():
    logits = normal(6, 6, seed=3)
    matrix = sinkhorn(logits / 0.01, max_scalings=100_000)
    assert torch.equal(matrix.argmax(-1), alignkit.matching.linear_assignment(logits))


def test_logits_of_any_size_stay_finite():
    logits = 1e4 * normal(3, 7, 7, dtype=torch.float32)
    logits.requires_grad_()
    matrix = sinkhorn(logits, max_scalings=200)
    (matrix * normal(3, 7, 7, seed=1, dtype=torch.float32)).sum().backward()
    assert bool(matrix.isfinite().all())
    assert bool(logits.grad.isfinite().all())


@pytest.mark.parametrize("spread", [0.3, 1.0, 3.0])
def test_implicit_gradient_is_that_of_the_unrolled_loop(spread):
    weights = normal(2, 6, 6, seed=9)
    gradients = []
    for operator in (lambda x: sinkhorn(x, max_scalings=20_000, tolerance=1e-13), lambda x: unrolled(x, 4000)):
        logits = (spread * normal(2, 6, 6, seed=4)).requires_grad_()
        (operator(logits) * weights).sum().backward()
        gradients.append(logits.grad)
    assert torch.allclose(gradients[0], gradients[1], rtol=1e-7, atol=1e-10)


def test_gradcheck_in_float64():
    def operator(x):
        return sinkhorn(x, max_scalings=5000, tolerance=1e-13)

    assert torch.autograd.gradcheck(operator, normal(2, 4, 4, seed=1).requires_grad_())
    assert torch.autograd.gradcheck(operator, normal(1, 1).requires_grad_())


def test_memory_for_the_gradient_does_not_grow_with_sweeps():
    def saved_elements(operator):
        count = 0

        def pack(tensor):
            nonlocal count
            count += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            operator(normal(8, 8).requires_grad_())
        return count

    few, many = (saved_elements(lambda x, n=n: sinkhorn(x, max_scalings=n, tolerance=0)) for n in (10, 500))
    assert few == many == 64
    assert saved_elements(lambda x: unrolled(x, 500)) > 100 * many


def test_gradient_of_unfinished_scaling_keeps_the_sums_that_there_are():
    """Gradients are orthogonal to every change that the potentials would undo."""
    logits = 3 * normal(5, 5, seed=2)
    matrix = plan(logits, potentials(logits, max_scalings=2, tolerance=0))
    gradient = implicit_gradient(matrix, normal(5, 5, seed=3))
    assert torch.allclose(gradient.sum(-1), torch.zeros(5, dtype=torch.float64), atol=1e-10)
    assert torch.allclose(gradient.sum(-2), torch.zeros(5, dtype=torch.float64), atol=1e-10)


def test_potentials_go_on_from_where_they_were():
    logits = 2 * normal(3, 20, 20)
    first = potentials(logits, max_scalings=5000)
    again = potentials(logits + 0.01 * normal(3, 20, 20, seed=1), first, max_scalings=5000)
    afresh = potentials(logits + 0.01 * normal(3, 20, 20, seed=1), max_scalings=5000)
    assert again.scalings < afresh.scalings
    assert max(again.error, afresh.error) <= 1e-9


def test_completion_is_doubly_stochastic_and_changes_little():
    logits = normal(4, 6, 6)
    matrix = plan(logits, potentials(logits, max_scalings=3, tolerance=0))
    full = doubly_stochastic(matrix)
    for axis in (-1, -2):
        assert torch.allclose(full.sum(axis), torch.ones(4, 6, dtype=torch.float64), atol=1e-12)
    assert float(full.min()) >= 0
    assert float((full - matrix).abs().sum()) <= 4 * float((matrix.sum(-1) - 1).abs().sum())
    exact = sinkhorn(logits, max_scalings=5000, tolerance=1e-13)
    assert torch.allclose(doubly_stochastic(exact), exact, atol=1e-11)


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
    seeds = (0,)

    def task(self, pair):
        return task_of(pair, 32)


@pytest.mark.parametrize("build", [lambda: mlp(4, 6, 5, 3), convnet, attention])
@pytest.mark.parametrize("objective", ["interpolation", "midpoint", "mixed"])
def test_task_objectives_lower_the_loss_between_the_models(build, objective):
    pair = independent_pair(build(), seed=1)
    solver = Sinkhorn(objective=objective, **QUICK)
    init = alignkit.Alignment.random(pair.graph, 3)
    found = alignkit.solve(pair.bind(), solver=solver, init=init, task=task_of(pair))
    problem = Problem(pair.bind(), init, task_of(pair))
    before, after = solver.objective(problem, init), solver.objective(problem, found.alignment)
    assert after < before
    assert (found.history[0].objective, found.history[-1].objective) == pytest.approx((before, after), rel=1e-5)


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
    found = alignkit.solve(pair.bind(), solver=solver, task=task)
    assert solver.objective(problem, found.alignment) <= scores[2]


def test_distance_goes_down_from_a_bad_start():
    pair = planted_pair(mlp(6, 10, 10, 4), noise=0.2)
    init = alignkit.Alignment.random(pair.graph, 1)
    found = alignkit.solve(pair.bind(), solver=Sinkhorn(objective="distance", patience=100), init=init)
    assert found.objective_after < 0.6 * found.objective_init


def test_distance_is_taken_without_a_task_and_a_loss_needs_one():
    pair = independent_pair(mlp(3, 5, 2))
    found = alignkit.solve(pair.bind(), solver="sinkhorn", start="identity", max_steps=20, check_every=5)
    assert found.history[-1].objective == pytest.approx(found.objective_after)
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
    found = alignkit.solve(
        pair.bind(), solver="weight_matching > sinkhorn", task=task_of(pair), objective="midpoint", max_steps=20
    )
    first, second = found.stages
    assert second.objective_init == first.objective_after
    assert second.soft is not None


def test_soft_families_mix_the_units_of_every_pair_of_parents():
    pair = independent_pair(attention())
    found = alignkit.solve(pair.bind(), solver="sinkhorn", max_steps=10, check_every=5)
    assert {name: tuple(m.shape) for name, m in found.soft.matrices.items()} == {
        "model": (6, 6),
        "heads": (3, 3),
        "qk": (3, 3, 4, 4),
        "v": (3, 3, 4, 4),
        "hidden": (7, 7),
    }


def test_early_stopping_and_steps_are_reported():
    pair = independent_pair(mlp(4, 6, 3))
    found = alignkit.solve(pair.bind(), solver="sinkhorn", check_every=2, patience=3, learning_rate=1e-9)
    assert found.stats["steps"] == 6
    assert found.status is Status.OK
    assert [step.iteration for step in found.history] == [0, 2, 4, 6]


def test_a_diverging_loss_says_so_and_keeps_the_best():
    pair = independent_pair(mlp(4, 6, 3))

    def explodes(outputs, targets):
        return (outputs - targets).square().mean() * (math.nan if outputs.requires_grad else 1.0)

    inputs = pair.architecture.inputs(16)
    task = Task(pair.a, (inputs, torch.zeros(16, 3)), explodes)
    found = alignkit.solve(pair.bind(), solver="sinkhorn", task=task, throw=False)
    assert found.status is Status.NONFINITE
    assert found.alignment.graph == pair.graph
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
    with pytest.raises(TaskError, match=r"0\.weight has shape \[6, 4\] instead of \[5, 4\]"):
        alignkit.solve(pair.bind(), solver="sinkhorn", task=other)


# ---------------------------------------------------------------------- minibatches


def draws(task, samples, size, count, seed=0):
    batches = Minibatches(task, samples, size, torch.Generator().manual_seed(seed))
    return [batches.draw() for _ in range(count)]


def test_every_sample_comes_once_before_any_comes_again():
    model = nn.Linear(1, 1)
    inputs = torch.arange(20.0)[:, None]
    for source in ((inputs, inputs), list(zip(inputs.split(3), inputs.split(3), strict=True))):
        found = draws(Task(model, source, "mse"), 18, 5, 4)
        assert sorted(torch.cat([batch.inputs for batch in found]).flatten().tolist()) == list(range(18))
        assert all(torch.equal(batch.inputs, batch.targets) for batch in found)
        again = draws(Task(model, source, "mse"), 18, 5, 4)
        assert all(torch.equal(x.inputs, y.inputs) for x, y in zip(found, again, strict=True))


def test_batches_that_cannot_be_put_together_are_drawn_by_themselves():
    model = nn.Linear(1, 1)
    sources = [({"input": torch.ones(4, length, 1)}, torch.ones(4, length, 1)) for length in (2, 3, 2)]
    found = draws(Task(model, sources, "mse"), 100, 8, 2)
    assert sorted(batch.inputs["input"].shape for batch in found) == [(4, 3, 1), (8, 2, 1)]


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
