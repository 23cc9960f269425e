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
from typing import Any, Literal, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from alignkit.checkpoints.fit import is_number
from alignkit.errors import BindError
from alignkit.graph.elements.alignment import Alignment
from alignkit.graph.layout import Block
from alignkit.graph.owned import ReadOnly
from alignkit.graph.parts import (
    SMALL_PIECE,
    as_tensors,
    changes,
    common_parts,
    ordered_part,
    orders_of,
    ranges,
    split_places,
)
from alignkit.graph.stored import StoredNetwork
from alignkit.graph.symmetry_graph import Pair
from alignkit.graph.uses import Use
from alignkit.matching.assignment import Backend
from alignkit.matching.products import Factors, Product
from alignkit.matching.similarities import Similarities, room_for_similarities
from alignkit.matching.soft_alignment import SoftAlignment

Elements: TypeAlias = Mapping[str, Tensor | None]
"""For each group its indices, as in `Alignment`, its matrix, as in `SoftAlignment`, or None while nothing is known."""

Products: TypeAlias = Literal["auto", "float64", "float32"]
"""Type in which similarities are multiplied."""

MANY_UNITS, MANY_WEIGHTS = 256, 16
"""Units of a group, and weights of a unit, from which "auto" multiplies in float32."""
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

    @property
    def scales(self) -> tuple[float, float]:
        """Powers of two that A's and B's tensor are divided by before float32 products."""
        return power_of_two(self.squares_a), power_of_two(self.squares_b)


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
    """Values and similarities of one pair of networks; values and sums are float64, products are ``products``.

    Args:
        bound: The pair.
        device: Where sums are made.
        products: Type in which weights are multiplied for similarities. "auto" is float32 where that is safe: for the
            large matrices (`_type_of`) of weights that have at most 32 bits.
    """

    def __init__(self, bound: Pair, device: torch.device | str = "cpu", products: Products = "float64") -> None:
        self.bound, self.graph = bound, bound.graph
        self.device, self.products = torch.device(device), products
        self.a, self.b = (as_tensors(side, self.device) for side in (bound.a, bound.b))
        self._similarities = Similarities((self.a, self.b), self.device, self._room)
        self._known_factors: dict[Use, tuple[Factors, float]] = {}

    @property
    def _room(self) -> int:
        """Entries of similarities that may be kept."""
        stored = [side.budget.room for side in (self.a, self.b) if isinstance(side, StoredNetwork)]
        return min([room_for_similarities(self.graph), *stored])

    @property
    def backend(self) -> Backend:
        """What assigns large matrices: scipy where memory is short, since it makes one copy of them and lapx two."""
        return "scipy" if self.bound.is_stored else "auto"

    def weighs(self, name: str) -> bool:
        """Tell whether a tensor counts in sums: see `alignkit.checkpoints.fit.is_number`."""
        return is_number(self.a.dtype(name))

    @cached_property
    def uses(self) -> dict[str, tuple[Use, ...]]:
        """Uses of each group, without those in tensors that do not count."""
        return {group: tuple(use for use in uses if self.weighs(use.tensor)) for group, uses in self.graph.uses.items()}

    @cached_property
    def plain_uses(self) -> dict[str, tuple[Use, ...]]:
        """Uses of each group in which nothing is nested, and nothing else is nested in the same parents."""
        return {g: tuple(use for use in uses if use.is_innermost and not use.branches) for g, uses in self.uses.items()}

    @cached_property
    def moved(self) -> tuple[str, ...]:
        """Tensors on which groups act and that count."""
        return tuple(name for name, node in self.graph.tensors.items() if node.groups and self.weighs(name))

    def with_products(self, products: Products) -> Objective:
        """Return the same objective with similarities that are multiplied in another type.

        float32 is twice as fast on CPUs, and much faster on most GPUs; entries are then off by about 1e-6 of the
        product of the norms of the units, so what is chosen with them has to be judged by `gain`.
        """
        if products == self.products:
            return self
        other = copy.copy(self)
        other.products = products
        other._similarities = Similarities((self.a, self.b), self.device, self._room)
        other._known_factors = {}
        return other

    def is_exact(self, group: str) -> bool:
        """Tell whether all products of a group are float64."""
        return all(self._type_of(use) == torch.float64 for use in self.uses[group])

    def _type_of(self, use: Use) -> torch.dtype:
        """Return the type of the products at a use.

        "auto" is float64 where a product costs little: for few units, and for vectors such as running variances, whose
        large squares would drown in float32 what the matrices say.
        """
        if self.products == "auto":
            size = math.prod(dim.size for dim in use.block.dims)
            narrow = all(side.dtype(use.tensor).itemsize <= 4 for side in (self.a, self.b))
            large = use.unit_count >= MANY_UNITS and size >= MANY_WEIGHTS * use.unit_count
            return torch.float32 if narrow and large else torch.float64
        return torch.float32 if self.products == "float32" else torch.float64

    def _factors(self, use: Use) -> tuple[Factors, float]:
        """Return what brings both sides of a use to the type of its products, and what products are multiplied with."""
        if use not in self._known_factors:
            dtype = self._type_of(use)
            scales = (1.0, 1.0) if dtype == torch.float64 else self.sums[use.tensor].scales
            self._known_factors[use] = (lambda part, side: divided(part, scales[side], dtype)), math.prod(scales)
        return self._known_factors[use]

    def parts(self, name: str, elements: Elements | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield one tensor of A and of aligned B part by part; B as it stands where no elements are given.

        Nothing for a tensor that does not count.
        """
        if self.weighs(name):
            node = self.graph.tensors[name]
            orders = {} if elements is None else known(elements, node.groups)
            yield from ((a, b) for a, b in common_parts(node, [(self.a, {}), (self.b, orders)]))

    def gain(self, before: Elements, after: Elements) -> float:
        """Return ``<A, after # B> - <A, before # B>`` in float64, from what moves alone.

        ``before`` and ``after`` are indices for every group that acts on a tensor with a group that differs.
        """
        differing = {name for name, element in after.items() if element is not before[name]}
        blocks = ((name, block) for name in self.moved for block in self.graph.tensors[name].blocks)
        moved = ((name, block) for name, block in blocks if not differing.isdisjoint(block.groups))
        return float(sum((self._gain(*each, before, after) for each in moved), start=self._zero()))

    def _zero(self) -> Float[Tensor, ""]:
        """Return where a sum begins that stays on the device until it is read."""
        return torch.zeros((), dtype=torch.float64, device=self.device)

    def _gain(self, name: str, block: Block, before: Elements, after: Elements) -> Float[Tensor, ""]:
        total, piece = self._zero(), min(SMALL_PIECE, self.a.piece)
        orders = (orders_of(block, known(elements, block.groups)) for elements in (before, after))
        for moving, places, old, new in changes(block, *orders):
            # Files are cut by rows: whatever moves along them is read as a whole. So is what rotates.
            alone = self.a.in_memory or moving == 0
            at = moving if alone else 0
            cut = not alone or any(order.is_floating_point() for order in new.values())
            for run in ranges(piece, block, at, new) if cut else split_places(piece, block, at, places):
                a = self.a.part(name, block, at, run).double()
                sides = (ordered_part(self.b, name, block, at, run, each).double() for each in (new, old))
                total += torch.sub(*sides).mul_(a).sum()
        return total

    @cached_property
    def sums(self) -> Mapping[str, Sums]:
        """Sums over each tensor, all from one pass over both networks; zeros for those that do not count."""
        totals = {}
        for name in self.graph.tensors:
            total = torch.zeros(4, dtype=torch.float64, device=self.device)
            for a, b in self.parts(name):
                a, b = a.double().reshape(-1), b.double().reshape(-1)
                difference = a - b
                pairs = ((a, a), (b, b), (a, b), (difference, difference))
                total += torch.stack([torch.dot(left, right) for left, right in pairs])
            totals[name] = total
        return ReadOnly({name: Sums(*total) for name, total in read_together(totals).items()})

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
                wrong = "numbers whose squares overflow float64"
                if self.bound.is_stored:  # networks in memory were looked at when they were bound
                    label = "A" if not math.isfinite(sums.squares_a) else "B"
                    raise BindError(f"{name!r} of {label} holds NaN or infinity, or {wrong}. {advice}.")
                raise BindError(f"{name!r} holds {wrong}. {advice}.")
        largest = max((max(sums.squares_a, sums.squares_b) for sums in self.sums.values()), default=0.0)
        if largest < TINY and any(bool(a.any()) or bool(b.any()) for name in self.sums for a, b in self.parts(name)):
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

    def value(self, alignment: Alignment | SoftAlignment) -> float:
        """Return ``<A, P # B>`` over all tensors."""
        elements = alignment.elements if isinstance(alignment, Alignment) else alignment.matrices
        parts = (part for name in self.moved for part in self.parts(name, elements))
        return self.fixed_value + float(sum(((a.double() * b.double()).sum() for a, b in parts), start=self._zero()))

    def distances2(self, alignment: Alignment | Elements) -> dict[str, float]:
        """Return ``|| A - P # B ||^2`` of each tensor, summed in float64.

        ``alignment`` may be given by indices for each group. Tensors are looked at one by one: squares less products
        would keep the rounding of the largest.
        """
        elements = dict(alignment.elements if isinstance(alignment, Alignment) else alignment)
        distances = {}
        for name in self.moved:
            differences = ((a.double() - b.double()).reshape(-1) for a, b in self.parts(name, elements))
            distances[name] = sum((torch.dot(each, each) for each in differences), start=self._zero())
        return {**self.unaligned, **read_together(distances)}

    def distance2(self, alignment: Alignment) -> float:
        """Return ``|| A - P # B ||^2`` over all tensors, summed in float64."""
        return sum(self.distances2(alignment).values())

    def similarity(self, group: str, elements: Elements) -> Float[Tensor, "instances n n"]:
        """Return how alike each unit of A is to each unit of B, all other groups being applied to B.

        The sum of the products at every use of the group (`alignkit.matching.products`)::

            similarity[p, i, j] = sum_uses sum_r unfold(A)[p, i, r] * unfold(others # B)[p, j, r]

        with ``p`` a unit of the parent at its aligned place, ``i`` and ``j`` units of the group and ``r`` everything
        else in the block. Assigning it best is the best update of this group alone, exactly where the group acts once
        on each block.

        Of ``elements`` those of the other groups count. A group that is None counts as unknown: what it indexes is
        averaged, which is the centre of all its orders. The group's ancestors have to be known.

        Returns:
            One float64 matrix for each unit of the parent (one for a root), in squared units of the weights.
        """
        size, instances = self.graph.groups[group].size, self.graph.instances(group)
        parents = [elements[name] for name in self.graph.ancestors(group)]
        uses, plain = self.uses[group], self.plain_uses[group]
        hard = not any(element is None or element.is_floating_point() for element in parents)
        if plain and hard and self._similarities.has_room(group, self.graph.unit_count(group)):
            # Of the similarities of all units, those of parents that are put together; a copy.
            total = self.plain_similarity(group, elements)
            if parents:
                places, sources = (index.to(self.device) for index in (torch.arange(instances), flat_order(parents)))
                total = total.reshape(instances, size, instances, size)[places, :, sources, :]
            else:
                total = total[None].clone()
            uses = tuple(use for use in uses if use not in plain) if len(plain) < len(uses) else ()
        else:
            total = torch.zeros(instances, size, size, dtype=torch.float64, device=self.device)
        for use in uses:
            product = Product(use, elements, within_parents=True)
            total = product.add_to(total, (self.a, self.b), *self._factors(use))
        self.a.release()
        return total

    def plain_similarity(self, group: str, elements: Elements) -> Float[Tensor, "units units"]:
        """Return similarities of all units of all parents at the group's `plain_uses`; not to be written to.

        With 2 heads of 2 units, ``[4, 4]``: row ``2 p + i`` is unit ``i`` of A's head ``p``, column ``2 q + j`` is unit
        ``j`` of B's head ``q``. They are kept, and corrected as other groups change their order
        (`alignkit.matching.similarities`).
        """
        plain = self.plain_uses[group]
        if not plain:
            units = self.graph.unit_count(group)
            return torch.zeros(units, units, dtype=torch.float64, device=self.device)
        return self._similarities.of(group, plain, elements, self._factors)[0]

    def pair_similarity(self, use: Use, elements: Elements) -> Float[Tensor, "units units"]:
        """Return similarities of all units of all parents at one use.

        What is nested in a unit is averaged, unless it has a matrix for each pair of units.
        """
        total = torch.zeros(1, use.unit_count, use.unit_count, dtype=torch.float64, device=self.device)
        product = Product(use, elements, within_parents=False)
        return product.add_to(total, (self.a, self.b), *self._factors(use))[0]


def read_together(sums: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return sums as plain numbers; a device is waited for once, however many there are."""
    return dict(zip(sums, torch.stack([*sums.values()]).cpu().tolist(), strict=True)) if sums else {}


def flat_order(elements: Iterable[Tensor | None]) -> Tensor:
    """Return where each unit of the last group comes from, over all parents, from elements of a chain of groups."""
    flat = torch.zeros(1, dtype=torch.int64)
    for element in elements:
        assert element is not None
        size = element.shape[-1]
        flat = (flat[:, None] * size + element.reshape(-1, size).cpu()).reshape(-1)
    return flat


def known(elements: Elements, groups: Iterable[str]) -> dict[str, Tensor]:
    """Return the elements of groups, none of which is None."""
    wanted = {group: element for group in groups if (element := elements[group]) is not None}
    assert len(wanted) == len(set(groups)), f"an order of {', '.join(groups)} is not known"
    return wanted
