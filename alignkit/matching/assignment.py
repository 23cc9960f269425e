"""Linear assignment: one function, batched, over interchangeable backends."""

from __future__ import annotations

import importlib.util
from functools import cache
from math import frexp, prod
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float, Int
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from alignkit.errors import AssignmentError

Backend = Literal["auto", "scipy", "lapx"]

LAPX_FROM = 1024
"""Size of a matrix from which "auto" takes lapx, where it is installed: scipy was faster below, on trained layers."""


@cache
def available_backends() -> tuple[str, ...]:
    """List the backends that can be used here, the fastest first."""
    return (*(("lapx",) if importlib.util.find_spec("lap") else ()), "scipy")


def linear_assignment(similarity: Float[Tensor, "*batch n n"], backend: Backend = "auto") -> Int[Tensor, "*batch n"]:
    """Find the permutation of the columns with the largest total similarity, for each matrix of a batch.

    ``permutation = argmax_p sum_i similarity[i, p[i]]``. Example: ``[[1, 3], [2, 5]]`` gives ``[0, 1]``, total 6.

    Args:
        similarity: Similarities of rows to columns, in any unit; solved in float64 on the CPU.
        backend: ``"scipy"`` (always there), ``"lapx"`` (the extra ``fast``), or ``"auto"`` for the fastest installed.

    Returns:
        int64 indices on the CPU: row ``i`` gets column ``permutation[i]``. Among equally good permutations, always the
        same one.

    Raises:
        AssignmentError: The matrices are not square, hold NaN or infinity, or the backend is not installed.
    """
    if similarity.ndim < 2 or similarity.shape[-1] != similarity.shape[-2]:
        raise AssignmentError(f"similarities must be square matrices, found shape {tuple(similarity.shape)}.")
    size = similarity.shape[-1]
    name = (available_backends()[0] if size >= LAPX_FROM else "scipy") if backend == "auto" else backend
    if name not in available_backends():
        raise AssignmentError(
            f"the assignment backend {backend!r} is not available; there are {', '.join(available_backends())}. "
            'Install the faster one with pip install "alignkit[fast]".'
        )
    host = similarity.detach()
    if host.is_cuda:  # through page-locked memory, which copies at the full speed of the bus
        host = torch.empty(host.shape, dtype=torch.float64, pin_memory=True).copy_(host.double())
    values = host.to("cpu", torch.float64).numpy()
    # One pass over the matrix: a sum is finite exactly when its terms are, overflow of finite values aside.
    with np.errstate(over="ignore", invalid="ignore"):
        total = values.sum()
    if not np.isfinite(total) and not np.isfinite(values).all():
        raise AssignmentError("similarities hold NaN or infinity, so there is no best assignment. Check the weights.")
    flat = values.reshape(prod(values.shape[:-2]), size, size)
    columns = np.empty((flat.shape[0], size), dtype=np.int64)
    for i, matrix in enumerate(flat):
        columns[i] = _solve_lapx(matrix) if name == "lapx" else linear_sum_assignment(matrix, maximize=True)[1]
    return torch.from_numpy(columns.reshape(*values.shape[:-2], size))


def assignment_value(
    similarity: Float[Tensor, "*batch n n"], permutation: Int[Tensor, "*batch n"]
) -> Float[Tensor, "*batch"]:
    """Sum up the similarities that a permutation picks, ``sum_i similarity[i, p[i]]``, for each matrix of a batch."""
    return similarity.gather(-1, permutation.to(similarity.device)[..., None]).squeeze(-1).sum(-1)


def _solve_lapx(similarity: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    import lap

    if similarity.shape[-1] <= 1:
        return np.zeros(similarity.shape[-1], dtype=np.int64)
    # lapx compares costs with an absolute tolerance near 1e-10. Scaled to about 1e6, by a power of two so that no bit
    # is lost, that tolerance is below the rounding of float64.
    largest = max(float(similarity.max()), -float(similarity.min()))
    costs = np.ldexp(similarity, 20 - frexp(largest)[1])
    np.negative(costs, out=costs)
    columns: npt.NDArray[np.int64] = np.asarray(lap.lapjvc(costs, return_cost=False)[1], dtype=np.int64)
    return columns
