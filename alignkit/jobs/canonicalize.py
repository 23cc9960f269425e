"""Thousands of small networks brought to the order of units of one reference.

Weight matching ([Ainsworth23], Algorithm 1) on a whole batch of networks: similarities and permutations are computed
for all of them at once, and only the linear assignments run one matrix after the other. Every network takes the same
steps as it would alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn

from alignkit.errors import AlignmentError, BindError
from alignkit.graph.bind import WeightsSource, fit_of, weights_of
from alignkit.graph.elements.alignment import Alignment
from alignkit.graph.layout import Block
from alignkit.graph.symmetry_graph import Pair, SymmetryGraph
from alignkit.graph.uses import Use
from alignkit.matching.assignment import assignment_value, linear_assignment
from alignkit.plotting.pictures import bar_chart
from alignkit.reports.document import Part, Picture, Report, Section, Table, Text
from alignkit.reports.sections import facts_section, number, uncovered_section
from alignkit.solver import Problem
from alignkit.solvers.coordinate_ascent import colour_roots
from alignkit.solvers.weight_matching import WeightMatching

BATCH_ELEMENTS = 1 << 24
"""Maximum number of weights in a batch of networks: 128 MB in float64."""
ROWS = 200
"""Maximum number of networks in the table of a report."""


@dataclass(frozen=True, eq=False)
class Canonical:
    """A set of networks in the order of units of a reference.

    Attributes:
        graph: Their graph.
        weights: The networks in their new order, ``[networks, *shape]`` for each tensor by its first name.
        elements: Indices of every group, ``[networks, *graph.element_shape(group)]``.
        before: ``||reference - network||^2`` as the networks were given, float64 ``[networks]``.
        after: The same in the new order.
        seconds: Wall-clock time.
        batched: Whether networks were matched in batches. Graphs with families, or with a group that acts twice on one
            part of a tensor, are matched one network after the other.
    """

    graph: SymmetryGraph
    weights: Mapping[str, Tensor]
    elements: Mapping[str, Tensor]
    before: Tensor
    after: Tensor
    seconds: float
    batched: bool

    def __len__(self) -> int:
        return len(self.before)

    @property
    def networks_per_second(self) -> float:
        """Networks matched and permuted in a second."""
        return len(self) / max(self.seconds, 1e-9)

    def alignment(self, index: int) -> Alignment:
        """The alignment that brought one network to the reference."""
        return Alignment(self.graph, {name: element[index] for name, element in self.elements.items()})

    def network(self, index: int) -> dict[str, Tensor]:
        """The weights of one network in the new order."""
        return {name: tensor[index] for name, tensor in self.weights.items()}

    def explain(self) -> str:
        """Say in two lines what it was worth and how long it took."""
        how = "in batches" if self.batched else "one after the other"
        return (
            f"{len(self)} networks, mean squared distance to the reference {float(self.before.mean()):.6g} -> "
            f"{float(self.after.mean()):.6g}.\n{self.seconds:.3g} s, {self.networks_per_second:.0f} networks a second, "
            f"{how}."
        )

    def facts(self) -> dict[str, Any]:
        """Return what came out as plain values, as JSON takes them."""
        return {
            "networks": [
                {"before": before, "after": after}
                for before, after in zip(self.before.tolist(), self.after.tolist(), strict=True)
            ],
            "seconds": self.seconds,
            "networks_per_second": self.networks_per_second,
            "batched": self.batched,
        }

    def report(
        self,
        title: str = "Networks in the order of one reference",
        *,
        names: Sequence[str] | None = None,
        facts: Mapping[str, str] | None = None,
    ) -> Report:
        """Say how far each network is from the reference, as it was given and in the new order.

        Args:
            title: Heading of the report.
            names: What the networks are called. None: by their number.
            facts: What else belongs to the summary.
        """
        called = [f"network {i}" for i in range(len(self))] if names is None else names
        distances = zip(called, self.before.tolist(), self.after.tolist(), strict=True)
        rows = tuple((name, number(before), number(after)) for name, before, after in distances)
        summary = {
            **(facts or {}),
            "networks": str(len(self)),
            "seconds": f"{self.seconds:.3g}",
            "networks a second": f"{self.networks_per_second:.3g}",
        }
        means = {"as given": float(self.before.mean()), "in the order of the reference": float(self.after.mean())}
        figure = bar_chart(means, "mean squared distance to the reference")
        parts: list[Part] = [
            Picture.of(figure, "distances", "Distances to the reference."),
            Table(("network", "squared distance as given", "in the order of the reference"), rows[:ROWS]),
        ]
        if len(rows) > ROWS:
            parts.append(Text(f"and {len(rows) - ROWS} more networks."))
        side_by_side = Section("No alignment beside the alignment", tuple(parts))
        return Report(title, (facts_section(summary), side_by_side, uncovered_section(self.graph)))

    def __repr__(self) -> str:
        return (
            f"Canonical({len(self)} networks, mean squared distance {float(self.before.mean()):.6g} -> "
            f"{float(self.after.mean()):.6g}, {self.networks_per_second:.0f} networks/s)"
        )


def canonicalize(
    graph: SymmetryGraph,
    networks: Sequence[WeightsSource] | Mapping[str, Tensor],
    reference: WeightsSource,
    *,
    device: torch.device | str | None = None,
    rtol: float = 1e-9,
    max_steps: int = 1000,
) -> Canonical:
    """Bring many networks of one architecture to the order of units of a reference.

    Args:
        graph: The graph that they share.
        networks: Modules, state dicts or paths; or one mapping of stacked tensors ``[networks, *shape]``.
        reference: The network whose order of units all others take.
        device: Where similarities are computed. Default: where the reference's tensors are.
        rtol: A sweep that improves the distance of a network by less than this fraction is its last.
        max_steps: Most sweeps.

    Returns:
        The networks in their new order, with distances before and after.

    Raises:
        AlignmentError: There are no networks.
        BindError: A network or the reference does not fit the graph; the message names it by its number.
    """
    started = perf_counter()
    stacked, target = _stacked(graph, networks, reference)
    count = len(next(iter(stacked.values()))) if stacked else 0
    if not count:
        raise AlignmentError("there are no networks to bring to the reference.")
    place = next(iter(target.values())).device if device is None else torch.device(device)
    batched, options = can_be_batched(graph), {"rtol": rtol, "max_steps": max_steps}
    size = max(1, BATCH_ELEMENTS // max(1, sum(tensor.numel() for tensor in target.values()))) if batched else 1
    parts: list[dict[str, Tensor]] = []
    for first in range(0, count, size):
        batch = {name: tensor[first : first + size] for name, tensor in stacked.items()}
        if batched:
            parts.append(_together(graph, target, batch, place, options))
        else:
            parts.append(_alone(graph, target, {n: t[0] for n, t in batch.items()}, place, options))
    elements = {name: torch.cat([part[name] for part in parts]) for name in graph.groups}
    weights = {name: _permuted(graph, name, tensor, elements) for name, tensor in stacked.items()}
    before, after = (_distances(target, side) for side in (stacked, weights))
    return Canonical(graph, weights, elements, before, after, perf_counter() - started, batched)


def can_be_batched(graph: SymmetryGraph) -> bool:
    """Whether a graph has no families and no group acts twice on one part of a tensor."""
    blocks = (block for node in graph.tensors.values() for block in node.blocks)
    once = all(len(block.groups) == sum(dim.group is not None for dim in block.dims) for block in blocks)
    return once and len(graph.roots) == len(graph.groups)


def _alone(
    graph: SymmetryGraph,
    target: Mapping[str, Tensor],
    network: Mapping[str, Tensor],
    device: torch.device,
    options: Mapping[str, float],
) -> dict[str, Tensor]:
    problem = Problem(Pair(graph, target, network), device=device)
    found = WeightMatching(**options).solve(problem, lambda step: None).alignment
    return {name: element[None] for name, element in found.elements.items()}


def _together(
    graph: SymmetryGraph,
    target: Mapping[str, Tensor],
    batch: Mapping[str, Tensor],
    device: torch.device,
    options: Mapping[str, float],
) -> dict[str, Tensor]:
    elements = _Batch(graph, target, batch, device, options).run()
    moved = {name: _permuted(graph, name, tensor, elements) for name, tensor in batch.items()}
    # Weight matching alone starts again from a network that it would leave in a worse place than it was.
    for i in (_distances(target, moved) > _distances(target, batch)).nonzero().squeeze(1).tolist():
        own = _alone(graph, target, {name: tensor[i] for name, tensor in batch.items()}, device, options)
        for name, element in own.items():
            elements[name][i] = element[0]
    return elements


class _Batch:
    """Coordinate ascent on a batch of networks: `Ascent` with one more dimension in front."""

    def __init__(
        self,
        graph: SymmetryGraph,
        target: Mapping[str, Tensor],
        networks: Mapping[str, Tensor],
        device: torch.device,
        options: Mapping[str, float],
    ) -> None:
        self.graph, self.device = graph, device
        self.rtol, self.max_steps = options["rtol"], int(options["max_steps"])
        self.a = {name: tensor.to(device, torch.float64) for name, tensor in target.items()}
        self.b = {name: tensor.to(device, torch.float64).contiguous() for name, tensor in networks.items()}
        self.count = len(next(iter(self.b.values())))
        squares = sum((_flat(b).square().sum(1) + self.a[n].square().sum() for n, b in self.b.items()))
        self.squares = torch.as_tensor(squares).cpu()
        self.negligible = 1e-12 * self.squares.clamp_min(1e-300)
        self._constant: dict[Use, Tensor] = {}

    def run(self) -> dict[str, Tensor]:
        """Indices ``[networks, n]`` of every group."""
        elements: dict[str, Tensor | None] = dict.fromkeys(self.graph.groups)
        dirty = {name: torch.ones(self.count, dtype=torch.bool) for name in self.graph.groups}
        classes = colour_roots(self.graph)
        distance = torch.full((self.count,), torch.inf, dtype=torch.float64)
        for _ in range(self.max_steps):
            before = distance.clone()
            swept = torch.stack(list(dirty.values())).any(0) if dirty else torch.zeros(0, dtype=torch.bool)
            if not swept.any():
                break
            for roots in classes:
                for root, turn in [(root, dirty[root].nonzero().squeeze(1)) for root in roots]:
                    dirty[root][turn] = False
                    changed, gain = self._update(root, turn, elements)
                    distance[turn[changed]] -= 2 * gain[changed]
                    for other in self.graph.neighbours(root):
                        dirty[other][turn[changed]] = True
            if not torch.isfinite(distance).all():
                distance = self._distance(elements)
            finished = swept & (before - distance <= self.rtol * distance)
            for name in dirty:
                dirty[name] &= ~finished
        return {name: element for name, element in elements.items() if element is not None}

    def _update(self, group: str, turn: Tensor, elements: dict[str, Tensor | None]) -> tuple[Tensor, Tensor]:
        """Match one group of some networks; says which of them changed, and what each gained."""
        if not len(turn):
            return torch.zeros(0, dtype=torch.bool), torch.zeros(0, dtype=torch.float64)
        similarity = self._similarity(group, turn, elements).cpu()
        found = linear_assignment(similarity)
        current = elements[group]
        if current is None:
            elements[group] = found
            return torch.ones(len(turn), dtype=torch.bool), torch.full((len(turn),), torch.inf, dtype=torch.float64)
        gain = assignment_value(similarity, found) - assignment_value(similarity, current[turn])
        changed = (found != current[turn]).any(1) & (gain > self.negligible[turn])
        elements[group] = current.index_copy(0, turn[changed], found[changed])
        return changed, gain

    def _similarity(self, group: str, turn: Tensor, elements: Mapping[str, Tensor | None]) -> Tensor:
        size = self.graph.groups[group].size
        total = torch.zeros(len(turn), size, size, dtype=torch.float64, device=self.device)
        for use in self.graph.uses[group]:
            if use.others:
                total += self._similarity_at(use, turn, elements)
                continue
            if use not in self._constant:
                self._constant[use] = self._similarity_at(use, torch.arange(self.count), elements)
            total += self._constant[use][turn.to(self.device)]
        return total

    def _similarity_at(self, use: Use, turn: Tensor, elements: Mapping[str, Tensor | None]) -> Tensor:
        dims = use.block.dims
        part = _batched_view(use.block, self.b[use.tensor])
        part = part if len(turn) == self.count else part[turn.to(self.device)]
        a = use.block.view(self.a[use.tensor])
        unknown = []
        for at, dim in enumerate(dims):
            if dim.group is None or at == use.at:
                continue
            element = elements[dim.group]
            if element is None:
                unknown.append(at)
            else:
                part = _gathered(part, at, element[turn].to(self.device))
        for at in unknown:
            a, part = a.sum(at, keepdim=True), part.mean(at + 1, keepdim=True)
        size = dims[use.at].size
        a = a.movedim(use.at, 0).reshape(size, -1)
        return a @ part.movedim(use.at + 1, 1).reshape(len(turn), size, -1).mT

    def _distance(self, elements: Mapping[str, Tensor | None]) -> Tensor:
        known = {name: element for name, element in elements.items() if element is not None}
        value = torch.zeros(self.count, dtype=torch.float64, device=self.device)
        for name, tensor in self.b.items():
            value += (_flat(_permuted(self.graph, name, tensor, known)) * self.a[name].reshape(-1)).sum(1)
        return self.squares - 2 * value.cpu()


def _batched_view(block: Block, stacked: Tensor) -> Tensor:
    """The block of every network, ``[networks, *dims]``; nothing is copied."""
    strides = stacked.stride()[1:]
    offset = stacked.storage_offset() + sum(o * s for o, s in zip(block.offsets, strides, strict=True))
    sizes = [stacked.shape[0], *(dim.size for dim in block.dims)]
    steps = [stacked.stride(0), *(dim.stride * strides[dim.axis] for dim in block.dims)]
    return torch.as_strided(stacked, sizes, steps, offset)


def _gathered(part: Tensor, at: int, element: Tensor, ancestors: tuple[int, ...] = ()) -> Tensor:
    shape = [len(element)] + [1] * (part.ndim - 1)
    for place in (*ancestors, at):
        shape[place + 1] = part.shape[place + 1]
    return torch.take_along_dim(part, element.reshape(shape), at + 1)


def _permuted(graph: SymmetryGraph, name: str, tensor: Tensor, elements: Mapping[str, Tensor]) -> Tensor:
    """One tensor of every network in the order of ``elements``, parents before the units inside them."""
    if not graph.tensors[name].groups:
        return tensor
    result = torch.empty_like(tensor)
    for block in graph.tensors[name].blocks:
        part = _batched_view(block, tensor)
        for at, dim in enumerate(block.dims):
            if dim.group is not None:
                part = _gathered(part, at, elements[dim.group].to(tensor.device), dim.ancestors)
        _batched_view(block, result).copy_(part)
    return result


def _flat(stacked: Tensor) -> Tensor:
    return stacked.reshape(len(stacked), -1)


def _distances(target: Mapping[str, Tensor], networks: Mapping[str, Tensor]) -> Tensor:
    total = torch.zeros(len(next(iter(networks.values()))), dtype=torch.float64)
    for name, stacked in networks.items():
        size = max(1, BATCH_ELEMENTS // max(1, target[name].numel()))
        own = target[name].detach().to(stacked.device).double()
        parts = (stacked[first : first + size] for first in range(0, len(stacked), size))
        squares = [_flat(part.double() - own).square().sum(1) for part in parts]
        total += torch.cat(squares).cpu()
    return total


def _stacked(
    graph: SymmetryGraph, networks: Sequence[WeightsSource] | Mapping[str, Tensor], reference: WeightsSource
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The networks as stacked tensors and the reference, both by first name and checked."""
    fit = fit_of(graph)
    target = fit.check_tensors(weights_of(reference), "the reference")
    labelled = {f"network {i}": weights_of(row) for i, row in enumerate(_rows(networks))}
    fitted = {label: fit.check_tensors(row, label, values=False) for label, row in labelled.items()}
    sides = {"the reference": target, **fitted}
    fit.check_dtypes({label: {name: tensor.dtype for name, tensor in side.items()} for label, side in sides.items()})
    stacked: dict[str, Tensor] = {}
    if fitted and not fit.problems:
        stacked = {name: torch.stack([row[name] for row in fitted.values()]) for name in target}
        for name, tensor in stacked.items():
            # Looked at all at once: one by one this would take as long as the matching.
            if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
                bad = (~torch.isfinite(_flat(tensor)).all(1)).nonzero().squeeze(1).tolist()
                fit.problems += [f"{name!r} of network {i} holds NaN or infinity" for i in bad]
    fit.raise_if_any(BindError, "the networks do not fit the graph", "networks count from 0")
    return stacked, target


def _rows(networks: Sequence[WeightsSource] | Mapping[str, Tensor]) -> Iterator[WeightsSource]:
    if isinstance(networks, nn.Module | str):
        raise AlignmentError("networks are a sequence, or one mapping of stacked tensors [networks, *shape].")
    if not isinstance(networks, Mapping):
        yield from networks
        return
    counts = {name: len(tensor) if tensor.ndim else 0 for name, tensor in networks.items()}
    if len(set(counts.values())) > 1:
        raise BindError(f"stacked tensors hold different numbers of networks: {counts}.")
    for i in range(next(iter(counts.values()), 0)):
        yield {name: tensor[i] for name, tensor in networks.items()}
