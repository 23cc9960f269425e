"""The best element of each kind of group for given similarities, and its value.

An element ``g`` that acts on the units of B has the value ``<C, g> = sum_ij C[i, j] g[i, j]``, where ``C`` holds the
similarities of A's units (rows) to B's (columns). Every kind is a group of isometries, so that the best element is the
one that brings B closest:

- a permutation by linear assignment of ``C``;
- a permutation with signs by linear assignment of ``abs(C)``, with the signs of the entries that it picks;
- the rotation of a plane by the phase of ``(C11 + C22) + i (C21 - C12)``;
- any rotation by the polar factor ``U V^T`` of ``C = U S V^T`` (Schoenemann, "A generalized solution of the orthogonal
  Procrustes problem", 1966);
- a rotation that keeps the vector of ones by that of ``M C M + c 1 1^T``, ``M`` taking means away and ``c`` positive.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from alignkit.errors import AssignmentError
from alignkit.graph.elements.element import flipped, order_of
from alignkit.graph.elements.rotations import phases_of, plane_matrices
from alignkit.graph.kinds import KINDS, PLANES, GroupKind
from alignkit.matching.assignment import Backend, assignment_value, linear_assignment

_TINY = 1e-300
"""In place of numbers that are 0, to divide by."""


def best_of_kind(kind: GroupKind, similarity: Float[Tensor, "*batch n n"], backend: Backend = "auto") -> Tensor:
    """Find the element of a kind with the largest value for each matrix of a batch of similarities.

    Returns:
        Elements as in `alignkit.Alignment`, on the CPU: indices ``[*batch, n]`` or matrices ``[*batch, n, n]``.

    Raises:
        AssignmentError: The matrices are not square, or hold NaN or infinity.
    """
    if kind == "permutation":
        return linear_assignment(similarity, backend)
    if kind == "signed":
        order = linear_assignment(similarity.abs(), backend)
        chosen = similarity.gather(-1, order.to(similarity.device)[..., None]).squeeze(-1).cpu()
        return torch.where(chosen < 0, ~order, order)
    wide = similarity.detach().cpu().double()
    largest = wide.abs().amax((-1, -2), keepdim=True)
    if not bool(torch.isfinite(largest).all()):
        raise AssignmentError("similarities hold NaN or infinity, so there is no best rotation. Check the weights.")
    wide = wide / torch.where(largest > 0, largest, 1.0)
    if kind in PLANES:
        phases = phases_of(kind, wide)
        sizes = phases.abs()
        return plane_matrices(kind, torch.where(sizes > 0, phases / sizes.clamp_min(_TINY), 1.0))
    if kind == "centred":
        wide = wide - wide.mean(-1, keepdim=True)
        wide = wide - wide.mean(-2, keepdim=True) + 1.0
    u, _, vt = torch.linalg.svd(wide)
    polar: Tensor = u @ vt
    return polar


def value_of(kind: GroupKind, similarity: Float[Tensor, "*batch n n"], element: Tensor) -> Float[Tensor, "*batch"]:
    """Return ``<C, g>`` for each matrix of a batch; elements as `best_of_kind` gives them."""
    if kind == "permutation":
        return assignment_value(similarity, element)
    if KINDS[kind].rotates:
        return (similarity * element.to(similarity.device)).sum((-1, -2))
    signs = 1 - 2 * flipped(element).to(similarity)
    return (similarity.gather(-1, order_of(element).to(similarity.device)[..., None]).squeeze(-1) * signs).sum(-1)
