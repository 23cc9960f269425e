"""The alignment objective of two checkpoints on disk: the sums of `alignkit.matching.objective`, piece by piece.

Example: a tensor ``[8 units, 1000]`` of a checkpoint, ``memory`` for 2 rows. Its similarity ``A @ B^T`` is summed up
range by range of the first dim: rows 0 and 1 of A with rows 0 and 1 of B fill ``total[0:2, 0:2]``, and so on, 16
products of ``[2, 1000] @ [1000, 2]``. Where the group acts on the second axis instead, each range of rows adds
``[1000, 2] @ [2, 1000]`` to all of ``total``, and every row is read once.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from math import prod

import torch
from jaxtyping import Float
from torch import Tensor

from alignkit.checkpoints.fit import is_number
from alignkit.graph.elements.action import act_on_block
from alignkit.graph.layout import Block
from alignkit.graph.symmetry_graph import Pair
from alignkit.graph.uses import Use
from alignkit.jobs.from_disk.budget import Budget, release_freed
from alignkit.jobs.from_disk.weights import Reordered, WeightsOnDisk
from alignkit.matching.objective import Elements, Objective, divided, known, unknown_dims

_SLICED = "\0sliced"
"""Marks the group of a dim nested in the first one, of which only a range is at hand."""
_ROWS = 512
"""Rows of a product that are widened to float64 at once: few enough to be small beside the matrix of similarities."""


class ObjectiveOnDisk(Objective):
    """Values and similarities of a pair of `WeightsOnDisk`, with a few pieces of tensors in memory at a time."""

    def __init__(self, bound: Pair, budget: Budget) -> None:
        assert isinstance(bound.a, WeightsOnDisk) and isinstance(bound.b, WeightsOnDisk)
        self.bound, self.graph, self.budget = bound, bound.graph, budget
        self.device, self.dtype, self.products = torch.device("cpu"), torch.float64, torch.float64
        self.on_disk = (bound.a, bound.b)
        # Whole tensors in float64, for trees that cannot be worked in pieces.
        self.a, self.b = (side.widened() for side in self.on_disk)

    def weighs(self, name: str) -> bool:
        """Tell whether a tensor counts in sums; see `Objective.weighs`."""
        return is_number(self.on_disk[0].entry(name).dtype)

    def pieces(self, name: str, elements: Elements | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield rows of one tensor of A and of aligned B, in float64; see `Objective.pieces`."""
        if not self.weighs(name):
            return
        node = self.graph.tensors[name]
        aligned = Reordered(node, {} if elements is None else known(elements, node.groups))
        for span in aligned.pieces(self.budget.piece):
            a, b = self.on_disk
            part = b.piece(name, span) if elements is None else aligned.at(b, span)
            yield a.piece(name, span).double(), part.double()

    def similarity(self, group: str, elements: Elements) -> Float[Tensor, "instances n n"]:
        """Return how alike each unit of A is to each unit of B; see `Objective.similarity`."""
        size = self.graph.groups[group].size
        total = torch.zeros(self.graph.instances(group), size, size, dtype=torch.float64)
        for use in self.uses[group]:
            _Summing(self, use, elements).add_to(total)
        release_freed()
        return total

    def pair_similarity(self, use: Use, elements: Elements) -> Float[Tensor, "units units"]:
        """Return similarities of all units of all parents at one use; see `Objective.pair_similarity`."""
        total = torch.zeros(1, use.unit_count, use.unit_count, dtype=torch.float64)
        _Summing(self, use, elements, ordered=False).add_to(total)
        return total[0]

    def reads(self, use: Use) -> int:
        """Return the bytes that summing up the similarities of one use reads."""
        summing = _Summing(self, use, {})
        size = prod(dim.size for dim in use.block.dims)
        a, b = (size * side.entry(use.tensor).dtype.itemsize for side in self.on_disk)
        return a + b * (len(summing.ranges) if summing.compares else 1)


