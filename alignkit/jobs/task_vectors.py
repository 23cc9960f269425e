"""Task vectors of several networks put together: what each of them has beyond a common base.

- ``"task_arithmetic"``: their weighted sum ([Ilharco23], "Editing models with task arithmetic", section 2).
- ``"ties"``: small entries are left out, then those whose sign is not the elected one ([Yadav23], "TIES-Merging:
  resolving interference when merging models", Algorithm 1).
- ``"dare"``: entries are dropped at random, and the rest enlarged to make up for them ([Yu24], "Language models are
  super Mario", equations 2 and 3).
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from alignkit.errors import MergeError

TaskMethod = Literal["task_arithmetic", "ties", "dare"]
TASK_METHODS: tuple[str, ...] = get_args(TaskMethod)
"""Methods of averages whose first network is the base of task vectors."""
Vector = Float[Tensor, "*shape"]


def check_density(density: float) -> None:
    """Raise a `MergeError` unless a density is above 0 and at most 1."""
    if not 0 < density <= 1:
        raise MergeError(f"density is {density}: give the share of entries that is kept, above 0 and at most 1.")


def combine(
    method: TaskMethod, vectors: Sequence[Vector], weights: Sequence[float], density: float, seed: int, name: str
) -> Vector:
    """Return what is added to the base.

    Args:
        method: How vectors are put together.
        vectors: Task vectors of one tensor.
        weights: Factor of each.
        density: Share of entries that each keeps; task arithmetic keeps all.
        seed: Seed of what is dropped. What is drawn depends on it, on the tensor's name and on the vector's number.
        name: Name of the tensor.
    """
    if method == "ties":
        return _ties([trim(vector, density) for vector in vectors], weights)
    if method == "dare":
        vectors = [_drop(vector, density, f"{seed} {at} {name}") for at, vector in enumerate(vectors)]
    return sum((w * v for w, v in zip(weights, vectors, strict=True)), start=torch.zeros_like(vectors[0]))


def trim(vector: Vector, density: float) -> Vector:
    """Return a vector with its largest entries, a share of ``density`` rounded up, and zeros elsewhere."""
    sizes = vector.abs().flatten()
    kept = -int(-density * len(sizes) // 1)
    if not len(sizes) or kept >= len(sizes):
        return vector
    least = sizes.kthvalue(len(sizes) - kept + 1).values
    return torch.where(vector.abs() >= least, vector, 0.0)


def _ties(trimmed: Sequence[Vector], weights: Sequence[float]) -> Vector:
    """Elect the sign of each entry by the weighted sum, and average the vectors that have it."""
    stacked = torch.stack([weight * vector for weight, vector in zip(weights, trimmed, strict=True)])
    agrees = (stacked.sign() == stacked.sum(0).sign()) & (stacked != 0)
    shares = torch.tensor([abs(weight) for weight in weights], dtype=stacked.dtype, device=stacked.device)
    total = (agrees * shares.reshape(-1, *[1] * (stacked.ndim - 1))).sum(0)
    mean = torch.where(total > 0, (stacked * agrees).sum(0) / total.clamp_min(torch.finfo(stacked.dtype).tiny), 0.0)
    return mean * float(shares.sum())


def _drop(vector: Vector, density: float, seed: str) -> Vector:
    """Keep each entry with probability ``density``, divided by it, so that the expectation stays."""
    generator = torch.Generator().manual_seed(zlib.crc32(seed.encode()))
    kept = torch.rand(vector.shape, generator=generator, dtype=torch.float64) < density
    return torch.where(kept.to(vector.device), vector / density, 0.0)
