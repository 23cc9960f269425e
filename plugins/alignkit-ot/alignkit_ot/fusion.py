"""Networks of different widths: B's units carried to A's by optimal transport.

OTFusion (Singh and Jaggi, NeurIPS 2020), with one change. In the paper a unit of A gets the mean of the units that are
moved to it, on the weights that write it and on those that read it. That keeps what a network computes where both have
the same width. Here a weight that reads a group counts as a density over its units, that is times their number, so
outgoing weights of units that become one are added. At equal widths both are the same.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from math import prod

import torch
from torch import Tensor, nn

from alignkit import SymmetryGraph
from alignkit.errors import SolverError
from alignkit.graph.bind import WeightsSource
from alignkit.graph.layout import Block
from alignkit.graph.nodes import TensorNode
from alignkit.text import plural
from alignkit_ot.transport import transport_plans

SETTLED = 1e-9
"""Largest change of any share in a sweep that counts as none."""
READS_FIRST = ("Conv1D", "ConvTranspose1d", "ConvTranspose2d", "ConvTranspose3d")
"""Modules whose weight has its inputs on axis 0; ``Conv1D`` is that of transformers."""
READS_NOTHING = ("Embedding", "EmbeddingBag")
"""Modules whose weight is indexed by numbers and writes its last axis."""


@dataclass(frozen=True, eq=False)
class Fusion:
    """B in the shape of A.

    Attributes:
        weights: B's weights carried to A's units, by all names of each tensor, in A's shapes and dtypes.
        plans: For each group ``[n_a, n_b]`` in float64: which share of the mass is moved from B's unit to A's. Rows add
            up to ``1 / n_a``, columns to ``1 / n_b``.
        distance2: ``||A - fused||^2``.
        sweeps: How often all groups were transported.
        a: Weights of A, by first names.
    """

    weights: dict[str, Tensor]
    plans: dict[str, Tensor]
    distance2: float
    sweeps: int
    a: Mapping[str, Tensor] = field(repr=False)

    def merged(self, share: float = 0.5) -> dict[str, Tensor]:
        """Compute ``(1 - share) * A + share * B`` with the carried B; tensors of whole numbers are A's."""
        weights = {}
        for name, carried in self.weights.items():
            own = self.a[name]
            mixed = (1 - share) * own.double() + share * carried.double()
            weights[name] = mixed.to(own.dtype) if own.is_floating_point() else own.clone()
        return weights


def fuse(
    graph_a: SymmetryGraph,
    a: WeightsSource,
    graph_b: SymmetryGraph,
    b: WeightsSource,
    *,
    regularization: float = 0.0,
    max_steps: int = 10,
    reads: Mapping[str, Collection[int]] | None = None,
) -> Fusion:
    """Carry B's weights to A's units, where the two networks differ in nothing but the sizes of groups.

    Groups are transported in turn, each given the plans of the others; a group without a plan counts with the mean of
    its units. The sweep whose weights are closest to A's is kept.

    Which axes read a group and which write it is no part of a graph. It is known for the modules of torch and
    ``transformers.pytorch_utils.Conv1D`` if ``a`` is a module. Otherwise axis 0 writes and all others read.

    Args:
        graph_a: A's graph.
        a: A's weights: a module, a state dict or a path.
        graph_b: B's graph: the same tensors and groups in the same layout. Only sizes of groups may differ.
        b: B's weights.
        regularization: As in the solver; 0 is exact transport.
        max_steps: Maximum number of sweeps.
        reads: By the first name of a tensor, the axes that read their groups, where the rule above is wrong.

    Raises:
        SolverError: The graphs differ in more than sizes; there are units inside units; or the width of a group
            differs that no weight writes or no weight reads. Every such thing is listed.
        BindError: Weights do not fit their graph.
    """
    left, right = graph_a.bind(a, a), graph_b.bind(b, b)
    axes = _read_axes(graph_a, left.module_a, reads or {})
    problems = _differences(graph_a, graph_b) or _out_of_reach(graph_a, graph_b, axes)
    if problems:
        listed = "\n".join(f"  - {text}" for text in problems)
        raise SolverError(f"the two networks cannot be fused, {plural(len(problems), 'problem')}:\n{listed}")
    moved = [name for name, node in graph_a.tensors.items() if node.groups]
    own, other = ({n: side[n].detach().cpu().double().contiguous() for n in moved} for side in (left.a, right.a))
    carrier = _Carrier(graph_a, graph_b, own, other, axes)
    plans, weights, distance2, sweeps = _descend(carrier, regularization, max_steps)
    result: dict[str, Tensor] = {}
    every_a: dict[str, Tensor] = {}
    for name, node in graph_a.tensors.items():
        value = weights.get(name, right.a[name]).to(left.a[name].device, left.a[name].dtype)
        distance2 += 0.0 if name in weights else float((left.a[name].double() - value.double()).square().sum())
        for alias in node.names:
            result[alias], every_a[alias] = value.clone(), left.a[name]
    return Fusion(result, plans, distance2, sweeps, every_a)


