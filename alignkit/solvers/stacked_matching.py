"""Weight matching of many pairs of networks at once, without Python between the pairs ([Ainsworth23], Algorithm 1).

The tensors of all pairs are stacked. Similarities are products of stacks, ``similarity[p] = a[p] @ b[p]`` for pair
``p``, and a whole stack of them is assigned in one call. Every pair takes the steps that `Ascent` takes with it alone:
it has waiting groups of its own, and ends on its own. Only pairs whose groups wait are worked on.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor

from alignkit.checkpoints.dtypes import as_bits
from alignkit.checkpoints.fit import is_number
from alignkit.graph import Block, SymmetryGraph, Use
from alignkit.matching.assignment import assignment_value, linear_assignment
from alignkit.solvers.coordinate_ascent import ROUNDING, TINY, colour_roots

STACK_ELEMENTS = 1 << 23
"""Maximum number of weights in a stack of networks: 64 MB in float64."""

PART_ELEMENTS = 1 << 18
"""Weights that are subtracted at once: few enough to stay in the cache."""

Stack: TypeAlias = Mapping[str, Tensor]
"""Tensors of many networks, ``[networks, *shape]`` for each name; ``[1, *shape]`` is one network for all."""


def can_be_stacked(graph: SymmetryGraph) -> bool:
    """Whether all groups are permuted, there are no families, and no group acts twice on one part of a tensor."""
    blocks = (block for node in graph.tensors.values() for block in node.blocks)
    once = all(len(block.groups) == sum(dim.group is not None for dim in block.dims) for block in blocks)
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
        self.a, self.b = (
            {name: stack[name].to(device, torch.float64).contiguous() for name in a if is_number(stack[name])}
            for stack in (a, b)
        )
        self.count = len(next(iter(b.values())))
        self.squares = {name: (_squares(self.a[name]) + _squares(tensor)).cpu() for name, tensor in self.b.items()}
        """Squared norms of a tensor of A and of B together, ``[pairs]``."""
        self.elements: dict[str, Tensor] = {}
        """Indices ``[pairs, n]`` of the groups that were matched."""
        self.terms = {name: [_Term(self, name, uses) for uses in self._uses(name)] for name in graph.groups}

    def _uses(self, group: str) -> Iterable[list[Use]]:
        """Return the uses of a group in tensors that count, those together that depend on the same other groups."""
        together: dict[tuple[str, ...], list[Use]] = {}
        for use in self.graph.uses[group]:
            if use.tensor in self.a:
                together.setdefault(tuple(_others(use)), []).append(use)
        return together.values()

    def run(self, rtol: float, max_sweeps: int, start: Mapping[str, Tensor] | None = None) -> StackedRun:
        """Update until nothing improves; the arguments are those of `Ascent`.

        ``start`` are indices ``[pairs, n]`` of every group; without it no group is known at first.
        """
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
        distances = distances2(self.a, permuted(self.graph, self.b, self.elements))
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
    """What the uses of a group that depend on the same other groups add to its similarities, kept for every pair.

    ``term[p, i, j] = sum_(others, rest) a[p, others, rest, i] * b[p, others, rest, j]``, with the orders of the other
    groups applied to B. A group that was not matched yet is at the centre of its orders: it is averaged.

    Both sides are kept as ``[pairs, *others, rest, n]``: orders of other groups move rows of B that lie together, and
    the products are of plain matrices.
    """

    def __init__(self, matching: StackedMatching, group: str, uses: Sequence[Use]) -> None:
        self.matching, self.size = matching, matching.graph.groups[group].size
        self.others = _others(uses[0])
        self.a, self.b = (
            torch.cat([_arranged(use, side[use.tensor]) for use in uses], -2) for side in (matching.a, matching.b)
        )
        self._kept = self.b.new_empty(matching.count, self.size, self.size)
        self._orders: dict[str, Tensor] | None = None
        """Orders of the other groups, where known, with which the products were made; None before."""

    def of(self, turn: Int[Tensor, " turn"]) -> Float[Tensor, "turn n n"]:
        """Return the term for some pairs; products are computed for those where an order has changed."""
        known = self.matching.elements
        orders = {name: known[name] for name in self.others if name in known}
        if self._orders is None or self._orders.keys() != orders.keys():
            self._orders = {name: torch.empty_like(order) for name, order in orders.items()}
            self._renew(orders, torch.arange(len(self._kept)))
        elif orders:
            moved = torch.stack([(order[turn] != self._orders[name][turn]).any(1) for name, order in orders.items()])
            self._renew(orders, turn[moved.any(0)])
        return self._kept if len(turn) == len(self._kept) else self._kept[turn.to(self._kept.device)]

    def _renew(self, orders: Mapping[str, Tensor], stale: Int[Tensor, " stale"]) -> None:
        """Compute the products of some pairs."""
        if not len(stale):
            return
        assert self._orders is not None
        for name, order in orders.items():
            self._orders[name][stale] = order[stale]
        a, b = self.a, self.b
        if unknown := [at + 1 for at, name in enumerate(self.others) if name not in orders]:
            a, b = a.sum(unknown), b.mean(unknown)
        rows = stale  # of B: pair and unit of each other group as one number
        for order in orders.values():
            rows = rows[..., None] * order.shape[1] + order[stale].reshape(len(stale), *[1] * (rows.ndim - 1), -1)
        length = prod(b.shape[1:-1])
        b = b.reshape(prod(b.shape[:-2]), b.shape[-2] * self.size).index_select(0, rows.reshape(-1).to(b.device))
        a = a if len(a) == 1 or len(stale) == len(a) else a.index_select(0, stale.to(a.device))
        a, b = a.reshape(len(a), length, self.size), b.reshape(len(stale), length, self.size)
        self._kept[stale.to(b.device)] = a[0].mT @ b if len(a) == 1 else a.mT @ b


def _arranged(use: Use, stack: Tensor) -> Float[Tensor, "pairs ..."]:
    """Return the block of a use as ``[pairs, *others, rest, n]``."""
    dims, fixed = use.block.dims, [at for at, dim in enumerate(use.block.dims) if dim.group is None]
    others = [at for at, dim in enumerate(dims) if dim.group is not None and at != use.at]
    shape = [*(dims[at].size for at in others), prod(dims[at].size for at in fixed), dims[use.at].size]
    arranged = _view(use.block, stack).permute(0, *(at + 1 for at in (*others, *fixed, use.at)))
    return arranged.reshape(len(stack), *shape)


def _others(use: Use) -> list[str]:
    """Return the groups of the other dims at one use, in the order of the block."""
    return [dim.group for at, dim in enumerate(use.block.dims) if dim.group is not None and at != use.at]


def _squares(stack: Tensor) -> Float[Tensor, " networks"]:
    flat = stack.reshape(len(stack), -1)
    squares: Tensor = torch.linalg.vecdot(flat, flat)
    return squares


def permuted(graph: SymmetryGraph, stack: Stack, elements: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return every tensor of every network in the order of ``elements``, parents before the units inside them."""
    return {name: _permuted(graph, name, tensor, elements) for name, tensor in stack.items()}


