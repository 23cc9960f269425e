"""Scores: similarities of the units of A (rows) and of B (columns), and how they are made comparable."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from alignkit.graph.kinds import GroupKind

Scores = Mapping[str, Float[Tensor, "units units"]]
"""Similarities of the units of each group over all parents, row-major; larger is more alike."""

ROUNDING = 1e-12
"""Deviations below this share of the largest entry are rounding in float64; in narrower types 8 units of theirs are."""
TINY = 1e-30
"""Norms below this share of the largest entry of all units count as this: a unit that never responds is like no other.

It is for float32 as for float64."""


def of_unit_size(values: Tensor, dims: tuple[int, ...]) -> Tensor:
    """Divide by a power of two near the largest entry over some dims, so that squares neither overflow nor vanish.

    No bit is lost, and zeros stay zeros. The divisor counts as a constant for gradients.
    """
    largest = values.detach().abs().amax(dims, keepdim=True)
    return values / torch.where(largest > 0, largest / torch.frexp(largest).mantissa, 1.0)


def is_finite(values: Tensor) -> bool:
    """Tell whether values can be used: weights may be finite where activations and gradients overflow."""
    return bool(torch.isfinite(values).all())


def standardise(scores: Float[Tensor, "*batch n m"]) -> Float[Tensor, "*batch n m"]:
    """Bring each matrix to mean 0 and standard deviation 1 over its entries; a constant matrix becomes 0."""
    scores = of_unit_size(scores, (-1, -2))
    centred = scores - scores.mean((-1, -2), keepdim=True)
    deviation = centred.square().mean((-1, -2), keepdim=True)
    largest = scores.detach().abs().amax((-1, -2), keepdim=True)
    least = max(ROUNDING, 8 * torch.finfo(scores.dtype).eps) * largest
    constant = deviation.detach() <= least.square()
    # The root of a deviation of 0 has no gradient, so that constants are replaced before it is taken.
    return torch.where(constant, 0.0, centred / torch.where(constant, 1.0, deviation).sqrt())


def comparable(kind: GroupKind, scores: Float[Tensor, "*batch n m"]) -> Float[Tensor, "*batch n m"]:
    """Bring the scores of a group to one size: as `standardise` does for permutations.

    Where units change signs or rotate, scores do as well, so that their mean means nothing and stays.
    """
    if kind == "permutation":
        return standardise(scores)
    scores = of_unit_size(scores, (-1, -2))
    size = scores.square().mean((-1, -2), keepdim=True)
    return scores / torch.where(size > 0, size, 1.0).sqrt()


def cosines(
    a: Float[Tensor, "*batch units features"], b: Float[Tensor, "*batch units features"]
) -> Float[Tensor, "*batch units units"]:
    """Compute the cosines of the features of A's units (rows) and B's (columns); 0 for a unit without any."""
    left, right = (functional.normalize(of_unit_size(side, (-1, -2)), dim=-1, eps=TINY) for side in (a, b))
    return left @ right.mT


def products(
    a: Float[Tensor, "*batch units features"], b: Float[Tensor, "*batch units features"]
) -> Float[Tensor, "*batch units units"]:
    """Compute the products of the features of A's units (rows) and B's (columns), relative to the size of all."""
    left, right = (of_unit_size(side, (-1, -2)) for side in (a, b))
    sizes = (torch.linalg.vector_norm(side, dim=(-1, -2), keepdim=True).clamp(min=TINY) for side in (left, right))
    product: Tensor = (left / next(sizes)) @ (right / next(sizes)).mT
    return product
