"""Transport plans between units, by POT (Flamary et al., JMLR 2021)."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from alignkit.errors import SolverError

SWEEPS = 200
"""Maximum number of sweeps of one entropic problem. Its sums are completed then: more would change digits only."""
TOLERANCE = 1e-6
"""An entropic problem is solved when the sums of its rows are this close."""
KERNEL_RANGE = 300.0
"""Logarithms of float64 that can be multiplied with each other without overflow."""


def transport_plans(
    similarity: Float[Tensor, "*batch n_a n_b"], regularization: float
) -> Float[Tensor, "*batch n_a n_b"]:
    """Cheapest plans that move uniform mass on B's units to uniform mass on A's.

    The cost is minus the similarity. Squared distances of units give the same plans: they differ from it by terms that
    belong to one row or one column.

    Args:
        similarity: How alike each unit of A is to each unit of B.
        regularization: Weight of the entropy, in standard deviations of the similarities; 0 is exact transport.

    Returns:
        float64 on the CPU, all entries of one plan adding up to 1: rows to ``1 / n_a``, columns to ``1 / n_b``.

    Raises:
        SolverError: Similarities hold NaN or infinity.
    """
    values = similarity.detach().cpu().double()
    if not bool(torch.isfinite(values).all()):
        raise SolverError("the similarities of units hold NaN or infinity, so no plan is the cheapest.")
    n_a, n_b = values.shape[-2:]
    costs = _standardised(values.reshape(-1, n_a, n_b))
    if min(n_a, n_b) == 1 or not bool(costs.any()):
        return torch.full_like(values, 1 / (n_a * n_b))
    plans = _exact(costs) if regularization == 0 else _entropic(costs, regularization)
    return plans.reshape(values.shape)


def _standardised(similarity: Float[Tensor, "batch n_a n_b"]) -> Float[Tensor, "batch n_a n_b"]:
    """Costs of standard deviation 1; 0 where all pairs are alike.

    What is added to a row or to a column changes no plan. It is taken out, so that it does not change the scale.
    """
    centred = similarity - similarity.mean(-1, keepdim=True)
    cost = centred.mean(-2, keepdim=True) - centred
    spread = cost.square().mean((-1, -2), keepdim=True).sqrt()
    floor = 1e-12 * similarity.abs().amax((-1, -2), keepdim=True)
    return torch.where(spread > floor, cost / spread.clamp_min(1e-300), 0.0)


def _exact(costs: Float[Tensor, "batch n_a n_b"]) -> Float[Tensor, "batch n_a n_b"]:
    import ot  # takes seconds, so not when alignkit lists its solvers

    n_a, n_b = costs.shape[-2:]
    left, right = np.full(n_a, 1 / n_a), np.full(n_b, 1 / n_b)
    return torch.from_numpy(np.stack([ot.emd(left, right, cost, numItermax=10_000_000) for cost in costs.numpy()]))


def _entropic(costs: Float[Tensor, "batch n_a n_b"], regularization: float) -> Float[Tensor, "batch n_a n_b"]:
    """Sinkhorn's sweeps; in the domain of logarithms where the kernel would underflow."""
    from ot import batch

    left, right = (costs.new_full((len(costs), size), 1 / size) for size in costs.shape[-2:])
    logits = -costs / regularization
    if float(logits.abs().max()) < KERNEL_RANGE:
        result = batch.bregman_projection_batch(logits.exp(), left, right, max_iter=SWEEPS, tol=TOLERANCE)
    else:
        result = batch.bregman_log_projection_batch(logits, left, right, max_iter=SWEEPS, tol=TOLERANCE)
    plans: Tensor = result["T"]
    return plans
