"""An order of units that depends on their weights and not on how they are stored.

A solver that draws random numbers, or that rounding errors can steer, works on networks in this order. Its answer then
moves along, exactly, when the units of a network are stored in another order or when the two networks are exchanged.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from alignkit.graph.elements.alignment import Alignment
from alignkit.graph.elements.element import identity_element
from alignkit.graph.parts import Network, as_tensors, common_parts, parts_of_block
from alignkit.graph.structure import GraphStructure
from alignkit.graph.symmetry_graph import Pair
from alignkit.graph.uses import uses_of_block
from alignkit.matching.families import read_off
from alignkit.matching.soft_alignment import SoftAlignment


@dataclass(frozen=True)
class Frame:
    """A pair of networks with their units in canonical order, and exchanged when B comes before A.

    ``to_a`` brings the units of the first network of ``bound`` into order, ``to_b`` those of the second.
    """

    bound: Pair
    to_a: Alignment
    to_b: Alignment
    exchanged: bool
    """Whether the first network of ``bound`` is the B that was given."""

    @classmethod
    def of(cls, bound: Pair) -> Frame:
        """Return the frame of a pair; weights are copied."""
        sides = [(canonical_order(bound.graph, weights), weights) for weights in (bound.a, bound.b)]
        ordered = [(order, order.apply(weights)) for order, weights in sides]
        ranks = [_squares(bound.graph, weights) for _, weights in ordered]
        exchanged = ranks[1] < ranks[0]
        if exchanged:
            ordered.reverse()
        (to_a, a), (to_b, b) = ordered
        return cls(Pair(bound.graph, a, b), to_a, to_b, exchanged)

    def enter(self, alignment: Alignment) -> Alignment:
        """Return an alignment of B to A as it is seen in the frame."""
        return self.to_a @ (alignment.inverse() if self.exchanged else alignment) @ self.to_b.inverse()

    def enter_softly(self, soft: SoftAlignment) -> SoftAlignment:
        """Return a soft alignment of B to A as it is seen in the frame: a mean moves as its elements do."""
        graph, matrices = soft.graph, {}
        rows, columns = self.to_a.as_matrices(), self.to_b.as_matrices()
        for name, matrix in soft.matrices.items():
            parent = graph.groups[name].parent
            if self.exchanged:  # inverses are transposes
                matrix = matrix.mT if parent is None else matrix.transpose(0, 1).mT
            left, right = (side[name].to(matrix) for side in (rows, columns))
            if parent is not None:
                matrix = matrix[self.to_a.flat(parent)][:, self.to_b.flat(parent)]
                left, right = left.flatten(0, -3)[:, None], right.flatten(0, -3)[None]
            matrices[name] = left @ matrix @ right.mT
        return SoftAlignment(graph, matrices)

    def leave(self, alignment: Alignment) -> Alignment:
        """Return an alignment in the frame as one of B to A."""
        outside = self.to_a.inverse() @ alignment @ self.to_b
        return outside.inverse() if self.exchanged else outside


def _squares(graph: GraphStructure, weights: Mapping[str, Tensor]) -> list[float]:
    """Return the sum of squares of each tensor."""
    network: Network = as_tensors(weights), {}
    nodes = graph.tensors.values()
    return [sum(float(part.double().square().sum()) for (part,) in common_parts(node, [network])) for node in nodes]


def canonical_order(graph: GraphStructure, weights: Mapping[str, Tensor]) -> Alignment:
    """Return the alignment that stores units by a number which no reordering of the network changes.

    Units with equal numbers keep the order in which they are stored, and groups that are not permuted stay as they are.
    """
    orders = {name: number.argsort(dim=-1, stable=True) for name, number in unit_numbers(graph, weights).items()}
    # The order of the units of a parent does not depend on its place: it is the same for every pair of parents.
    pairs = {name: order.expand(len(order), *order.shape) for name, order in orders.items()}
    for name, group in graph.groups.items():
        if group.kind != "permutation":
            count = graph.instances(name)
            pairs[name] = identity_element(group.kind, (count, count, group.size))
    return Alignment(graph, read_off(graph, graph.parents_first, pairs))


def unit_numbers(graph: GraphStructure, weights: Mapping[str, Tensor]) -> dict[str, Float[Tensor, "instances units"]]:
    """Return a number for each unit of each group that no symmetry of the network changes but for its place.

    It sums first and second powers of the weights that belong to a unit, of weights that change signs or rotate second
    powers alone. (Those of groups that rotate say nothing.)
    """
    numbers = {name: torch.zeros(graph.instances(name), group.size).double() for name, group in graph.groups.items()}
    tensors = as_tensors(weights)
    for name, node in graph.tensors.items():
        for block in node.blocks if node.groups else ():
            uses, is_permuted = uses_of_block(name, block), all(dim.kind == "permutation" for dim in block.dims)
            sums = [torch.zeros_like(numbers[use.group]) for use in uses]
            for at, places, (part,) in parts_of_block(name, block, [(tensors, {})]):
                part = part.double()
                part = part + torch.pi * part.square() if is_permuted else torch.pi * part.square()
                for use, total in zip(uses, sums, strict=True):
                    use.add_sums(total, at, places, part)
            for use, total in zip(uses, sums, strict=True):
                # Uses are told apart: the same weights in another tensor make another unit.
                numbers[use.group] = 1.1 * numbers[use.group] + total
    return numbers
