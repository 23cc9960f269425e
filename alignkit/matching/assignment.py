"""Linear assignment: one function, batched, over interchangeable backends.

Both backends add up in float64 and compare without a tolerance. A total is below the best by at most ``n`` times a few
roundings of the largest entry; the tests prove it with dual prices. Of lapx it is ``lapjvr`` that is used, for every
size. Milliseconds for one matrix on one thread, by ``tests/benchmarks/bench_assignment.py`` (lapx 0.11.1, scipy
1.17.1), of scipy, of ``lapjvr`` as it stands, and of this function with it::

    n      similarities   scipy   lapjvr   here
    8      unrelated      0.001   0.0013   0.011
    128    unrelated      0.27    0.052    0.063
    128    related        0.055   0.014    0.037
    1024   unrelated      33      17       7.8
    1024   related        3.4     1.2      1.6
    1024   tied           5.5     1.4      2.0
    1024   noisy copies   48      49       26
    1024   rank one       280     1100     320
    4096   unrelated      960     750      290
    4096   related        93      27       37

The others have a flaw each: ``lapjvs`` rounds to float32 unless told otherwise, and before lapx 0.10 a few nearly equal
units kept it busy for ever; ``lapjvc`` compares with an absolute tolerance of 1e-10; both are slower in float64.
"""

from __future__ import annotations

from functools import cache
from math import prod
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float, Int
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from alignkit.errors import AssignmentError
from alignkit.text import install_extra

Backend = Literal["auto", "scipy", "lapx"]


@cache
def available_backends() -> tuple[str, ...]:
    """List the backends that can be used here, the fastest first."""
    try:
        import lap
    except ImportError:
        return ("scipy",)
    return ("lapx", "scipy") if hasattr(lap, "lapjvr_batch") else ("scipy",)  # others are called lap, too


available_backends()  # here, so that no solve pays for the import


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
    name = available_backends()[0] if backend == "auto" else backend
    if name not in available_backends():
        raise AssignmentError(
            f"the assignment backend {backend!r} is not available; there are {', '.join(available_backends())}. "
            f"Install the faster one: {install_extra('fast')}."
        )
    matrices = _finite_matrices(similarity)
    if similarity.shape[-1] == 1:  # signs of units that are owned one by one: very many of them
        return torch.zeros(similarity.shape[:-1], dtype=torch.int64)
    columns = _solve_lapx(matrices) if name == "lapx" else _solve_scipy(matrices)
    return torch.from_numpy(np.array(columns, dtype=np.int64).reshape(similarity.shape[:-1]))


def assignment_value(
    similarity: Float[Tensor, "*batch n n"], permutation: Int[Tensor, "*batch n"]
) -> Float[Tensor, "*batch"]:
    """Sum up the similarities that a permutation picks, ``sum_i similarity[i, p[i]]``, for each matrix of a batch."""
    return similarity.gather(-1, permutation.to(similarity.device)[..., None]).squeeze(-1).sum(-1)


def _finite_matrices(similarity: Float[Tensor, "*batch n n"]) -> npt.NDArray[np.floating]:
    """Return a batch on the CPU as ``[matrices, n, n]``, in float32 or float64, small enough for any sum of entries."""
    host = similarity.detach()
    host = host if host.dtype == torch.float32 else host.double()
    if host.is_cuda:  # through page-locked memory, which copies at the full speed of the bus
        host = torch.empty(host.shape, dtype=host.dtype, pin_memory=True).copy_(host)
    values: npt.NDArray[np.floating] = host.cpu().reshape(prod(host.shape[:-2]), *host.shape[-2:]).numpy()
    with np.errstate(over="ignore", invalid="ignore"):
        squares = np.vdot(values, values)  # one pass: it is finite only if all entries are, and far from overflow
    if np.isfinite(squares):
        return values
    if not np.isfinite(values).all():
        raise AssignmentError("similarities hold NaN or infinity, so there is no best assignment. Check the weights.")
    exponents = np.frexp(np.abs(values).max((1, 2), keepdims=True))[1]
    small: npt.NDArray[np.floating] = np.ldexp(values.astype(np.float64), -np.maximum(exponents, 0))  # loses no bit
    return small


def _solve_lapx(matrices: npt.NDArray[np.floating]) -> list[npt.NDArray[np.int64]]:
    import lap

    # Costs are what a row loses against its best column: lapjvr then starts close to the end, in half the time on hard
    # matrices. In this thread: workers of lapx would not live in a process that is forked later.
    costs = np.subtract(matrices.max(2, keepdims=True, initial=-np.inf), matrices, dtype=np.float64)
    columns: list[npt.NDArray[np.int64]] = lap.lapjvr_batch(costs, return_cost=False, n_threads=1)[1]
    return columns


def _solve_scipy(matrices: npt.NDArray[np.floating]) -> list[npt.NDArray[np.int64]]:
    return [linear_sum_assignment(matrix, maximize=True)[1] for matrix in matrices]
