"""Rotations: the matrices of the kinds of groups that rotate, at random and held against their kind.

Row ``i`` of a matrix says what comes to place ``i``: ``aligned = matrix @ units``.
"""

from __future__ import annotations

from math import prod

import torch
from jaxtyping import Complex, Float, Int
from torch import Tensor, nn

from alignkit.graph.kinds import PLANES, GroupKind

TOLERANCE = 1e-9
"""Largest error of an entry of a rotation, in float64: a thousand products of matrices stay far below it."""


def planes_of(kind: GroupKind, size: int) -> tuple[Int[Tensor, " planes"], Int[Tensor, " planes"]]:
    """Return the first and the second unit of each plane of a kind that rotates units in pairs."""
    pairs = torch.arange(size).reshape(-1, 2) if kind == "adjacent_planes" else torch.arange(size).reshape(2, -1).mT
    return pairs[:, 0], pairs[:, 1]


def plane_matrices(kind: GroupKind, phases: Complex[Tensor, "*batch planes"]) -> Float[Tensor, "*batch n n"]:
    """Return the matrices that turn each plane as multiplication by a complex number of size 1 does."""
    size = 2 * phases.shape[-1]
    first, second = planes_of(kind, size)
    matrix = torch.zeros(*phases.shape[:-1], size, size, dtype=phases.real.dtype, device=phases.device)
    matrix[..., first, first] = matrix[..., second, second] = phases.real
    matrix[..., second, first], matrix[..., first, second] = phases.imag, -phases.imag
    return matrix


def phases_of(kind: GroupKind, matrix: Float[Tensor, "*batch n n"]) -> Complex[Tensor, "*batch planes"]:
    """Return for each plane the number ``z`` with the largest ``<matrix, z>``: what `plane_matrices` was given, twice.

    For any matrix this is the orthogonal projection to what complex numbers do in each plane, times 2.
    """
    first, second = planes_of(kind, matrix.shape[-1])
    real = matrix[..., first, first] + matrix[..., second, second]
    return torch.complex(real, matrix[..., second, first] - matrix[..., first, second])


def random_rotation(
    kind: GroupKind, batch: tuple[int, ...], size: int, generator: torch.Generator
) -> Float[Tensor, "*batch n n"]:
    """Draw from the uniform (Haar) distribution of a kind, in float64."""
    if kind in PLANES:
        angles = 2 * torch.pi * torch.rand(*batch, size // 2, generator=generator, dtype=torch.float64)
        return plane_matrices(kind, torch.polar(torch.ones_like(angles), angles))
    free = size - 1 if kind == "centred" else size
    normal = torch.randn(prod(batch), free, free, generator=generator, dtype=torch.float64)
    q, r = torch.linalg.qr(normal)
    # Signs of the diagonal of R make the decomposition unique, and Q uniform (Mezzadri, 2007).
    drawn: Tensor = q * r.diagonal(dim1=-2, dim2=-1).sign()[:, None, :]
    if kind == "centred":
        whole = torch.eye(size, dtype=torch.float64).repeat(len(drawn), 1, 1)
        whole[:, 1:, 1:] = drawn
        mirror = ones_first(size)
        drawn = mirror @ whole @ mirror
    return drawn.reshape(*batch, size, size)


def ones_first(size: int) -> Float[Tensor, "n n"]:
    """Return the reflection that exchanges the first axis and the direction of the vector of ones."""
    identity = torch.eye(size, dtype=torch.float64)
    normal = nn.functional.normalize(identity[0] - size**-0.5, dim=0, eps=1e-300)
    mirror: Tensor = identity - 2 * torch.outer(normal, normal)
    return mirror


def why_no_rotation(kind: GroupKind, matrix: Float[Tensor, "*batch n n"]) -> str:
    """Say why a float64 matrix is not an element of a kind, and how far off it is; "" if it is one."""
    size = matrix.shape[-1]
    if kind in PLANES:
        off = float((matrix - plane_matrices(kind, phases_of(kind, matrix) / 2)).abs().max())
        if not off <= TOLERANCE:
            return f"mixes other units than those of its planes: an entry is off by {off:.2g}"
    off = float((matrix @ matrix.mT - torch.eye(size, dtype=torch.float64)).abs().max())
    if not off <= TOLERANCE:
        return f"is not orthogonal: its product with its transpose is off the identity by {off:.2g}"
    if kind == "centred":
        off = float((matrix.sum(-1) - 1).abs().max())
        if not off <= TOLERANCE:
            return f"does not keep the vector of ones: the sum of a row is off 1 by {off:.2g}"
    return ""
