"""Convex hulls of the elements of each kind of group: where soft alignments live.

Those of permutations are the doubly stochastic matrices. Those of all rotations are the matrices that make no vector
longer, and other kinds have what is between.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from alignkit.graph.elements.element import as_matrix, random_element
from alignkit.graph.elements.rotations import phases_of, plane_matrices
from alignkit.graph.kinds import PLANES, WITH_MEAN, GroupKind
from alignkit.matching.sinkhorn import doubly_stochastic


def centre_of(kind: GroupKind, shape: tuple[int, ...]) -> Float[Tensor, "*batch n n"]:
    """Return the mean of all elements, for each of a batch: all units in equal parts, or 0."""
    return torch.full(shape, 1.0 / shape[-1] if kind in WITH_MEAN else 0.0)


def random_inside(kind: GroupKind, shape: tuple[int, ...], generator: torch.Generator) -> Float[Tensor, "*batch n n"]:
    """Draw matrices half-way between the centre and a random element, in float64."""
    element = random_element(kind, shape[:-1], generator)
    matrix = element if element.is_floating_point() else as_matrix(element)
    return torch.lerp(centre_of(kind, shape).double(), matrix.double(), 0.5)


def brought_inside(kind: GroupKind, matrix: Float[Tensor, "*batch n n"]) -> Float[Tensor, "*batch n n"]:
    """Return matrices of the hull of a kind, to rounding, close to some that are nearly in it."""
    if not matrix.numel():
        return matrix
    if kind == "permutation":
        return doubly_stochastic(matrix.clamp(min=0))
    if kind == "signed":
        for axis in (-1, -2):
            matrix = matrix / matrix.abs().sum(axis, keepdim=True).clamp_min(1)
        return matrix
    if kind in PLANES:
        phases = phases_of(kind, matrix) / 2
        return plane_matrices(kind, phases / phases.abs().clamp_min(1))
    centre = 1 / matrix.shape[-1] if kind in WITH_MEAN else 0.0
    for axis in (-1, -2) if kind in WITH_MEAN else ():
        matrix = matrix - matrix.mean(axis, keepdim=True)
    u, lengths, vt = torch.linalg.svd(matrix)
    inside: Tensor = centre + (u * lengths.clamp(max=1)[..., None, :]) @ vt
    return inside


def why_outside(kind: GroupKind, matrix: Float[Tensor, "*batch n n"], tolerance: float) -> str:
    """Say why a matrix is not in the hull of a kind, as the end of a sentence; "" if it is."""
    if not matrix.numel():
        return ""
    if not bool(torch.isfinite(matrix).all()):
        return "holds NaN or infinity"
    if kind in WITH_MEAN:
        worst = max(float((matrix.sum(axis) - 1).abs().max()) for axis in (-1, -2))
        if not worst <= tolerance:
            return f"is not doubly stochastic: a row or column sum is off by {worst:.2g}"
    if kind == "permutation":
        lowest = float(matrix.min())
        return f"is not doubly stochastic: a share is {lowest:.2g}, below 0" if lowest < -tolerance else ""
    if kind == "signed":
        longest = max(float(matrix.abs().sum(axis).max()) for axis in (-1, -2))
    else:
        longest = float(torch.linalg.matrix_norm(matrix, 2).max())
    if not longest <= 1 + tolerance:
        return f"holds more than one share of a unit: {longest:.6g}"
    if kind in PLANES:
        off = float((matrix - plane_matrices(kind, phases_of(kind, matrix) / 2)).abs().max())
        return f"mixes other units than those of its planes: an entry is off by {off:.2g}" if off > tolerance else ""
    return ""
