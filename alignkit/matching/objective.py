"""The alignment objective: distance of A to aligned B, and the similarities whose assignment lowers it.

``|| A - P # B ||^2`` is smallest where the inner product ``<A, P # B>`` is largest. Every solver calls this module for
values and for the similarity matrix of a group; [Ainsworth23], "matching weights".
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Self, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from alignkit.checkpoints.fit import is_number
from alignkit.errors import BindError
from alignkit.graph.elements.action import act_on_block
from alignkit.graph.elements.alignment import Alignment
from alignkit.graph.owned import ReadOnly
from alignkit.graph.symmetry_graph import Pair
from alignkit.graph.uses import Use
from alignkit.matching.soft_alignment import SoftAlignment

Elements: TypeAlias = Mapping[str, Tensor | None]
"""For each group its indices, as in `Alignment`, its matrix, as in `SoftAlignment`, or None while nothing is known."""

CACHE_ELEMENTS = 1 << 25
"""Maximum number of elements of similarity matrices that are kept for reuse: 256 MB in float64."""
ORDINARY = (1e-8, 1e12)
"""Norms of tensors between these have products that float32 holds, with room for elements far below the norm."""
TINY = 1e-300
"""Squares below this are too near the smallest number of float64 to say anything."""


@dataclass(frozen=True)
class Sums:
    """Sums over one tensor of A and of B as they stand, in float64; finite if all values and their squares are."""

    squares_a: float
    squares_b: float
    inner: float
    distance: float


def power_of_two(squares: float) -> float:
    """Return a power of two near the root of ``squares``, and 1 where numbers of that size need no scaling.

    Divided by it, weights whose squares add up to ``squares`` have products that float32 holds. Division by a power of
    two loses no bit.
    """
    size = math.sqrt(squares)
    return 1.0 if not size or ORDINARY[0] < size < ORDINARY[1] else math.ldexp(1.0, math.frexp(size)[1])


def divided(tensor: Tensor, scale: float, dtype: torch.dtype) -> Tensor:
    """Divide a tensor by a scale, in float64, and round it to a dtype."""
    return tensor.to(dtype) if scale == 1 else (tensor.double() / scale).to(dtype)


class Objective:
    """Values and similarities of one pair of networks, of type ``dtype``; sums over tensors are always float64."""

    def __init__(self, bound: Pair, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float64) -> None:
        self.bound, self.graph = bound, bound.graph
        self.device, self.dtype, self.products = torch.device(device), dtype, dtype
        moved = [name for name, node in self.graph.tensors.items() if node.groups and self.weighs(name)]
        self.a: Mapping[str, Tensor]
        self.b: Mapping[str, Tensor]
        self.a, self.b = (
            ReadOnly({name: side[name].detach().to(self.device, dtype).contiguous() for name in moved})
            for side in (bound.a, bound.b)
        )
        self._cache: dict[Use, tuple[list[Tensor | None], Tensor]] = {}
        self._cached = 0
        self._views: dict[Use, tuple[Tensor, Tensor]] = {}

    def weighs(self, name: str) -> bool:
        """Tell whether a tensor counts in sums: see `alignkit.checkpoints.fit.is_number`."""
        return is_number(self.bound.a[name])

    @cached_property
    def uses(self) -> dict[str, tuple[Use, ...]]:
        """Uses of each group, without those in tensors that do not count."""
        return {group: tuple(use for use in uses if self.weighs(use.tensor)) for group, uses in self.graph.uses.items()}

    def with_products(self, dtype: torch.dtype) -> Self:
        """Return the same objective with similarity matrices that are multiplied in another type.

        float32 is much faster on most GPUs; entries are then off by about 1e-6 of the product of the norms of the
        units, so what is chosen with them has to be judged by `tensor_value`.
        """
        if dtype == self.products:
            return self
        other = copy.copy(self)
        other.products, other._cache, other._cached = dtype, {}, 0
        return other

    @property
    def scale_of_products(self) -> float:
        """What weights are divided by before they are multiplied for a similarity: products in float64 need nothing."""
        return 1.0 if self.products == torch.float64 else self.scale

    def pieces(self, name: str, elements: Elements | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield one tensor of A and of aligned B piece by piece; B as it stands where no elements are given.

        Nothing for a tensor that does not count.
        """
        if not self.weighs(name):
            return
        a, b = self.a.get(name, self.bound.a[name]).detach(), self.b.get(name, self.bound.b[name]).detach()
        for block in self.graph.tensors[name].blocks:
            part = block.view(b)
            yield block.view(a), part if elements is None else act_on_block(block, part, known(elements, block.groups))

    @cached_property
    def sums(self) -> Mapping[str, Sums]:
        """Sums over each tensor, all from one pass over both networks; zeros for those that do not count."""
        sums = {}
        for name in self.graph.tensors:
            total = torch.zeros(4, dtype=torch.float64)
            for a, b in self.pieces(name):
                a, b = a.double().reshape(-1), b.double().reshape(-1)
                difference = a - b
                pairs = ((a, a), (b, b), (a, b), (difference, difference))
                total += torch.stack([torch.dot(left, right) for left, right in pairs]).cpu()
            sums[name] = Sums(*total.tolist())
        return ReadOnly(sums)

    @cached_property
    def scale(self) -> float:
        """Power of two near the norm of the largest tensor, by which weights are divided before float32 products.

        It is 1 for weights of ordinary size. Sums themselves need no scale, because they are taken in float64.

        Raises:
            BindError: The squares of the weights overflow float64, or vanish in it.
        """
        advice = "Multiply both networks by one number first; the best order of units stays the same"
        for name, sums in self.sums.items():
            if not math.isfinite(sums.squares_a + sums.squares_b + sums.distance):
                raise BindError(f"{name!r} holds numbers whose squares overflow float64. {advice}.")
        largest = max((max(sums.squares_a, sums.squares_b) for sums in self.sums.values()), default=0.0)
        if largest < TINY and any(bool(a.any()) or bool(b.any()) for name in self.sums for a, b in self.pieces(name)):
            raise BindError(f"the weights are so small that their squares vanish in float64. {advice}.")
        return power_of_two(largest)

    @cached_property
    def squares(self) -> float:
        """``|A|^2 + |B|^2``, the same for every alignment."""
        return sum(sums.squares_a + sums.squares_b for sums in self.sums.values())

    @cached_property
    def fixed_value(self) -> float:
        """``<A, B>`` over the tensors on which no group acts."""
        return sum(self.sums[name].inner for name, node in self.graph.tensors.items() if not node.groups)

    @cached_property
    def unaligned(self) -> dict[str, float]:
        """``|| A - B ||^2`` of each tensor."""
        return {name: sums.distance for name, sums in self.sums.items()}

    def tensor_value(self, name: str, elements: Elements) -> float:
        """Return ``<A, P # B>`` of one tensor on which groups act."""
        return sum(float((a * b).sum(dtype=torch.float64)) for a, b in self.pieces(name, elements))

    def tensor_distance(self, name: str, elements: Elements) -> float:
        """Return ``|| A - P # B ||^2`` of one tensor on which groups act, in float64."""
        differences = ((a.double() - b.double()).reshape(-1) for a, b in self.pieces(name, elements))
        return sum(float(torch.dot(difference, difference)) for difference in differences)

    def value(self, alignment: Alignment | SoftAlignment) -> float:
        """Return ``<A, P # B>`` over all tensors."""
        elements = alignment.elements if isinstance(alignment, Alignment) else alignment.matrices
        return self.fixed_value + sum(self.tensor_value(name, elements) for name in self.a)

    def distances2(self, alignment: Alignment) -> dict[str, float]:
        """Return ``|| A - P # B ||^2`` of each tensor, summed in float64."""
        return {**self.unaligned, **{name: self.tensor_distance(name, alignment.elements) for name in self.a}}

    def distance2(self, alignment: Alignment) -> float:
        """Return ``|| A - P # B ||^2`` over all tensors, summed in float64."""
        return sum(self.distances2(alignment).values())

    def similarity(self, group: str, elements: Elements) -> Float[Tensor, "instances n n"]:
        """Return how alike each unit of A is to each unit of B, all other groups being applied to B.

        The sum, over every use of the group, of ``unfold(A) @ unfold(others applied to B)^T``::

            similarity[p, i, j] = sum_uses sum_r unfold(A)[p, i, r] * unfold(others # B)[p, j, r]

        with ``p`` a unit of the parent at its aligned place, ``i`` and ``j`` units of the group and ``r`` everything
        else in the block. Assigning it best is the best update of this group alone, exactly where the group acts once
        on each block. What a use adds is kept until the order of a group that it depends on changes.

        Of ``elements`` those of the other groups count. A group that is None counts as unknown: what it indexes is
        averaged, which is the centre of all its orders. The group's ancestors have to be known.

        Returns:
            One matrix for each unit of the parent (one for a root), in squared units of the weights.
        """
        size = self.graph.groups[group].size
        total = torch.zeros(self.graph.instances(group), size, size, dtype=self.dtype, device=self.device)
        scale = self.scale_of_products
        for use in self.uses[group]:
            depends = [elements.get(name) for name in use.others]
            kept = self._cache.get(use)
            if kept is not None and all(x is y for x, y in zip(kept[0], depends, strict=True)):
                total.add_(kept[1], alpha=scale**2)
                continue
            shape = (use.unit_count // size, size, -1)
            a, b = (divided(side.reshape(shape), scale, self.products) for side in self.unfold(use, elements))
            product = a @ b.mT
            if not product.requires_grad and (kept is not None or self._cached + product.numel() <= CACHE_ELEMENTS):
                self._cached += product.numel() if kept is None else 0
                self._cache[use] = (depends, product)
            total.add_(product, alpha=scale**2)
        return total

    def unfold(self, use: Use, elements: Elements) -> tuple[Tensor, Tensor]:
        """Return A's and B's part at one use, the group's chain of dims first, all other groups applied to B.

        The group's ancestors are applied when they are known; the group itself is not.
        """
        if use not in self._views:
            a = use.block.view(self.a[use.tensor]).permute(*use.chain, *use.rest)
            self._views[use] = a, use.block.view(self.b[use.tensor])
        a, b = self._views[use]
        if use.others:
            unknown = unknown_dims(use, elements)
            elements = {name: elements.get(name) for name in use.others}
            b = act_on_block(use.block, b, elements, skip=unknown | {use.at})  # type: ignore[arg-type]
            if unknown:
                order = (*use.chain, *use.rest)
                averaged = [order.index(i) for i in unknown]
                return a.sum(averaged), b.permute(order).mean(averaged)
        return a, b.permute(*use.chain, *use.rest)

    def pair_similarity(self, use: Use, elements: Elements) -> Float[Tensor, "units units"]:
        """Return similarities of all units of all parents at one use; what is nested in a unit is averaged.

        With 2 heads of 2 units, ``[4, 4]``: row ``2 p + i`` is unit ``i`` of A's head ``p``, column ``2 q + j`` is unit
        ``j`` of B's head ``q``.
        """
        a, b = self.sides(use, elements, use.branches)
        return a.reshape(use.unit_count, -1) @ b.reshape(use.unit_count, -1).mT

    def sides(self, use: Use, elements: Elements, average: Iterable[int]) -> tuple[Tensor, Tensor]:
        """Return A's and B's part at one use, the group's chain of dims first and left as it is in both.

        The groups of other dims are applied to B, but for those nested in the chain. Over dims of ``average`` and of
        unknown groups A is summed and B averaged; they are kept, of size 1.
        """
        averaged = frozenset(average) | (unknown_dims(use, elements) - set(use.branches))
        still, order = averaged | set(use.branches) | set(use.chain), (*use.chain, *use.rest)
        a, b = (use.block.view(side[use.tensor]) for side in (self.a, self.b))
        moving = [dim.group for i, dim in enumerate(use.block.dims) if dim.group and i not in still]
        b = act_on_block(use.block, b, known(elements, moving), skip=still)
        if averaged:
            a, b = a.sum(tuple(averaged), keepdim=True), b.mean(tuple(averaged), keepdim=True)
        return a.permute(order), b.permute(order)


def unknown_dims(use: Use, elements: Elements) -> frozenset[int]:
    """Return the dims off the chain of groups whose order (or whose parents' order) is not known."""
    if not use.others:
        return frozenset()
    dims = use.block.dims

    def is_unknown(at: int) -> bool:
        group = dims[at].group
        return group is not None and (elements.get(group) is None or any(map(is_unknown, dims[at].ancestors)))

    return frozenset(at for at in use.rest if is_unknown(at))


def known(elements: Elements, groups: Iterable[str]) -> dict[str, Tensor]:
    """Return the elements of groups, none of which is None."""
    wanted = {group: element for group in groups if (element := elements[group]) is not None}
    assert len(wanted) == len(set(groups)), f"an order of {', '.join(groups)} is not known"
    return wanted
