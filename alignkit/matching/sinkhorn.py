"""The Sinkhorn operator: any square matrix to a doubly stochastic one, differentiable, in memory of one matrix.

``sinkhorn(logits)`` scales the rows and columns of ``exp(logits)`` until every one sums to 1. Potentials are kept in
the log domain. The gradient comes from the conditions that hold at the end (the implicit function theorem) and not
from the iterations, so memory does not grow with their number; [Pena23], section 3.2.

Two units, ``logits = [[0, log 2], [0, 0]]``: the kernel ``exp(logits) = [[1, 2], [1, 1]]`` becomes
``diag(u) @ kernel @ diag(v) = [[s, 1 - s], [1 - s, s]]`` with ``s = 1 / (1 + sqrt(2)) = 0.41``.

`balanced_sinkhorn` is the variant with a fixed number of scalings that treats rows and columns alike.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

CHECK_EVERY = 8
"""Scalings between two looks at the row sums: a look costs an ``exp`` of the matrix, about as much as 8 scalings."""
LARGEST_FACTOR = 1e10
"""Factors beyond this are not multiplied up, as float32 would lose digits; the scalings are done in the log domain."""
UNREAD = 64
"""Scalings up to which another device than the CPU is not waited for: there they cost less than to read a number."""
LOWEST_LOGIT = -80.0
"""In `balanced_sinkhorn`, logits this far below the largest count as this far: ``exp`` of it is a number in float32."""


@dataclass(frozen=True)
class Potentials:
    """Logarithms of the factors of rows and columns, which are added to the logits, and how far they have come."""

    rows: Float[Tensor, "*batch n"]
    columns: Float[Tensor, "*batch n"]
    error: Float[Tensor, ""]
    """Largest deviation of a row sum from 1, where it was looked at last."""
    scalings: int


def sinkhorn(
    logits: Float[Tensor, "*batch n n"], *, max_scalings: int = 1000, tolerance: float | None = None
) -> Float[Tensor, "*batch n n"]:
    """Return the doubly stochastic matrix ``diag(u) exp(logits) diag(v)``.

    It is the one that maximises ``<P, logits> + entropy(P)``. Divide the logits by a temperature first: the lower, the
    closer to the permutation that linear assignment would find. Columns sum to 1 to rounding, rows to the tolerance.

    Args:
        logits: Any finite floating-point matrices.
        max_scalings: Maximum number of times that rows and columns are scaled.
        tolerance: Row sums within this of 1 are close enough. Default: 1e-4 in float32, 1e-9 in float64.

    Returns:
        Matrices of the shape of ``logits``. Gradients flow to the logits; there are no second derivatives.
    """
    return plan(logits, potentials(logits, max_scalings=max_scalings, tolerance=tolerance))


def potentials(
    logits: Float[Tensor, "*batch n n"],
    start: Potentials | None = None,
    *,
    max_scalings: int = 1000,
    tolerance: float | None = None,
) -> Potentials:
    """Find the potentials of rows and columns, without gradients; the arguments are those of `sinkhorn`.

    From ``start``, potentials of similar logits, fewer scalings are needed. On a device other than the CPU, up to
    `UNREAD` scalings are all done, and no number is read: what is done is chosen there.
    """
    if tolerance is None:
        tolerance = 1e-9 if logits.dtype == torch.float64 else 1e-4
    with torch.no_grad():
        logits = logits.detach()
        columns = torch.zeros_like(logits[..., 0, :]) if start is None else start.columns
        if logits.device.type != "cpu" and max_scalings <= UNREAD:
            return _unread_potentials(logits, columns, max_scalings, tolerance)
        rows, columns = _scale_in_logs(logits, columns)
        scalings = 1
        while True:
            kernel, error = _look(logits, rows, columns)
            if scalings >= max_scalings or not tolerance < float(error) < math.inf:
                return Potentials(rows, columns, error, scalings)
            more = min(CHECK_EVERY, max_scalings - scalings)
            scalings += more
            row_factors, column_factors, usable = _factors(kernel, more)
            if bool(usable):
                rows, columns = rows + row_factors.log(), columns + column_factors.log()
                continue
            for _ in range(more):
                rows, columns = _scale_in_logs(logits, columns)


def _unread_potentials(logits: Tensor, columns: Tensor, scalings: int, tolerance: float) -> Potentials:
    """Find the potentials of `potentials` without reading a number from the device.

    Both ways are gone, and one of them is taken. Where factors are too large, the columns are scaled once in logs, and
    not as often as `potentials` does.
    """
    rows, columns = _scale_in_logs(logits, columns)
    error = torch.full((), math.inf, dtype=logits.dtype, device=logits.device)
    for done in range(1, scalings, CHECK_EVERY):
        kernel, error = _look(logits, rows, columns)
        row_factors, column_factors, usable = _factors(kernel, min(CHECK_EVERY, scalings - done))
        scaled = (rows + row_factors.log(), columns + column_factors.log())
        goes_on = (error > tolerance) & (error < math.inf)
        rows, columns = (
            torch.where(goes_on, torch.where(usable, new, in_logs), old)
            for new, in_logs, old in zip(scaled, _scale_in_logs(logits, columns), (rows, columns), strict=True)
        )
    return Potentials(rows, columns, error, scalings)


def _look(logits: Tensor, rows: Tensor, columns: Tensor) -> tuple[Tensor, Float[Tensor, ""]]:
    """Return the matrix of potentials, whose columns sum to 1, and the largest deviation of its row sums."""
    kernel = (logits + rows[..., :, None] + columns[..., None, :]).exp()
    return kernel, (kernel.sum(-1) - 1).abs().max() if kernel.numel() else kernel.new_zeros(())


def _factors(kernel: Tensor, scalings: int) -> tuple[Tensor, Tensor, Tensor]:
    """Scale rows and columns in turn; return the factors of both, and whether float32 holds them all.

    A scaling is two products with a vector, because the kernel holds the potentials so far.
    """
    turned = kernel.mT.contiguous()
    right = torch.ones_like(kernel[..., :1, :])
    for _ in range(scalings):
        left = 1 / (right @ turned)
        right = 1 / (left @ kernel)
    factors = torch.cat([left, right], -1)
    usable = ((factors < LARGEST_FACTOR) & (factors > 1 / LARGEST_FACTOR)).all()
    return left[..., 0, :], right[..., 0, :], usable


def plan(
    logits: Float[Tensor, "*batch n n"], scaling: Potentials, *, gradient_steps: int | None = None
) -> Float[Tensor, "*batch n n"]:
    """Return the matrix of logits and their potentials, differentiable with respect to the logits.

    The potentials need not have converged: the gradient is that of the matrix with the row and column sums that it has.
    ``gradient_steps`` is ``max_steps`` of `implicit_gradient`; None solves to rounding.
    """
    result: Tensor = _Plan.apply(logits, scaling.rows, scaling.columns, gradient_steps)  # type: ignore[no-untyped-call]
    return result


def doubly_stochastic(matrix: Float[Tensor, "*batch n n"]) -> Float[Tensor, "*batch n n"]:
    """Return a doubly stochastic matrix close to one without negative entries whose sums are only nearly 1.

    Rows, then columns, that are too heavy are scaled down; what is then missing is added as a matrix of rank one.
    Source: Altschuler et al., 2017, Algorithm 2.
    """
    matrix = matrix / matrix.sum(-1, keepdim=True).clamp_min(1)
    matrix = matrix / matrix.sum(-2, keepdim=True).clamp_min(1)
    # Where nothing is missing rounding leaves sums on both sides of 1, whose deviations cancel.
    rows, columns = ((1 - matrix.sum(axis)).clamp_min(0) for axis in (-1, -2))
    shares = rows / rows.sum(-1, keepdim=True).clamp_min(torch.finfo(matrix.dtype).tiny)
    return matrix + shares[..., :, None] * columns[..., None, :]


def balanced_sinkhorn(logits: Float[Tensor, "*batch n n"], scalings: int) -> Float[Tensor, "*batch n n"]:
    """Return a nearly doubly stochastic ``diag(u) exp(logits) diag(v)``, rows and columns being scaled at once.

    Unlike the usual scalings, rows first, these give the transposed matrix for transposed logits however few there are:
    [Navon24] asks for that symmetry. Both factors move half of the way (in logarithms) that each would go alone::

        u <- sqrt(u / (kernel v)),    v <- sqrt(v / (kernel^T u))

    Logits are any finite matrices. Gradients flow through every one of the scalings.
    """
    highest = logits.detach().amax((-1, -2), keepdim=True)
    kernel = (logits - highest).clamp(min=LOWEST_LOGIT).exp()
    tiny = torch.finfo(kernel.dtype).tiny
    rows = torch.ones_like(kernel[..., :1])
    columns = torch.ones_like(kernel[..., :1, :])
    for _ in range(scalings):
        across = (kernel @ columns.mT).clamp(min=tiny)
        down = (rows.mT @ kernel).clamp(min=tiny)
        rows, columns = (rows / across).sqrt(), (columns / down).sqrt()
    return rows * kernel * columns


def _scale_in_logs(logits: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
    rows = -(logits + columns[..., None, :]).logsumexp(-1)
    return rows, -(logits + rows[..., :, None]).logsumexp(-2)


class _Plan(torch.autograd.Function):
    """``exp(logits + rows + columns)`` whose gradient keeps the row and column sums."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, rows: Tensor, columns: Tensor, steps: int | None) -> Tensor:
        matrix, ctx.steps = (logits + rows[..., :, None] + columns[..., None, :]).exp(), steps
        ctx.save_for_backward(matrix)
        return matrix

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        (matrix,) = ctx.saved_tensors
        return implicit_gradient(matrix, gradient, ctx.steps), None, None, None


