"""Scales and matrices of balanced spaces on the move: networks that all compute the same, given by generators.

What writes a space takes ``exp(G)``, and what reads it ``exp(-G)^T``, so that the function stays whatever ``G`` is.
Balancing is the place where the sum of squares is the least; a merge may prefer another one.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from alignkit.graph.rewrites import Balance
from alignkit.graph.structure import GraphStructure
from alignkit.rewriting.balancing import multiplied, sides_of
from alignkit.rewriting.spaces import BalancedSpace


class Stretching:
    """The balanced spaces of one network, each with a generator; all are 0 at first.

    Args:
        graph: The graph of the network.
        weights: Its tensors by first name, floating-point where a balance moves them.
    """

    def __init__(self, graph: GraphStructure, weights: Mapping[str, Tensor]) -> None:
        self.graph, self.given = graph, weights
        self.balances = [balance for balance in graph.balances if isinstance(balance, Balance)]
        self._sides = [sides_of(graph, balance) for balance in self.balances]
        self.generators: list[Tensor] = []
        """``[instances, units]``, ``[instances, planes]`` or ``[instances, units, units]``; they take gradients."""
        for balance in self.balances:
            size = graph.groups[balance.group].size
            numbers = {"invertible": (size, size), "complex_planes": (size // 2,)}.get(balance.kind, (size,))
            like = weights[balance.writes[0].tensor]
            wide = torch.promote_types(like.dtype, torch.float32)
            self.generators.append(
                torch.zeros(graph.instances(balance.group), *numbers, dtype=wide, device=like.device)
            )

    def weights(self) -> dict[str, Tensor]:
        """Return all tensors, those of balanced spaces as the generators move them; differentiable."""
        moved = dict(self.given)
        for number, sides in enumerate(self._sides):
            for uses, factor in zip(sides, self._factors(number, self.generators[number]), strict=True):
                for use in uses:
                    tensor = moved[use.tensor].clone()
                    part = use.block.view(tensor)
                    part.copy_(multiplied(part.clone(), use, factor))
                    moved[use.tensor] = tensor
        return moved

    def spaces(self) -> list[BalancedSpace]:
        """Return what the sides of each space are multiplied by, in float64."""
        result = []
        for number, (balance, generator) in enumerate(zip(self.balances, self.generators, strict=True)):
            write, read = self._factors(number, generator.detach().cpu().double())
            result.append(BalancedSpace(balance, 0.0, 0.0, 0, write, read))
        return result

    def _factors(self, number: int, generator: Tensor) -> tuple[Tensor, Tensor]:
        """Return what writes and what reads a space is multiplied by."""
        balance = self.balances[number]
        if balance.kind == "invertible":
            write, inverse = torch.linalg.matrix_exp(torch.stack([generator, -generator])).unbind(0)
            return write, inverse.mT
        if balance.kind == "complex_planes":
            adjacent = self.graph.groups[balance.group].kind == "adjacent_planes"
            generator = generator.repeat_interleave(2, -1) if adjacent else generator.repeat(1, 2)
        return generator.exp(), (-balance.degree * generator).exp()
