"""The alignment objective of two checkpoints on disk: the sums of `alignkit.matching.objective`, piece by piece."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod

import torch
from jaxtyping import Float
from torch import Tensor

from alignkit.graph.elements.action import act_on_block
from alignkit.graph.elements.alignment import Alignment
from alignkit.graph.layout import Block
from alignkit.graph.symmetry_graph import Pair
from alignkit.graph.uses import Use
from alignkit.jobs.from_disk.budget import Budget, release_freed
from alignkit.jobs.from_disk.weights import Reordered, WeightsOnDisk, plain
from alignkit.matching.objective import Elements, Objective, unknown_dims
from alignkit.matching.tree_objective import TreeObjective


@dataclass(frozen=True)
class Sums:
    """Sums over one tensor of A and of B, in float64; squares are finite exactly if all values are."""

    squares_a: float
    squares_b: float
    inner: float
    distance: float


class ObjectiveOnDisk(Objective):
    """Values and similarities of two checkpoints, with a few pieces of tensors in memory at a time.

    Args:
        bound: The pair; both sides are `WeightsOnDisk`.
        budget: Memory that may be used.
        products: Type in which similarities are multiplied; they are summed in float64.
    """

    def __init__(self, bound: Pair, budget: Budget, products: torch.dtype = torch.float64) -> None:
        assert isinstance(bound.a, WeightsOnDisk) and isinstance(bound.b, WeightsOnDisk)
        self.bound, self.graph, self.budget = bound, bound.graph, budget
        self.device, self.dtype, self.products = torch.device("cpu"), torch.float64, products
        self.on_disk = (bound.a, bound.b)
        moved = [name for name, node in self.graph.tensors.items() if node.groups]
        self.a, self.b = (_Wide(moved, side) for side in self.on_disk)  # type: ignore[assignment]

    def _views(self, use: Use) -> tuple[Tensor, Tensor]:
        a = use.block.view(self.a[use.tensor]).permute(*use.chain, *use.rest)
        return a, use.block.view(self.b[use.tensor])

    # ---------------------------------------------------------------- values

    @cached_property
    def sums(self) -> dict[str, Sums]:
        """Sums over each tensor as it stands, all from one pass over both checkpoints."""
        return {name: self._sums(name) for name in self.graph.tensors}

    def _sums(self, name: str) -> Sums:
        total = torch.zeros(4, dtype=torch.float64)
        for span in Reordered(self.graph.tensors[name], {}).pieces(self.budget.piece):
            a, b = (plain(side, name, span).double().reshape(-1) for side in self.on_disk)
            squares_a, squares_b, inner = torch.dot(a, a), torch.dot(b, b), torch.dot(a, b)
            a -= b
            total += torch.stack((squares_a, squares_b, inner, torch.dot(a, a)))
        found = [float(value) for value in total]
        return Sums(found[0], found[1], found[2], found[3])

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
        """``<A, P # B>`` of one tensor on which groups act."""
        total = 0.0
        for a, b in self._pairs(name, elements):
            total += float(torch.dot(a, b))
        return total

    def distances2(self, alignment: Alignment) -> dict[str, float]:
        """``|| A - P # B ||^2`` of each tensor, summed in float64."""
        distances = {}
        for name, node in self.graph.tensors.items():
            if not node.groups:
                distances[name] = self.sums[name].distance
                continue
            total = 0.0
            for a, b in self._pairs(name, alignment.elements):
                a -= b
                total += float(torch.dot(a, a))
            distances[name] = total
        return distances

    def _pairs(self, name: str, elements: Elements) -> Iterator[tuple[Tensor, Tensor]]:
        """Pieces of A and of aligned B, as vectors in float64."""
        node = self.graph.tensors[name]
        known = {group: element for group in node.groups if (element := elements[group]) is not None}
        assert len(known) == len(node.groups), f"an order of a group of {name} is not known"
        aligned = Reordered(node, known)
        for span in aligned.pieces(self.budget.piece):
            a = plain(self.on_disk[0], name, span).double().reshape(-1)
            yield a, aligned.at(self.on_disk[1], span).double().reshape(-1)

    # ---------------------------------------------------------------- similarities

    def similarity(self, group: str, elements: Elements) -> Float[Tensor, "instances n n"]:
        """How alike each unit of A is to each unit of B; see `Objective.similarity`."""
        size = self.graph.groups[group].size
        total = torch.zeros(self.graph.instances(group), size, size, dtype=torch.float64)
        for use in self.graph.uses[group]:
            self.add_similarity(use, elements, total)
        release_freed()
        return total

    def reads(self, use: Use) -> int:
        """Bytes that `add_similarity` reads at one place."""
        summing = _Summing(self, use, {}, torch.empty(0), False, frozenset())
        size = prod(dim.size for dim in use.block.dims)
        a, b = (size * side.entry(use.tensor).dtype.itemsize for side in self.on_disk)
        return a + b * (len(summing.ranges) if summing.compares else 1)

    def add_similarity(
        self,
        use: Use,
        elements: Elements,
        total: Float[Tensor, "instances n n"],
        *,
        ordered: bool = True,
        branches: frozenset[int] = frozenset(),
    ) -> None:
        """Add what one place contributes.

        Args:
            use: The place.
            elements: Indices for the other groups; None is averaged.
            total: Similarities of units, changed in place.
            ordered: Whether the group's ancestors are applied to B, and similarities are those within each; otherwise
                all units of all parents are compared, and there is one matrix.
            branches: Positions of further dims to average.
        """
        _Summing(self, use, elements, total, ordered, branches).run()