def implicit_gradient(
    matrix: Float[Tensor, "*batch n n"], gradient: Float[Tensor, "*batch n n"], max_steps: int | None = None
) -> Float[Tensor, "*batch n n"]:
    """Return the gradient for the logits, given that for the matrix.

    A change of the logits moves the matrix ``P`` by ``P * (change + u + v)``, with ``u`` and ``v`` such that row and
    column sums stay. That map is its own transpose, so the gradient is ``P * (gradient - u - v)`` with

        diag(P 1) u + P v = (P * gradient) 1,    P^T u + diag(P^T 1) v = (P * gradient)^T 1.

    ``u`` is eliminated and the rest solved by conjugate gradients, which need products with ``P`` only and find the
    smallest solution where the system is singular. After a few of ``max_steps`` the result is close to the gradient.
    """
    weighted = matrix * gradient
    turned = matrix.mT.contiguous()
    rows, columns = (side.sum(-1)[..., None, :].clamp_min(torch.finfo(matrix.dtype).tiny) for side in (matrix, turned))
    heavy = weighted.sum(-1)[..., None, :]
    right_side = weighted.sum(-2, keepdim=True) - (heavy / rows) @ matrix
    steps = 2 * matrix.shape[-1] if max_steps is None else max_steps
    v = _conjugate_gradients(lambda v: columns * v - ((v @ turned) / rows) @ matrix, right_side, steps)
    u = (heavy - v @ turned) / rows
    return weighted - matrix * (u.mT + v)