class _Summing:
    """The sum over one use, one range of the block's first dim at a time.

    The first dim is the outermost factor of axis 0, so that each of its units is a range of whole rows. It plays one of
    four parts: it is averaged, it is summed over, it is an ancestor whose units are matched already, or its units (or
    those nested in them) are what is compared. ``ordered`` applies the group's ancestors to B, and similarities are
    those within each parent; otherwise all units of all parents are compared, and what is nested in them is averaged.
    """

    def __init__(self, objective: ObjectiveOnDisk, use: Use, elements: Elements, *, ordered: bool = True) -> None:
        self.objective, self.use, self.dims, self.ordered = objective, use, use.block.dims, ordered
        self.averaged = unknown_dims(use, elements) | (frozenset() if ordered else set(use.branches))
        # Averaged dims but the first, whose mean is taken over all ranges.
        self.inner = tuple(at for at in self.averaged if at != 0)
        still = self.averaged | ({use.at} if ordered else set(use.chain))
        self.skip = still | {0}
        moving = [dim.group for at, dim in enumerate(self.dims) if dim.group and at not in still]
        self.elements = {group: element for group in moving if (element := elements.get(group)) is not None}
        self.compares = 0 in use.chain and (not ordered or use.at == 0)
        first = self.dims[0]
        # Rows that one unit of the first dim spans, and units of it that fit into a piece.
        self.span = 1 + sum((d.size - 1) * d.stride for d in self.dims[1:] if d.axis == 0)
        wide = 8 * self.span * prod(objective.graph.tensors[use.tensor].shape[1:])
        step = max(1, objective.budget.piece // max(1, wide))
        self.ranges = [(i, min(i + step, first.size)) for i in range(0, first.size, step)]

    def add_to(self, total: Float[Tensor, "instances n n"]) -> None:
        """Add the similarities of the use to ``total``."""
        if self.compares:
            # Every range of A with every range of B; what is smaller than one range is read once.
            each = total.shape[-1] // self.dims[0].size
            whole = self._part(1, *self.ranges[0]) if len(self.ranges) == 1 else None
            for start, stop in self.ranges:
                a = self._part(0, start, stop)
                for low, high in self.ranges:
                    part = total[:, start * each : stop * each, low * each : high * each]
                    self._add_product(part, a, whole if whole is not None else self._part(1, low, high))
        elif 0 in self.averaged:
            # A is summed and B averaged over the first dim before they are multiplied.
            a = sum((self._part(0, *r) for r in self.ranges), start=torch.zeros(()))
            b = sum((self._part(1, *r) for r in self.ranges), start=torch.zeros(())) / self.dims[0].size
            self._add_product(total, a, b)
        else:
            each = total.shape[0] // self.dims[0].size if 0 in self.use.chain else 0
            for start, stop in self.ranges:
                part = total[start * each : stop * each] if each else total
                self._add_product(part, self._part(0, start, stop), self._part(1, start, stop, matched=True))

    def _part(self, side: int, start: int, stop: int, *, matched: bool = False) -> Tensor:
        """Read a range of the first dim as ``[instances, n, rest]`` or ``[1, units, rest]``, the others applied to B.

        With ``matched`` the first dim of B is taken in the order that is known. Averaged dims have size 1.
        """
        weights, first, index = self.objective.on_disk[side], self.dims[0], torch.arange(start, stop)
        if matched and first.group is not None:
            index = self.elements[first.group][start:stop]
        offset, count = self.use.block.offsets[0], len(index)
        if self.span == first.stride and count and bool((index.diff() == 1).all()):
            low = offset + int(index[0]) * first.stride
            rows = weights.piece(self.use.tensor, (low, low + count * first.stride))
        else:
            sources = (offset + index[:, None] * first.stride + torch.arange(self.span)).reshape(-1)
            rows = weights.take(self.use.tensor, sources)
        # The block is cut down to the rows that were read.
        dims = [replace(first, size=count, stride=self.span)]
        for dim in self.dims[1:]:
            cut = dim.group is not None and 0 in dim.ancestors
            dims.append(replace(dim, group=f"{dim.group}{_SLICED}") if cut else dim)
        block = Block((0, *self.use.block.offsets[1:]), tuple(dims))
        dtype = torch.float64 if self.averaged else self.objective.products
        part = block.view(divided(rows, self.objective.scale_of_products, dtype))
        if side == 1:
            sliced = {group + _SLICED: element[start:stop] for group, element in self.elements.items()}
            part = act_on_block(block, part, {**self.elements, **sliced}, skip=self.skip)
        if self.inner:
            part = part.mean(self.inner, keepdim=True) if side == 1 else part.sum(self.inner, keepdim=True)
        if 0 in self.averaged:
            part = part.sum(0, keepdim=True)
        part = part.permute(*self.use.chain, *self.use.rest).to(self.objective.products)
        chain = part.shape[: len(self.use.chain)]
        return part.reshape(prod(chain[:-1]), chain[-1], -1) if self.ordered else part.reshape(1, prod(chain), -1)

    def _add_product(self, total: Tensor, a: Tensor, b: Tensor) -> None:
        """Add ``a @ b^T`` to ``total`` for each instance, without a second matrix of that size."""
        for each, left, right in zip(total, a, b, strict=True):
            if a.dtype == total.dtype:
                each.addmm_(left, right.mT)
                continue
            for start in range(0, left.shape[0], _ROWS):
                product = left[start : start + _ROWS] @ right.mT
                each[start : start + _ROWS].add_(product, alpha=self.objective.scale_of_products**2)
