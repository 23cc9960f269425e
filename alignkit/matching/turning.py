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

MOMENTUM, MEMORY = 0.9, 0.999
"""Shares that stay of earlier gradients and of their mean squares, as in Adam."""
NEGLIGIBLE = 1e-4
"""Gradients below this part of the largest in the first step are rounding, and turn nothing at full speed."""


class IsotropicAdam:
    """Adam with one step size for all entries of a tensor, so that steps do not depend on the axes that it is given in.

    Attributes:
        slope: Mean of the gradients so far. Whoever changes the axes changes it, too.
    """

    def __init__(self, like: Tensor, square_shape: tuple[int, ...] = ()) -> None:
        self.slope = torch.zeros_like(like)
        self._square = like.new_zeros(square_shape)
        self._steps = 0

    def direction(self, gradient: Tensor, square: Tensor, least: float) -> Tensor:
        """Return a step to take the negative of, of size 1 while gradients point one way.

        Args:
            gradient: The gradient.
            square: Its squared size, in the shape that ``square_shape`` says.
            least: Sizes far below this one make small steps.
        """
        self._steps += 1
        self.slope.lerp_(gradient, 1 - MOMENTUM)
        self._square.lerp_(square, 1 - MEMORY)
        size = (self._square / (1 - MEMORY**self._steps)).sqrt() + least
        return self.slope / torch.where(size > 0, size * (1 - MOMENTUM**self._steps), 1.0)


class Turning:
    """Rotations of one group, turned by Adam with one step size for each matrix.

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
        self._adam = IsotropicAdam(start, (*start.shape[:-2], 1, 1))
        self._least: float | None = None

    @torch.no_grad()
    def step(self, angle: float) -> None:
        """Turn units against the gradient, by about this angle in radians while gradients point one way."""
        if self.matrix.grad is None:
            return
        slope = generator(self.kind, self.matrix.grad @ self.matrix.mT)
        square = slope.square().sum((-1, -2), keepdim=True) / slope.shape[-1]
        if self._least is None:
            self._least = NEGLIGIBLE * float(square.max().sqrt())
        turn = self._adam.direction(slope, square, self._least)
        half = torch.linalg.matrix_exp(-angle / 2 * turn)
        self.matrix = (half @ half @ self.matrix).requires_grad_()
        self._adam.slope = half @ self._adam.slope @ half.mT


def generator(kind: GroupKind, matrix: Float[Tensor, "*batch n n"]) -> Float[Tensor, "*batch n n"]:
    """Return the part of a matrix that is a generator of a kind, by orthogonal projection."""
    if kind in PLANES:
        speeds = phases_of(kind, matrix).imag / 2
        return plane_matrices(kind, torch.complex(torch.zeros_like(speeds), speeds))
    if kind == "centred":
        matrix = matrix - matrix.mean(-1, keepdim=True)
        matrix = matrix - matrix.mean(-2, keepdim=True)
    return (matrix - matrix.mT) / 2
