"""Similarities of the units of each group, kept and corrected as other groups change their order.

A sweep over the groups asks for the similarities of each group again, and after the first sweeps hardly a unit of its
neighbours has moved. Where ``m`` of ``n`` units of a neighbour moved, the difference ::

    sum_r unfold(A)[i, r] * (unfold(new orders # B) - unfold(old orders # B))[j, r]    over the m positions r alone

costs ``m / n`` of a product. Sums are float64, and what is added to them is rounded relative to what changed. When the
changes since the last full product have cost `REFRESH` products, similarities are multiplied in full again: they are
never further off than a few products are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod

import torch
from jaxtyping import Float
from torch import Tensor

from alignkit.graph.parts import Tensors
from alignkit.graph.structure import GraphStructure
from alignkit.graph.uses import Use
from alignkit.matching.products import Factors, Product

REFRESH = 2.0
"""Cost of changes, in full products, after which similarities are multiplied in full again."""

ROOM = 1 << 25
"""Entries of similarities that may be kept however small the networks are: 256 MB."""


def room_for_similarities(graph: GraphStructure) -> int:
    """Return how many entries of similarities may be kept: as many as a network has weights, and `ROOM` at least."""
    return max(ROOM, sum(prod(node.shape) for node in graph.tensors.values()))


@dataclass
class Kept:
    """Similarities of a group, what they were multiplied for, and the cost of changes since the last full product."""

    total: Float[Tensor, "1 units units"]
    products: dict[Use, Product]
    changed: float = 0.0


class Similarities:
    """Similarities of all units of some groups, over all parents; those of up to ``room`` entries in all are kept."""

    def __init__(self, sides: tuple[Tensors, Tensors], device: torch.device, room: int) -> None:
        self._sides, self._device, self._room = sides, device, room
        self._kept: dict[str, Kept] = {}

    def of(
        self,
        group: str,
        uses: Sequence[Use],
        elements: Mapping[str, Tensor | None],
        factors: Callable[[Use], tuple[Factors, float]],
    ) -> Float[Tensor, "1 units units"]:
        """Return the sum of the products of all units at some uses; it may be kept, so it must not be written to.

        Args:
            group: Name of the group.
            uses: Its uses, always the same for a group.
            elements: Those that hold now, as `Product` takes them.
            factors: Returns the type of the products at a use, and what they are multiplied with.
        """
        kept = self._kept.get(group)
        known = {} if kept is None else kept.products
        products = {
            use: known[use]
            if use in known and known[use].is_for(elements)
            else Product(use, elements, within_parents=False)
            for use in uses
        }
        if kept is not None and self._follow(kept, products, factors):
            return kept.total
        units = uses[0].unit_count
        total = torch.zeros(1, units, units, dtype=torch.float64, device=self._device)
        for use, product in products.items():
            total = product.add_to(total, self._sides, *factors(use))
        if self.has_room(group, units) and not any(product.is_soft for product in products.values()):
            self._room -= units**2 if kept is None else 0
            self._kept[group] = Kept(total, products)
        return total

    def has_room(self, group: str, units: int) -> bool:
        """Tell whether the similarities of a group are kept, or would be."""
        return group in self._kept or units**2 <= self._room

    def _follow(
        self, kept: Kept, products: dict[Use, Product], factors: Callable[[Use], tuple[Factors, float]]
    ) -> bool:
        """Bring kept similarities to new products; False, with nothing done, where all of them are better made anew."""
        moved = {use: product for use, product in products.items() if product is not kept.products[use]}
        if not moved:
            return True
        if any(product.is_soft for product in moved.values()):
            return False
        steps = {use: product.changes_from(kept.products[use]) for use, product in moved.items()}
        whole = sum(product.work for product in products.values())
        cost = sum(p.work if (c := steps[use]) is None else p.work_of(c) for use, p in moved.items()) / max(1, whole)
        if kept.changed + cost > REFRESH or cost >= 1:
            return False
        for use, product in moved.items():
            (to_type, scale), changes = factors(use), steps[use]
            if changes is None:  # other groups are unknown than before
                kept.products[use].add_to(kept.total, self._sides, to_type, -scale)
                product.add_to(kept.total, self._sides, to_type, scale)
            else:
                product.add_changes_to(kept.total, changes, self._sides, to_type, scale)
        kept.products, kept.changed = products, kept.changed + cost
        return True
