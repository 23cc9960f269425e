"""Task vectors of several networks put together: what each of them has beyond a common base.

- ``"task_arithmetic"``: their weighted sum ([Ilharco23], "Editing models with task arithmetic", section 2).
- ``"ties"``: small entries are left out, then those whose sign is not the elected one ([Yadav23], "TIES-Merging:
  resolving interference when merging models", Algorithm 1).
- ``"dare"``: entries are dropped at random, and the rest enlarged to make up for them ([Yu24], "Language models are
  super Mario", equations 2 and 3).

Where mergekit is installed its functions do the arithmetic. What is written here means the same, down to the random
numbers, so that a merge does not depend on what is installed.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from typing import get_args

import torch
from jaxtyping import Float
from torch import Tensor

from alignkit.errors import MergeError
from alignkit.jobs.mergekit_methods import Mergekit, TaskMethod, find_mergekit

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
        seed: Seed of what is dropped. What is drawn depends on it and on the tensor's name.
        name: Name of the tensor.
    """
    scale = _power_of_two(vectors)
    vectors, drawn = [vector / scale for vector in vectors], zlib.crc32(f"{seed} {name}".encode())
    mergekit = find_mergekit()
    if isinstance(mergekit, Mergekit) and not vectors[0].is_complex():
        return scale * mergekit.combine(method, vectors, weights, density, drawn)
    if method == "ties":
        return scale * _ties([trim(vector, density) for vector in vectors], weights)
    if method == "dare":
        vectors = _drop(vectors, density, drawn)
    return scale * sum((w * v for w, v in zip(weights, vectors, strict=True)), start=torch.zeros_like(vectors[0]))


def _power_of_two(vectors: Sequence[Vector]) -> float:
    """Return about the largest size of an entry, so that entries over it fit float32. Dividing by it is exact."""
    largest = max((float(vector.abs().max()) for vector in vectors if vector.numel()), default=0.0)
    return math.ldexp(1.0, math.frexp(largest)[1] - 1) if 0 < largest < math.inf else 1.0


def trim(vector: Vector, density: float) -> Vector:
    """Return a vector with its largest entries, a share of ``density`` but one at least, and zeros elsewhere."""
    kept = max(1, int(density * vector.numel()))
    if kept >= vector.numel():
        return vector
    is_kept = torch.zeros(vector.numel(), dtype=torch.bool, device=vector.device)
    is_kept[vector.abs().flatten().float().argsort(descending=True)[:kept]] = True
    return torch.where(is_kept.reshape(vector.shape), vector, 0.0)


def _ties(trimmed: Sequence[Vector], weights: Sequence[float]) -> Vector:
    """Elect the sign of each entry by the weighted sum, and average the vectors that have it."""
    stacked = torch.stack([weight * vector for weight, vector in zip(weights, trimmed, strict=True)])
    elected = torch.where(stacked.sum(0) >= 0, 1.0, -1.0)
    agrees = stacked.sign() == elected
    shares = torch.tensor([abs(weight) for weight in weights], dtype=stacked.dtype, device=stacked.device)
    total = (agrees * shares.reshape(-1, *[1] * (stacked.ndim - 1))).sum(0)
    mean = torch.where(total > 0, (stacked * agrees).sum(0) / torch.where(total > 0, total, 1.0), 0.0)
    return mean * float(shares.sum())


def _drop(vectors: Sequence[Vector], density: float, seed: int) -> list[Vector]:
    """Keep each entry with probability ``density``, divided by it, so that the expectation stays."""
    generator = torch.Generator().manual_seed(seed)
    chances = torch.full(vectors[0].shape, density, dtype=torch.float32)
    kept = [chances.bernoulli(generator=generator) if density < 1 else torch.ones_like(chances) for _ in vectors]
    return [torch.where(k.to(v.device, torch.bool), v / density, 0.0) for k, v in zip(kept, vectors, strict=True)]