def _descend(
    carrier: _Carrier, regularization: float, max_steps: int
) -> tuple[dict[str, Tensor], dict[str, Tensor], float, int]:
    """Sweep over the groups; the plans, weights and distance of the best sweep, and the number of sweeps."""
    sizes = {name: (group.size, carrier.graph_b.groups[name].size) for name, group in carrier.graph_a.groups.items()}
    # The rows of a map add up to 1. It starts at the mean of all units.
    maps = {name: torch.full(size, 1 / size[1], dtype=torch.float64) for name, size in sizes.items()}
    best: tuple[dict[str, Tensor], dict[str, Tensor], float] | None = None
    sweeps = 0
    change = float("inf")
    while sweeps < max_steps and change > SETTLED:
        sweeps, change = sweeps + 1, 0.0
        for name in maps:
            new = transport_plans(carrier.similarity(name, maps), regularization) * sizes[name][0]
            change = max(change, float((new - maps[name]).abs().max()))
            maps[name] = new
        weights = {name: carrier.carried(name, maps) for name in carrier.b}
        distance2 = sum(float((carrier.a[name] - tensor).square().sum()) for name, tensor in weights.items())
        if best is None or distance2 < best[2]:
            best = ({name: matrix / sizes[name][0] for name, matrix in maps.items()}, weights, distance2)
    if best is None:
        raise SolverError(f"max_steps={max_steps}: at least one sweep is needed.")
    return *best, sweeps


@dataclass(frozen=True)
class _Carrier:
    """Moves B's tensors to A's units. ``axes``: for each tensor the axes that read their groups."""

    graph_a: SymmetryGraph
    graph_b: SymmetryGraph
    a: Mapping[str, Tensor]
    b: Mapping[str, Tensor]
    axes: Mapping[str, frozenset[int]]

    def carried(self, name: str, maps: Mapping[str, Tensor]) -> Tensor:
        """One tensor in A's shape, float64."""
        result = torch.empty(self.graph_a.tensors[name].shape, dtype=torch.float64)
        for to, source in self._blocks(name):
            to.view(result).copy_(self._mixed(name, to, source, maps, skip=None))
        return result

    def similarity(self, group: str, maps: Mapping[str, Tensor]) -> Tensor:
        """``[n_a, n_b]``: inner products of the weights of A's and B's units, the other groups carried to A's."""
        total = torch.zeros_like(maps[group])
        for name in self.b:
            for to, source in self._blocks(name):
                for at, dim in enumerate(to.dims):
                    if dim.group == group:
                        mixed = self._mixed(name, to, source, maps, skip=at).movedim(at, 0)
                        own = to.view(self.a[name]).movedim(at, 0)
                        total += own.reshape(len(own), -1) @ mixed.reshape(len(mixed), -1).mT
        return total

    def _mixed(self, name: str, to: Block, source: Block, maps: Mapping[str, Tensor], skip: int | None) -> Tensor:
        """Mix each grouped dim of a block of B but ``skip`` to A's units; what reads is taken as a density."""
        part = source.view(self.b[name])
        density = prod(s.size / t.size for s, t in zip(source.dims, to.dims, strict=True) if t.axis in self.axes[name])
        for at, dim in enumerate(to.dims):
            if dim.group is not None and at != skip:
                part = torch.tensordot(maps[dim.group], part.movedim(at, 0), dims=1).movedim(0, at)
        return density * part

    def _blocks(self, name: str) -> list[tuple[Block, Block]]:
        return list(zip(self.graph_a.tensors[name].blocks, self.graph_b.tensors[name].blocks, strict=True))


