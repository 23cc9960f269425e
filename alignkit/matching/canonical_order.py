"""An order of units that depends on their weights and not on how they are stored.

A solver that draws random numbers, or that rounding errors can steer, works on networks in this order. Its answer then
moves along, exactly, when the units of a network are stored in another order or when the two networks are exchanged.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from alignkit.graph.elements.alignment import Alignment
from alignkit.graph.layout import Block
from alignkit.graph.symmetry_graph import Pair, SymmetryGraph


@dataclass(frozen=True)
class Frame:
    """A pair of networks with their units in canonical order, and exchanged when B comes before A.

    Attributes:
        bound: The pair in the frame.
        to_a: Brings the units of the first network of ``bound`` into order.
        to_b: Brings the units of the second into order.
        exchanged: Whether the first network of ``bound`` is the B that was given.
    """

    bound: Pair
    to_a: Alignment
    to_b: Alignment
    exchanged: bool

    @classmethod
    def of(cls, bound: Pair) -> Frame:
        """The frame of a pair; weights are copied."""
        sides = [(canonical_order(bound.graph, weights), weights) for weights in (bound.a, bound.b)]
        ordered = [(order, order.apply(dict(weights))) for order, weights in sides]
        exchanged = _rank(ordered[1][1]) < _rank(ordered[0][1])
        if exchanged:
            ordered.reverse()
        (to_a, a), (to_b, b) = ordered
        return cls(Pair(bound.graph, a, b), to_a, to_b, exchanged)

    def enter(self, alignment: Alignment) -> Alignment:
        """An alignment of B to A, seen in the frame."""
        return self.to_a @ (alignment.inverse() if self.exchanged else alignment) @ self.to_b.inverse()

    def leave(self, alignment: Alignment) -> Alignment:
        """An alignment in the frame, as one of B to A."""
        found = self.to_a.inverse() @ alignment @ self.to_b
        return found.inverse() if self.exchanged else found


def canonical_order(graph: SymmetryGraph, weights: Mapping[str, Tensor]) -> Alignment:
    """The alignment that stores units by a number which no reordering of the network changes.

    The number sums first and second powers of the weights that belong to a unit. Units with equal numbers keep the
    order in which they are stored.
    """
    keys = {name: torch.zeros(graph.instances(name), group.size).double() for name, group in graph.groups.items()}
    for tensor, node in graph.tensors.items():
        for block in node.blocks if node.groups else ():
            part = block.view(weights[tensor].detach().cpu()).double()
            for at, dim in enumerate(block.dims):
                if dim.group is not None:
                    # Places are told apart: the same weights in another tensor make another unit.
                    keys[dim.group] = 1.1 * keys[dim.group] + _unit_numbers(block, part, at).reshape(-1, dim.size)
    elements: dict[str, Tensor] = {}
    flats: dict[str, Tensor] = {}
    for name in (member for root in graph.roots for member in graph.tree(root)):
        size, parent = graph.groups[name].size, graph.groups[name].parent
        source = torch.zeros(1, dtype=torch.int64) if parent is None else flats[parent]
        chosen = keys[name][source].argsort(dim=-1, stable=True)
        elements[name] = chosen.reshape(graph.element_shape(name))
        flats[name] = (source[:, None] * size + chosen).reshape(-1)
    return Alignment(graph, elements)


def _unit_numbers(block: Block, part: Tensor, at: int) -> Tensor:
    chain = (*block.dims[at].ancestors, at)
    rest = tuple(i for i in range(len(block.dims)) if i not in chain)
    number = part + torch.pi * part.square()
    # What is left stands in the order of the block, where parents are always further left.
    return number.sum(rest) if rest else number


def _rank(weights: Mapping[str, Tensor]) -> tuple[float, ...]:
    return tuple(float(tensor.double().square().sum()) for tensor in weights.values())
