"""Widening: the weights of a network in the shapes of a wider one that computes the same.

The units of a space are mapped to more units by a matrix whose columns are orthogonal. Where units are copied, as those
that are permuted are, what writes them is copied, and what reads them is divided by the number of copies. Where a space
rotates, any matrix will do that keeps the mean of squares, and with a LayerNorm the mean: that of `_overlap`, which
copies units where one width divides the other (Chen, Goodfellow and Shlens, "Net2Net", 2016; Gesmundo and Maile,
"Composable function-preserving expansions for transformer architectures", 2023).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from alignkit.errors import WidenError
from alignkit.graph import SymmetryGraph
from alignkit.graph.kinds import KINDS, PLANES, GroupKind
from alignkit.graph.layout import Block, Dim
from alignkit.graph.nodes import Group
from alignkit.text import plural

SCORES = (0.25, 0.0)
"""Powers that are tried for spaces that no weight reads, as queries and keys: these are multiplied with each other. A
softmax that divides by the root of the size of heads leaves a product too small by the root of the copies, and one that
divides by a number of its own leaves it as it is."""


NO_GROUP = "that belong to no group"
FREE_OUTPUTS = (
    "What a model returns belongs to no group: outputs= of the trace names the outputs that count. "
    "SymmetryGraph.report() tells what else stays."
)


@dataclass(frozen=True, eq=False)
class UnitMap:
    """How the units of a group become more units.

    Attributes:
        matrix: ``[wider, narrow]`` in float64, columns orthogonal and of length 1.
        copies: ``[narrow]``: how many units stand for each; where units are mixed, as many on average.
    """

    matrix: Tensor
    copies: Tensor

    def scaled(self, power: float) -> Tensor:
        """Return the matrix times the copies to a power: 0.5 for what writes the space, -0.5 for what reads it."""
        return self.matrix * self.copies**power


def unit_map(kind: GroupKind, narrow: int, wider: int) -> UnitMap:
    """Return how ``narrow`` units of a kind become ``wider`` ones.

    Raises:
        WidenError: Planes have frequencies that the wider ones do not have.
    """
    copies = torch.full((narrow,), wider / narrow, dtype=torch.float64)
    if kind in PLANES:
        times, rest = divmod(wider, narrow)
        if rest:
            frequencies = "each plane of rotary positions turns with a frequency of its own"
            raise WidenError(f"{frequencies}, and only a multiple of {narrow} units has those of {narrow}")
        matrix = torch.zeros(wider, narrow, dtype=torch.float64)
        unit = torch.arange(narrow)
        half = narrow // 2
        first = unit % half * times if kind == "planes" else unit // 2 * 2 * times
        matrix[first + (unit // half * half * times if kind == "planes" else unit % 2), unit] = 1
        return UnitMap(matrix, copies)
    if KINDS[kind].rotates:
        left, _, right = torch.linalg.svd(_overlap(narrow, wider), full_matrices=False)
        return UnitMap(left @ right, copies)
    owner = torch.arange(wider) * narrow // wider
    copies = torch.bincount(owner, minlength=narrow).double()
    return UnitMap(torch.nn.functional.one_hot(owner, narrow) / copies.sqrt(), copies)


def _overlap(narrow: int, wider: int) -> Tensor:
    """Return how much of one line, cut into ``wider`` and ``narrow`` equal parts, each two parts share.

    All rows have one sum, and all columns, so that its polar factor takes a vector of ones to one.
    """
    ends = [torch.arange(count + 1, dtype=torch.float64) / count for count in (wider, narrow)]
    shared = torch.minimum(ends[0][1:, None], ends[1][1:]) - torch.maximum(ends[0][:-1, None], ends[1][:-1])
    return shared.clamp(min=0)


@dataclass(frozen=True, eq=False)
class Widening:
    """The way from the shapes of one graph to those of another.

    Args:
        graph: The graph of the narrow network.
        wider: That of the wider one: the same tensors and groups.
        weights: Folded weights of the narrow network, by first names.

    Raises:
        WidenError: The graphs differ in more than numbers of units, the wider one has fewer of some, or a group cannot
            be mapped. All such things are listed.
    """

    graph: SymmetryGraph
    wider: SymmetryGraph
    weights: Mapping[str, Tensor]

    def __post_init__(self) -> None:
        if problems := (self._missing() or [*self._groups(), *self._tensors()]):
            listed = "\n".join(f"  - {text}" for text in problems)
            advice = f"\n{FREE_OUTPUTS}" if NO_GROUP in listed else ""
            told = f"the network cannot be widened exactly, {plural(len(problems), 'problem')}:\n{listed}{advice}"
            raise WidenError(told)

    @cached_property
    def maps(self) -> dict[str, UnitMap]:
        """How each group is mapped that has more units in the wider network."""
        grown = {name: (group, self.wider.groups[name].size) for name, group in self.graph.groups.items()}
        return {n: unit_map(group.kind, group.size, size) for n, (group, size) in grown.items() if group.size < size}

    @cached_property
    def unread(self) -> frozenset[str]:
        """Groups that rotate, have more units, and are not read by a weight: those of queries and keys."""
        read = {
            group
            for name, node in self.graph.tensors.items()
            for block in node.blocks
            for _, group in block.moving
            if any(self._reads(name, block, dim) for dim in block.dims if dim.group == group)
        }
        return frozenset(name for name in self.maps.keys() - read if self.graph.rotates(name))

    @cached_property
    def unused(self) -> frozenset[str]:
        """Tensors of another size that neither trace ever read: zeros stand for them."""
        never = {*self.graph.provenance.unused} & {*self.wider.provenance.unused}
        return frozenset(n for n in never if self.graph.tensors[n].shape != self.wider.tensors[n].shape)

    def tensors(self, scores: float) -> dict[str, Tensor]:
        """Return the weights in the wider shapes, in float64 where they move; ``scores`` is one of `SCORES`."""
        result = {}
        for name, node in self.graph.tensors.items():
            value, shape = self.weights[name], self.wider.tensors[name].shape
            if name in self.unused:
                result[name] = value.new_zeros(shape)
                continue
            if not any(group in self.maps for group in node.groups) and tuple(value.shape) == shape:
                result[name] = value
                continue
            wide = torch.empty(shape, dtype=torch.float64, device=value.device)
            for block, target in zip(node.blocks, self.wider.tensors[name].blocks, strict=True):
                target.view(wide).copy_(self._widened(name, block, target, value.double(), scores))
            result[name] = wide
        return result

    def _widened(self, name: str, block: Block, target: Block, value: Tensor, scores: float) -> Tensor:
        part = block.view(value)
        for at, (dim, wider) in enumerate(zip(block.dims, target.dims, strict=True)):
            if dim.group in self.maps:
                power = -0.5 if self._reads(name, block, dim) else scores if dim.group in self.unread else 0.5
                matrix = self.maps[dim.group].scaled(power).to(part.device)
                part = torch.tensordot(matrix, part, dims=([1], [at])).movedim(0, at)
            elif dim.size != wider.size:  # the same number everywhere, as `_tensors` makes sure
                part = part.narrow(at, 0, 1).expand(*part.shape[:at], wider.size, *part.shape[at + 1 :])
        return part

    @cached_property
    def _contracted(self) -> dict[tuple[str, int], list[tuple[int, int]]]:
        ranges: dict[tuple[str, int], list[tuple[int, int]]] = defaultdict(list)
        for positions in self.graph.provenance.contracted:
            ranges[positions.tensor, positions.axis].extend(positions.ranges)
        return ranges

    def _reads(self, name: str, block: Block, dim: Dim) -> bool:
        start = block.offsets[dim.axis]
        return any(first <= start <= last for first, last in self._contracted.get((name, dim.axis), ()))

    def _missing(self) -> list[str]:
        """List what only one of the graphs has."""
        sides: tuple[tuple[str, Mapping[str, object], Mapping[str, object]], ...] = (
            ("tensor", self.graph.tensors, self.wider.tensors),
            ("group", self.graph.groups, self.wider.groups),
        )
        problems = []
        for what, own, other in sides:
            problems += [f"only the narrow network has the {what} {name!r}" for name in own if name not in other]
            problems += [f"only the wider network has the {what} {name!r}" for name in other if name not in own]
        return problems

    def _groups(self) -> list[str]:
        """List groups that cannot be mapped."""
        problems = []
        for name, group in self.graph.groups.items():
            wider = self.wider.groups[name]
            if (group.kind, group.parent) != (wider.kind, wider.parent):
                problems.append(f"group {name!r} is {_words(group)}, and {_words(wider)} in the wider network")
            elif group.size > wider.size:
                problems.append(f"group {name!r} has {group.size} units, and {wider.size} in the wider network")
            else:
                try:
                    unit_map(group.kind, group.size, wider.size)
                except WidenError as error:
                    problems.append(f"group {name!r} has {group.size} units, {wider.size} when widened: {error}")
        return problems

    def _tensors(self) -> list[str]:
        """List tensors that differ in more than numbers of units."""
        problems = []
        for name, node in self.graph.tensors.items():
            other = self.wider.tensors[name]
            if name in self.unused:
                continue
            own = [[(dim.axis, dim.group) for dim in block.dims] for block in node.blocks]
            if own != [[(dim.axis, dim.group) for dim in block.dims] for block in other.blocks]:
                problems.append(f"tensor {name!r} is {node.notation()!r} here and {other.notation()!r} there")
                continue
            for block, target in zip(node.blocks, other.blocks, strict=True):
                problems += [
                    f"tensor {name!r}, axis {dim.axis}: {dim.size} positions, {wider.size} in the wider network, "
                    + NO_GROUP
                    for at, (dim, wider) in enumerate(zip(block.dims, target.dims, strict=True))
                    if dim.group is None and dim.size != wider.size and not self._is_level(name, block, at)
                ]
            grown = {group for group in node.groups if self.graph.groups[group].size < self.wider.groups[group].size}
            if len(node.names) > 1 and any(
                self._reads(name, b, d) for b in node.blocks for d in b.dims if d.group in grown
            ):
                problems.append(
                    f"tensor {name!r} is tied, so that it writes the space that it reads: copies would count twice. "
                    "Trace both networks without keep_tied, so that the head gets weights of its own"
                )
        return problems

    def _is_level(self, name: str, block: Block, at: int) -> bool:
        """Tell whether a folded tensor is the same all along one dim of a block, as gains of 1 and shifts of 0 are."""
        part = block.view(self.weights[name])
        return bool((part == part.narrow(at, 0, 1)).all())


def _words(group: Group) -> str:
    inside = f" inside {group.parent!r}" if group.parent else ""
    return f"{KINDS[group.kind].words}{inside}"