def _conjugate_gradients(
    product: Callable[[Tensor], Tensor], right_side: Float[Tensor, "*batch 1 n"], max_steps: int
) -> Float[Tensor, "*batch 1 n"]:
    """Solve ``product(x) = right_side`` for a positive semidefinite product that sends constant vectors to 0."""
    solution = torch.zeros_like(right_side)
    residual = right_side - right_side.mean(-1, keepdim=True)
    direction = residual
    norm = residual.square().sum(-1, keepdim=True)
    enough = norm * (1e-12 if residual.dtype == torch.float64 else 1e-4) ** 2
    for step in range(max_steps):
        image = product(direction)
        bend = (direction * image).sum(-1, keepdim=True)
        # Matrices of the batch that are solved, or whose direction is flat, stay where they are.
        going = (norm > enough) & (bend > 0)
        factor = torch.where(going, norm / bend, 0)
        solution = solution + factor * direction
        residual = residual - factor * image
        residual = residual - residual.mean(-1, keepdim=True)
        if step % CHECK_EVERY == CHECK_EVERY - 1 and not bool(going.any()):
            break
        before, norm = norm, residual.square().sum(-1, keepdim=True)
        direction = residual + norm / before.clamp_min(torch.finfo(norm.dtype).tiny) * direction
    return solution