def distances2(a: Stack, b: Stack) -> dict[str, Float[Tensor, " pairs"]]:
    """Return ``||A - B||^2`` of each tensor of each pair that counts, in float64 on the CPU, from a part at a time."""
    distances = {}
    for name, stacked in b.items():
        if not is_number(stacked):
            continue
        own = a[name].detach().to(stacked.device)
        step, parts = max(1, PART_ELEMENTS // max(1, own[0].numel())), []
        for start in range(0, len(stacked), step):
            reference = own if len(own) == 1 else own[start : start + step]
            parts.append(_squares(stacked[start : start + step].double() - reference.double()))
        distances[name] = torch.cat(parts).cpu()
    return distances


def _permuted(graph: SymmetryGraph, name: str, tensor: Tensor, elements: Mapping[str, Tensor]) -> Tensor:
    if not graph.tensors[name].groups:
        return tensor
    result = torch.empty_like(tensor)
    for block in graph.tensors[name].blocks:
        part = as_bits(_view(block, tensor))
        for at, dim in enumerate(block.dims):
            if dim.group is not None:
                part = _gathered(part, at, elements[dim.group].to(tensor.device), dim.ancestors)
        _view(block, result).copy_(part.view(tensor.dtype))
    return result


def _view(block: Block, stacked: Tensor) -> Tensor:
    """Return the block of every network, ``[networks, *dims]``; nothing is copied."""
    strides = stacked.stride()[1:]
    offset = stacked.storage_offset() + sum(o * s for o, s in zip(block.offsets, strides, strict=True))
    sizes = [stacked.shape[0], *(dim.size for dim in block.dims)]
    steps = [stacked.stride(0), *(dim.stride * strides[dim.axis] for dim in block.dims)]
    return torch.as_strided(stacked, sizes, steps, offset)


def _gathered(part: Tensor, at: int, element: Tensor, ancestors: tuple[int, ...] = ()) -> Tensor:
    """Return every network's part with one dim in the order of its element, which may depend on ancestors."""
    shape = [len(element)] + [1] * (part.ndim - 1)
    for place in (*ancestors, at):
        shape[place + 1] = part.shape[place + 1]
    before, size = part.shape[: at + 1], part.shape[at + 1]
    starts = size * torch.arange(prod(before), device=part.device).reshape(*before, 1)
    rows = starts + element.reshape(shape[: at + 2])
    return part.reshape(rows.numel(), prod(part.shape[at + 2 :])).index_select(0, rows.reshape(-1)).reshape(part.shape)
