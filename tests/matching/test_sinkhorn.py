"""The Sinkhorn operator and its gradient."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import alignkit
import pretended
from alignkit.matching.sinkhorn import doubly_stochastic, implicit_gradient, plan, potentials, sinkhorn


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def unrolled(logits, sweeps=400):
    """The textbook loop, differentiated through every iteration."""
    for _ in range(sweeps):
        logits = logits - logits.logsumexp(-1, keepdim=True)
        logits = logits - logits.logsumexp(-2, keepdim=True)
    return logits.exp()


@settings(max_examples=40)
@given(st.integers(0, 10_000), st.integers(1, 9), st.floats(0.1, 4))
def test_rows_and_columns_sum_to_one_and_the_scaling_is_by_row_and_column(seed, n, spread):
    logits = spread * normal(2, n, n, seed=seed)
    matrix = sinkhorn(logits, max_scalings=20_000)
    # Where rows hardly mix it takes longer, and how far they have come is told.
    told = float(potentials(logits, max_scalings=20_000).error)
    ones = torch.ones(2, n, dtype=torch.float64)
    assert torch.allclose(matrix.sum(-1), ones, atol=max(1e-8, 1.001 * told))
    assert torch.allclose(matrix.sum(-2), ones, atol=1e-8)
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


needs_pretending = pytest.mark.skipif(not pretended.registered(), reason="torch cannot have devices written in Python")


@needs_pretending
@settings(max_examples=40)
@given(st.integers(0, 10_000), st.integers(1, 9), st.floats(0.1, 8), st.integers(1, 64), st.booleans())
def test_potentials_on_a_device_are_those_of_the_cpu_and_read_nothing(seed, n, spread, scalings, is_first):
    logits = spread * normal(2, n, n, seed=seed, dtype=torch.float32)
    start = None if is_first else potentials(logits + 0.1 * normal(2, n, n, dtype=torch.float32))
    expected = plan(logits, potentials(logits, start, max_scalings=scalings))
    with pretended.pretended() as device:
        there = logits.to(device)
        begun = None if start is None else replace(start, rows=start.rows.to(device), columns=start.columns.to(device))
        with pretended.Transfers() as transfers:
            matrix = plan(there, potentials(there, begun, max_scalings=scalings))
        assert transfers.scalars == transfers.to_host == 0
        assert torch.equal(matrix.cpu(), expected)


@needs_pretending
@pytest.mark.parametrize("spread", [100.0, 1e4])
def test_columns_sum_to_one_on_a_device_even_where_factors_leave_float32(spread):
    logits = spread * normal(3, 12, 12, dtype=torch.float32)
    with pretended.pretended() as device:
        there = logits.to(device)
        matrix = plan(there, potentials(there, max_scalings=40)).cpu()
    assert torch.allclose(matrix.sum(-2), torch.ones(3, 12), atol=1e-6 * spread)  # rounding of the logits


@given(
    size=st.integers(1, 12),
    seed=st.integers(0, 2**31),
    off=st.sampled_from([0.0, 1e-16, 1e-8, 1e-3, 1.0]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_matrices_that_are_nearly_doubly_stochastic_are_completed(size, seed, off, dtype):
    """Permutations to rounding among them, whose sums are on both sides of 1."""
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.eye(size, dtype=dtype)[torch.randperm(size, generator=generator)]
    matrix = (matrix + off * torch.randn(size, size, generator=generator, dtype=dtype)).clamp(min=0)
    result = doubly_stochastic(matrix)
    assert (result >= 0).all()
    tolerance = 8 * size * torch.finfo(dtype).eps
    for axis in (-1, -2):
        torch.testing.assert_close(result.sum(axis), torch.ones(size, dtype=dtype), rtol=0, atol=tolerance)
