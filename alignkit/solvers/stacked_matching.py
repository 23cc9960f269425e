"""Weight matching of many pairs of networks at once, without Python between the pairs ([Ainsworth23], Algorithm 1).

The tensors of all pairs are stacked. Similarities are products of stacks, ``similarity[p] = a[p] @ b[p]`` for pair
``p``, and a whole stack of them is assigned in one call. Every pair takes the steps that `Ascent` takes with it alone:
it has waiting groups of its own, and ends on its own. Only pairs whose groups wait are worked on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor

from alignkit.checkpoints.fit import is_number
from alignkit.graph import SymmetryGraph, Use
from alignkit.graph.elements.action import act_on_blocks
from alignkit.graph.parts import Places, as_tensors, parts_of_block
from alignkit.matching.assignment import assignment_value, linear_assignment
from alignkit.matching.products import Product
from alignkit.solvers.coordinate_ascent import ROUNDING, RTOL, TINY, colour_roots

STACK_ELEMENTS = 1 << 23
"""Maximum number of weights in a stack of networks: 64 MB in float64."""

Stack: TypeAlias = Mapping[str, Tensor]
"""Tensors of many networks, ``[networks, *shape]`` for each name; ``[1, *shape]`` is one network for all."""


def can_be_stacked(graph: SymmetryGraph) -> bool:
    """Whether all groups are permuted, there are no families, and no group acts twice on one part of a tensor."""
    blocks = (block for node in graph.tensors.values() for block in node.blocks)
    once = all(len(block.groups) == len(block.moving) for block in blocks)
    permuted = all(group.kind == "permutation" for group in graph.groups.values())
    return once and permuted and len(graph.roots) == len(graph.groups)


@dataclass
class StackedRun:
    """How a stack of pairs was matched.

    Attributes:
        elements: Indices of every group, ``[pairs, n]``.
        distances: ``||A - P # B||^2`` after each sweep, ``[pairs]``.
        swept: The pairs that took part in each sweep, ``[pairs]``.
        converged: The pairs that ended before the last sweep, ``[pairs]``.
    """

    elements: dict[str, Int[Tensor, "pairs n"]]
    distances: list[Float[Tensor, " pairs"]] = field(default_factory=list)
    swept: list[Tensor] = field(default_factory=list)
    converged: Tensor = field(default_factory=lambda: torch.empty(0))


class StackedMatching:
    """Coordinate ascent on a stack of pairs: `Ascent` with one more dimension in front.

    Args:
        graph: A graph for which `can_be_stacked` holds.
        a: The references; one network is the reference of all pairs.
        b: The networks to be aligned.
        device: Where products are computed.
    """

    def __init__(self, graph: SymmetryGraph, a: Stack, b: Stack, device: torch.device) -> None:
        self.graph, self.device = graph, device
        self.count = len(next(iter(b.values())))
        self.a, self.b = (
            {name: stack[name].to(device, torch.float64).contiguous() for name in a if is_number(stack[name])}
            for stack in (a, b)
        )
        pairs = {name: tensor.expand(self.count, *tensor.shape[1:]) for name, tensor in self.a.items()}
        self.sides = as_tensors(pairs, device), as_tensors(self.b, device)
        self.squares = {name: (_squares(self.a[name]) + _squares(tensor)).cpu() for name, tensor in self.b.items()}
        """Squared norms of a tensor of A and of B together, ``[pairs]``."""
        self.elements: dict[str, Tensor] = {}
        """Indices ``[pairs, n]`` of the groups that were matched."""
        uses = {group: [use for use in graph.uses[group] if use.tensor in self.a] for group in graph.groups}
        self.terms = {group: [_Term(self, use) for use in own] for group, own in uses.items()}

    def run(self, rtol: float | None, max_sweeps: int, start: Mapping[str, Tensor] | None = None) -> StackedRun:
        """Update until nothing improves; the arguments are those of `Ascent`.

        ``start`` are indices ``[pairs, n]`` of every group; without it no group is known at first.
        """
        rtol = RTOL if rtol is None else rtol
        self.elements.update(start or {})
        run = StackedRun(self.elements)
        dirty = {name: torch.ones(self.count, dtype=torch.bool) for name in self.graph.groups}
        classes = colour_roots(self.graph)
        distance = self._distances() if start else torch.full((self.count,), torch.inf, dtype=torch.float64)
        while dirty and len(run.distances) < max_sweeps:
            before, swept = distance.clone(), torch.stack(list(dirty.values())).any(0)
            if not swept.any():
                break
            for roots in classes:
                for root, turn in [(root, dirty[root].nonzero().squeeze(1)) for root in roots]:
                    if not len(turn):
                        continue
                    dirty[root][turn] = False
                    changed, gain = self._update(root, turn)
                    distance[turn[changed]] -= 2 * gain[changed]
                    for other in self.graph.neighbours(root):
                        dirty[other][turn[changed]] = True
            if not torch.isfinite(distance).all():  # after the first sweep
                distance = self._distances()
            run.distances.append(distance.clamp_min(0.0))
            run.swept.append(swept)
            finished = swept & (before - distance <= rtol * distance)
            for name in dirty:
                dirty[name] &= ~finished
        run.converged = ~torch.stack([torch.zeros(self.count, dtype=torch.bool), *dirty.values()]).any(0)
        return run

    def _distances(self) -> Float[Tensor, " pairs"]:
        """Return ``||A - P # B||^2`` of each pair, for the elements that were matched."""
        distances = distances2(self.graph, self.a, self.b, self.elements)
        return sum(distances.values(), torch.zeros(self.count, dtype=torch.float64))

    def _update(self, group: str, turn: Tensor) -> tuple[Tensor, Tensor]:
        """Match one group of some pairs; return which of them changed, and what each gained."""
        size = self.graph.groups[group].size
        total = torch.zeros(len(turn), size, size, dtype=torch.float64, device=self.device)
        for term in self.terms[group]:
            total += term.of(turn)
        similarity, current = total.cpu(), self.elements.get(group)
        assigned = linear_assignment(similarity)
        if current is None:
            self.elements[group] = assigned
            return torch.ones(len(turn), dtype=torch.bool), torch.full((len(turn),), torch.inf, dtype=torch.float64)
        gain = assignment_value(similarity, assigned) - assignment_value(similarity, current[turn])
        touched = (self.squares[name][turn] for name in self.a if group in self.graph.tensors[name].groups)
        squares = sum(touched, start=torch.zeros(len(turn), dtype=torch.float64))
        changed = (assigned != current[turn]).any(1) & (gain > ROUNDING * squares.clamp_min(TINY))
        self.elements[group] = current.index_copy(0, turn[changed], assigned[changed])
        return changed, gain