class TreeOnDisk(TreeObjective):
    """The update of a tree of groups over checkpoints on disk."""

    objective: ObjectiveOnDisk

    def pair_similarity(self, use: Use, elements: Elements) -> Float[Tensor, "units units"]:
        """Similarities over all pairs of units at one place; what branches off the chain is averaged."""
        total = torch.zeros(1, use.unit_count, use.unit_count, dtype=torch.float64)
        self.objective.add_similarity(use, elements, total, ordered=False, branches=frozenset(self.branches(use)))
        return total[0]


class _Summing:
    """The sum over one place, one range of the block's first dim at a time.

    The first dim is the outermost factor of axis 0, so that each of its units is a range of whole rows. It plays one of
    four parts: it is averaged, it is summed over, it is an ancestor whose units are matched already, or its units (or
    those nested in them) are what is compared.
    """

    def __init__(
        self,
        objective: ObjectiveOnDisk,
        use: Use,
        elements: Elements,
        total: Tensor,
        ordered: bool,
        branches: frozenset[int],
    ) -> None:
        self.objective, self.use, self.total, self.ordered = objective, use, total, ordered
        self.dims = use.block.dims
        self.averaged = branches | (unknown_dims(use, elements) - branches)
        unmoved = {use.at} if ordered else set(use.chain)
        self.skip = frozenset(self.averaged | unmoved | {0})
        self.elements: dict[str, Tensor] = {}
        for at, dim in enumerate(self.dims):
            if dim.group is not None and at not in self.averaged | unmoved:
                found = elements.get(dim.group)
                if found is not None:
                    self.elements[dim.group] = found
        self.compares = 0 in use.chain and (not ordered or use.at == 0)
        first = self.dims[0]
        self.span = 1 + sum((d.size - 1) * d.stride for d in self.dims[1:] if d.axis == 0)
        wide = 8 * self.span * prod(objective.graph.tensors[use.tensor].shape[1:])
        self.step = max(1, objective.budget.piece // max(1, wide))
        self.ranges = [(i, min(i + self.step, first.size)) for i in range(0, first.size, self.step)]

    def run(self) -> None:
        """Add everything to ``total``."""
        if self.compares:
            self._compare()
        elif 0 in self.averaged:
            self._average()
        else:
            for start, stop in self.ranges:
                a, b = self._a(start, stop), self._b(start, stop, matched=True)
                total = self.total
                if 0 in self.use.chain:
                    each = total.shape[0] // self.dims[0].size
                    total = total[start * each : stop * each]
                _add_product(total, a, b)

    def _compare(self) -> None:
        """Every range of A with every range of B; what is smaller than one range is read once."""
        each = self.total.shape[-1] // self.dims[0].size
        kept = self._b(*self.ranges[0], matched=False) if len(self.ranges) == 1 else None
        for start, stop in self.ranges:
            a = self._a(start, stop)
            for low, high in self.ranges:
                b = kept if kept is not None else self._b(low, high, matched=False)
                part = self.total[0, start * each : stop * each, low * each : high * each]
                _add_product(part[None], a, b)

    def _average(self) -> None:
        """Sum A and B over the first dim before they are multiplied."""
        a = sum((self._a(*r) for r in self.ranges), start=torch.zeros(()))
        b = sum((self._b(*r, matched=False) for r in self.ranges), start=torch.zeros(())) / self.dims[0].size
        _add_product(self.total, a, b)

    def _a(self, start: int, stop: int) -> Tensor:
        part, _ = self._part(0, torch.arange(start, stop), start)
        return self._arranged(part, torch.sum)

    def _b(self, start: int, stop: int, *, matched: bool) -> Tensor:
        """B's part with the other groups applied; ``matched`` takes the first dim in the order that is known."""
        index = torch.arange(start, stop)
        group = self.dims[0].group
        if matched and group is not None:
            index = self.elements[group][start:stop]
        part, block = self._part(1, index, start)
        elements = dict(self.elements)
        for dim in block.dims:
            if dim.group is not None and dim.group.endswith(_SLICED) and dim.group not in elements:
                whole = self.elements.get(dim.group.removesuffix(_SLICED))
                if whole is not None:
                    elements[dim.group] = whole[start:stop]
        return self._arranged(act_on_block(block, part, elements, skip=self.skip), torch.mean)

    def _part(self, side: int, index: Tensor, start: int) -> tuple[Tensor, Block]:
        """Some units of the block's first dim, one dimension for each dim, and the block cut down to them."""
        weights, first = self.objective.on_disk[side], self.dims[0]
        offset, count = self.use.block.offsets[0], len(index)
        if self.span == first.stride and count and bool((index.diff() == 1).all()):
            low = offset + int(index[0]) * first.stride
            rows = weights.rows(self.use.tensor, low, low + count * first.stride)
        else:
            places = (offset + index[:, None] * first.stride + torch.arange(self.span)).reshape(-1)
            rows = weights.take(self.use.tensor, places)
        dims = [replace(first, size=count, stride=self.span)]
        for dim in self.dims[1:]:
            cut = dim.group is not None and 0 in dim.ancestors
            dims.append(replace(dim, group=f"{dim.group}{_SLICED}") if cut else dim)
        block = Block((0, *self.use.block.offsets[1:]), tuple(dims))
        dtype = torch.float64 if self.averaged else self.objective.products
        return block.view(rows.to(dtype)), block

    def _arranged(self, part: Tensor, reduce: object) -> Tensor:
        """Averaged dims taken out, the chain first, as ``[instances, n, rest]`` or ``[1, units, rest]``."""
        first_too = 0 in self.averaged  # Its mean is taken over all ranges.
        places = tuple(at for at in self.averaged if at != 0)
        if places:
            part = part.sum(places, keepdim=True) if reduce is torch.sum else part.mean(places, keepdim=True)
        if first_too:
            part = part.sum(0, keepdim=True)
        part = part.permute(*self.use.chain, *self.use.rest)
        part = part.to(self.objective.products)
        chain = len(self.use.chain)
        if not self.ordered:
            return part.reshape(1, prod(part.shape[:chain]), -1)
        return part.reshape(prod(part.shape[: chain - 1]), part.shape[chain - 1], -1)


_SLICED = "\0sliced"
"""Marks the group of a dim nested in the first one, of which only a range is at hand."""
_ROWS = 512


def _add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """``total += a @ b^T`` for each instance, in the dtype of a and b, without a second matrix of that size."""
    if a.dtype == total.dtype:
        for each, left, right in zip(total, a, b, strict=True):
            each.addmm_(left, right.mT)
        return
    for each, left, right in zip(total, a, b, strict=True):
        for start in range(0, left.shape[0], _ROWS):
            each[start : start + _ROWS] += left[start : start + _ROWS] @ right.mT


class _Wide(Mapping[str, Tensor]):
    """Tensors on disk as whole float64 tensors; used where a tree cannot be worked in pieces."""

    def __init__(self, names: list[str], weights: WeightsOnDisk) -> None:
        self.names, self.weights = names, weights

    def __getitem__(self, name: str) -> Tensor:
        return self.weights[name].double()

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)
