"""Rotations that follow gradients: every step turns them within their group.

A rotation ``R`` goes to ``exp(G) R``, where ``G`` is a *generator* of its kind: a skew-symmetric matrix, of the planes
alone where units rotate in planes, and one that sends the vector of ones to 0 where that is kept. To first order a loss
with gradient ``D`` for the entries of ``R`` changes by ``<D R^T, G>``, so its gradient for ``G`` is the part of
``D R^T`` that is a generator. No gradient has to go through the exponential.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from alignkit.graph.elements.rotations import phases_of, plane_matrices
from alignkit.graph.kinds import PLANES, GroupKind

MOMENTUM = 0.9
"""Share that stays of earlier gradients."""
NEGLIGIBLE = 1e-4
"""Gradients below this part of the largest in the first step are rounding, and turn nothing at full speed."""
QUINTIC = (3.4445, -4.7750, 2.0315)
ITERATIONS = 5
"""Coefficients and number of the iterations of K. Jordan, "Muon: an optimizer for hidden layers", 2024. They bring
singular values from 0.002 of the size of a matrix to between 0.7 and 1.2, and leave smaller ones small."""


class Turning:
    """Rotations of one group, turned by momentum whose planes all turn alike.

    A generator turns planes at different speeds. Gradients are large for few of them, and so every step turns all by
    about the same angle, those alone excepted for which there is next to no gradient. What is done does not depend on
    the axes that units are given in.

    What is kept of earlier gradients is carried along by half of each turn (the parallel transport of the group), so
    that aligning A to B turns the inverse of what aligning B to A does.

    Args:
        kind: A kind that rotates.
        start: Where they begin.
    """

    def __init__(self, kind: GroupKind, start: Float[Tensor, "*batch n n"]) -> None:
        self.kind = kind
        self.matrix = start.detach().clone().requires_grad_()
        """The rotations, a new tensor after every step. A loss leaves its gradient in ``matrix.grad``."""
        self._slope = torch.zeros_like(start)
        self._least: float | None = None

    @torch.no_grad()
    def step(self, angle: float) -> None:
        """Turn units against the gradient, each plane by about this angle in radians."""
        if self.matrix.grad is None:
            return
        slope = generator(self.kind, self.matrix.grad @ self.matrix.mT)
        if self._least is None:
            self._least = NEGLIGIBLE * float(torch.linalg.matrix_norm(slope).max())
        self._slope.lerp_(slope, 1 - MOMENTUM)
        turn = generator(self.kind, alike(self._slope, (1 - MOMENTUM) * self._least))  # once more, after rounding
        half = torch.linalg.matrix_exp(-angle / 2 * turn)
        self.matrix = (half @ half @ self.matrix).requires_grad_()
        self._slope = half @ self._slope @ half.mT


def alike(matrix: Float[Tensor, "*batch n n"], least: float) -> Float[Tensor, "*batch n n"]:
    """Bring the singular values of matrices near 1, by an odd polynomial: a generator stays one of its kind.

    Of matrices far smaller than ``least`` they stay small.
    """
    a, b, c = QUINTIC
    size: Tensor = torch.linalg.matrix_norm(matrix, keepdim=True) + least
    result = matrix / torch.where(size > 0, size, 1.0)
    for _ in range(ITERATIONS):
        square = result @ result.mT
        result = a * result + (b * square + c * square @ square) @ result
    return result


def generator(kind: GroupKind, matrix: Float[Tensor, "*batch n n"]) -> Float[Tensor, "*batch n n"]:
    """Return the part of a matrix that is a generator of a kind, by orthogonal projection."""
    if kind in PLANES:
        speeds = phases_of(kind, matrix).imag / 2
        return plane_matrices(kind, torch.complex(torch.zeros_like(speeds), speeds))
    if kind == "centred":
        matrix = matrix - matrix.mean(-1, keepdim=True)
        matrix = matrix - matrix.mean(-2, keepdim=True)
    return (matrix - matrix.mT) / 2