class _Term:
    """The product at one use of a group (`alignkit.matching.products`) for every pair, kept until an order changes.

    ``term[p, i, j] = sum_r unfold(A)[p, i, r] * unfold(others # B)[p, j, r]`` for pair ``p``: pairs are the units of a
    parent that stays, in which all groups are nested.
    """

    def __init__(self, matching: StackedMatching, use: Use) -> None:
        self._matching, self.others = matching, use.others
        self._use = Use(use.tensor, use.block.stacked(matching.count), use.at + 1)
        self._kept = torch.empty(0)
        self._orders: dict[str, Tensor] | None = None
        """Orders of the other groups, where known, with which the products were made; None before."""

    def of(self, turn: Int[Tensor, " turn"]) -> Float[Tensor, "turn n n"]:
        """Return the term for some pairs; products are computed for those where an order has changed."""
        known = self._matching.elements
        orders = {name: known[name] for name in self.others if name in known}
        if self._orders is None or self._orders.keys() != orders.keys():
            self._orders = {name: order.clone() for name, order in orders.items()}
            self._kept = self._product(orders, slice(0, self._matching.count))
        elif orders:
            moved = torch.stack([(order[turn] != self._orders[name][turn]).any(1) for name, order in orders.items()])
            stale = turn[moved.any(0)]
            for name, order in orders.items() if len(stale) else ():
                self._orders[name][stale] = order[stale]
            if len(stale) == len(self._kept):
                self._kept = self._product(orders, slice(0, len(stale)))
            elif len(stale):
                self._kept[stale.to(self._kept.device)] = self._product(orders, stale)
        return self._kept if len(turn) == len(self._kept) else self._kept[turn.to(self._kept.device)]

    def _product(self, orders: Mapping[str, Tensor], pairs: Places) -> Float[Tensor, "pairs n n"]:
        product = Product(self._use, orders, within_parents=True)
        return product.of_parents(pairs, self._matching.sides, lambda part, _: part.double())


def _squares(stack: Tensor) -> Float[Tensor, " networks"]:
    flat = stack.reshape(len(stack), -1)
    squares: Tensor = torch.linalg.vecdot(flat, flat)
    return squares


def permuted(graph: SymmetryGraph, stack: Stack, elements: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return every tensor of every network in the order of ``elements``, parents before the units inside them."""
    return {name: _permuted(graph, name, tensor, elements) for name, tensor in stack.items()}


def distances2(
    graph: SymmetryGraph, a: Stack, b: Stack, elements: Mapping[str, Tensor] | None = None
) -> dict[str, Float[Tensor, " pairs"]]:
    """Return ``||A - P # B||^2`` of each tensor of each pair that counts, in float64 on the CPU, part by part.

    `Objective.distances2` for a stack: pairs are units that stay, in which all groups are nested. Without ``elements``
    B is taken as it stands.
    """
    distances = {}
    for name, stacked in b.items():
        if not is_number(stacked):
            continue
        own = {name: a[name].expand(len(stacked), *stacked.shape[1:])}
        sides = [(as_tensors(own, stacked.device), {}), (as_tensors({name: stacked}, None), elements or {})]
        total = torch.zeros(len(stacked), dtype=torch.float64, device=stacked.device)
        for block in graph.tensors[name].blocks:
            for _, pairs, (left, right) in parts_of_block(name, block.stacked(len(stacked)), sides):
                total[pairs] += _squares(left.double() - right.double())
        distances[name] = total.cpu()
    return distances


def _permuted(graph: SymmetryGraph, name: str, tensor: Tensor, elements: Mapping[str, Tensor]) -> Tensor:
    blocks = [block.stacked(len(tensor)) for block in graph.tensors[name].blocks]
    return act_on_blocks(blocks, tensor, elements) if graph.tensors[name].groups else tensor