# ---------------------------------------------------------------------- what is checked


def _read_axes(
    graph: SymmetryGraph, module: nn.Module | None, reads: Mapping[str, Collection[int]]
) -> dict[str, frozenset[int]]:
    """For each tensor the axes that read their groups."""
    if unknown := [name for name in reads if name not in graph.tensors]:
        raise SolverError(f"reads= names {', '.join(map(repr, unknown))}, which the graph of A does not hold.")
    return {name: frozenset(reads.get(name, _usual(node, module))) for name, node in graph.tensors.items()}


def _usual(node: TensorNode, module: nn.Module | None) -> range:
    kind = "" if module is None else _owner(module, node.name)
    if kind in READS_NOTHING:
        return range(0)
    return range(1) if kind in READS_FIRST and len(node.shape) > 1 else range(1, len(node.shape))


def _owner(module: nn.Module, name: str) -> str:
    """Return the type of the module that holds a tensor."""
    path = name.rpartition(".")[0]
    try:
        return type(module.get_submodule(path)).__name__
    except AttributeError:
        return ""


def _differences(graph_a: SymmetryGraph, graph_b: SymmetryGraph) -> list[str]:
    """List what differs beside the sizes of groups, as text."""
    differences = [
        f"units inside units do not fit: group {g.name!r} is owned by {g.parent!r}. alignkit.widen makes the narrow "
        "network as wide as the other, which any solver aligns"
        for g in graph_a.groups.values()
        if g.parent
    ]
    for what, left, right in (
        ("group", graph_a.groups, graph_b.groups),
        ("tensor", graph_a.tensors, graph_b.tensors),
    ):
        differences += [f"{what} {name!r} is only in A" for name in left if name not in right]
        differences += [f"{what} {name!r} is only in B" for name in right if name not in left]
    for name in graph_a.tensors.keys() & graph_b.tensors.keys():
        one, two = graph_a.tensors[name], graph_b.tensors[name]
        if _pattern(one) != _pattern(two):
            differences.append(
                f"tensor {name!r} is {one.notation()!r} of shape {one.shape} in A and {two.notation()!r} of shape "
                f"{two.shape} in B"
            )
    return sorted(differences)


def _pattern(node: TensorNode) -> list[list[tuple[int, str | int]]]:
    """Return what has to be equal in A and B: for each block the axis of each dim, and its group or fixed size."""
    return [[(dim.axis, dim.group or dim.size) for dim in block.dims] for block in node.blocks]


def _out_of_reach(graph_a: SymmetryGraph, graph_b: SymmetryGraph, axes: Mapping[str, frozenset[int]]) -> list[str]:
    """List groups of different sizes that weights do not both write and read, as text."""
    roles: dict[str, set[bool]] = {name: set() for name in graph_a.groups}
    for name, node in graph_a.tensors.items():
        for block in node.blocks:
            for dim in block.dims:
                if dim.group is not None:
                    roles[dim.group].add(dim.axis in axes[name])
    reasons = []
    for name, group in graph_a.groups.items():
        sizes = f"group {name!r} has {group.size} units in A and {graph_b.groups[name].size} in B"
        if group.size == graph_b.groups[name].size:
            continue
        if True not in roles[name]:
            reasons.append(
                f"{sizes}, and no weight reads it, so an operation does (as attention reads queries and keys)"
            )
        if False not in roles[name]:
            reasons.append(f"{sizes}, and no weight writes it; if an axis is taken for the wrong one, say so by reads=")
    return reasons
