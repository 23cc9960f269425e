"""Thousands of small networks brought to the order of units of one reference.

Weight matching ([Ainsworth23], Algorithm 1) on a whole batch of networks: similarities and permutations are computed
for all of them at once, and only the linear assignments run one matrix after the other. Every network takes the same
steps as it would alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from alignkit.arguments import check_arguments, usable_device
from alignkit.checkpoints.dtypes import as_bits
from alignkit.checkpoints.fit import all_finite, is_number
from alignkit.errors import AlignmentError, BindError
from alignkit.graph import Block, Pair, SymmetryGraph, Use
from alignkit.graph.bind import WeightsSource, fit_of, weights_of
from alignkit.graph.elements.alignment import Alignment
from alignkit.graph.hidden_state import check_hidden_state
from alignkit.matching.assignment import assignment_value, linear_assignment
from alignkit.matching.objective import Objective
from alignkit.plotting.pictures import bar_chart
from alignkit.reports.document import Facts, Names, Part, Picture, Report, Section, Table, Text
from alignkit.reports.sections import facts_section, number, uncovered_section
from alignkit.solver import Problem
from alignkit.solvers.coordinate_ascent import ROUNDING, TINY, colour_roots
from alignkit.solvers.weight_matching import WeightMatching
from alignkit.text import plural

BATCH_ELEMENTS = 1 << 24
"""Maximum number of weights in a batch of networks: 128 MB in float64."""
ROWS = 200
"""Maximum number of networks in the table of a report."""


@dataclass(frozen=True, eq=False)
class Canonical:
    """A set of networks in the order of units of a reference.

    Attributes:
        weights: The networks in their new order, ``[networks, *shape]`` for each tensor by its first name.
        elements: Indices of every group, ``[networks, *graph.element_shape(group)]``.
        before: ``||reference - network||^2`` as the networks were given, float64 ``[networks]``.
        after: The same in the new order.
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

    @check_arguments
    def alignment(self, index: int) -> Alignment:
        """Return the alignment that brought one network to the reference."""
        return Alignment(self.graph, {name: element[index] for name, element in self.elements.items()})

    @check_arguments
    def network(self, index: int) -> dict[str, Tensor]:
        """Return the weights of one network in the new order."""
        return {name: tensor[index] for name, tensor in self.weights.items()}

    def explain(self) -> str:
        """Say in two lines what it was worth and how long it took."""
        how = "in batches" if self.batched else "one after the other"
        gain = f"{float(self.before.mean()):.6g} -> {float(self.after.mean()):.6g}"
        speed = f"{self.seconds:.3g} s, {self.networks_per_second:.0f} networks a second, {how}."
        return f"{plural(len(self), 'network')}, mean squared distance to the reference {gain}.\n{speed}"

    def facts(self) -> dict[str, Any]:
        """Return what came out as plain values, as JSON takes them."""
        distances = zip(self.before.tolist(), self.after.tolist(), strict=True)
        return {
            "networks": [{"before": before, "after": after} for before, after in distances],
            "seconds": self.seconds,
            "networks_per_second": self.networks_per_second,
            "batched": self.batched,
        }

    @check_arguments
    def report(
        self, title: str = "Networks in the order of one reference", *, names: Names = None, facts: Facts = None
    ) -> Report:
        """Say how far each network is from the reference, as it was given and in the new order."""
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
        table = Table(("network", "squared distance as given", "in the order of the reference"), rows[:ROWS])
        parts: list[Part] = [Picture.of(figure, "distances", "Distances to the reference."), table]
        if len(rows) > ROWS:
            parts.append(Text(f"and {len(rows) - ROWS} more networks."))
        side_by_side = Section("No alignment beside the alignment", tuple(parts))
        return Report(title, (facts_section(summary), side_by_side, uncovered_section(self.graph)))

    def __repr__(self) -> str:
        gain = f"{float(self.before.mean()):.6g} -> {float(self.after.mean()):.6g}"
        speed = f"{self.networks_per_second:.0f} networks/s"
        return f"Canonical({plural(len(self), 'network')}, mean squared distance {gain}, {speed})"


@check_arguments
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
        max_steps: Maximum number of sweeps.

    Raises:
        AlignmentError: There are no networks.
        BindError: A network or the reference does not fit the graph; the message names it by its number.
    """
    started = perf_counter()
    matching = WeightMatching(rtol=rtol, max_steps=max_steps)
    stacked, target = _stack_networks(graph, networks, reference)
    count = len(next(iter(stacked.values()))) if stacked else 0
    if not count:
        raise AlignmentError("there are no networks to bring to the reference.")
    where = next(iter(target.values())).device if device is None else usable_device(device)
    elements = {n: torch.empty(count, *graph.element_shape(n), dtype=torch.long) for n in graph.groups}
    Objective(Pair(graph, target, target)).scale  # noqa: B018  refuses weights whose squares overflow or vanish
    before, batched = _distances(target, stacked, count), can_be_batched(graph)
    if not bool(torch.isfinite(before).all()):
        far = int((~torch.isfinite(before)).nonzero()[0])
        raise BindError(f"network {far} holds numbers whose squares overflow float64. Make all networks smaller.")
    alone, weights = list(range(count)), stacked
    if batched:
        size = max(1, BATCH_ELEMENTS // max(1, sum(tensor.numel() for tensor in target.values())))
        for first in range(0, count, size):
            batch = {name: tensor[first : first + size] for name, tensor in stacked.items()}
            for name, element in _Batch(graph, target, batch, where).match(rtol, max_steps).items():
                elements[name][first : first + size] = element
        weights = {name: _permute(graph, name, tensor, elements) for name, tensor in stacked.items()}
        # Weight matching alone starts again from a network that it would leave in a worse place than it was.
        alone = (_distances(target, weights, count) > before).nonzero().squeeze(1).tolist()
    for i in alone:
        pair = Pair(graph, target, {name: tensor[i] for name, tensor in stacked.items()})
        outcome = matching.solve(Problem(pair, device=where), lambda step: None)
        for name, element in outcome.alignment.elements.items():
            elements[name][i] = element
    if alone:
        weights = {name: _permute(graph, name, tensor, elements) for name, tensor in stacked.items()}
    after = _distances(target, weights, count)
    return Canonical(graph, weights, elements, before, after, perf_counter() - started, batched)


def can_be_batched(graph: SymmetryGraph) -> bool:
    """Whether a graph has no families and no group acts twice on one part of a tensor."""
    blocks = (block for node in graph.tensors.values() for block in node.blocks)
    once = all(len(block.groups) == sum(dim.group is not None for dim in block.dims) for block in blocks)
    return once and len(graph.roots) == len(graph.groups)


class _Batch:
    """Coordinate ascent on a batch of networks: `Ascent` with one more dimension in front."""

    def __init__(
        self, graph: SymmetryGraph, target: Mapping[str, Tensor], networks: Mapping[str, Tensor], device: torch.device
    ) -> None:
        self.graph, self.device = graph, device
        self.a = {name: tensor.to(device, torch.float64) for name, tensor in target.items() if is_number(tensor)}
        self.b = {name: networks[name].to(device, torch.float64).contiguous() for name in self.a}
        self.count = len(next(iter(networks.values())))
        self.squares = {
            name: (b.reshape(self.count, -1).square().sum(1) + self.a[name].square().sum()).cpu()
            for name, b in self.b.items()
        }
        """Squared norms of a tensor of the reference and of each network, ``[networks]``."""
        self.elements: dict[str, Tensor] = {}
        """Indices ``[networks, n]`` of the groups that were matched."""
        self._constant: dict[Use, Tensor] = {}

    def match(self, rtol: float, max_steps: int) -> dict[str, Tensor]:
        """Return indices ``[networks, n]`` of every group."""
        dirty = {name: torch.ones(self.count, dtype=torch.bool) for name in self.graph.groups}
        classes = colour_roots(self.graph)
        distance = torch.full((self.count,), torch.inf, dtype=torch.float64)
        for _ in range(max_steps if dirty else 0):
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
                moved = {name: _permute(self.graph, name, tensor, self.elements) for name, tensor in self.b.items()}
                distance = _distances(self.a, moved, self.count)
            finished = swept & (before - distance <= rtol * distance)
            for name in dirty:
                dirty[name] &= ~finished
        return self.elements

    def _update(self, group: str, turn: Tensor) -> tuple[Tensor, Tensor]:
        """Match one group of some networks; return which of them changed, and what each gained."""
        size = self.graph.groups[group].size
        total = torch.zeros(len(turn), size, size, dtype=torch.float64, device=self.device)
        for use in (use for use in self.graph.uses[group] if use.tensor in self.a):
            if use.others:
                total += self._similarity(use, turn)
                continue
            if use not in self._constant:
                self._constant[use] = self._similarity(use, torch.arange(self.count))
            total += self._constant[use][turn.to(self.device)]
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

    def _similarity(self, use: Use, turn: Tensor) -> Tensor:
        """Return what one use of a group adds to its similarities, ``[networks, n, n]``."""
        dims, a = use.block.dims, use.block.view(self.a[use.tensor])
        b = _batched_view(use.block, self.b[use.tensor])
        b = b if len(turn) == self.count else b[turn.to(self.device)]
        unknown = []
        for at, dim in enumerate(dims):
            if dim.group in self.elements and at != use.at:
                b = _gather(b, at, self.elements[dim.group][turn].to(self.device))
            elif dim.group is not None and at != use.at:
                unknown.append(at)
        for at in unknown:  # a group that was not matched yet is at the centre of its orders
            a, b = a.sum(at, keepdim=True), b.mean(at + 1, keepdim=True)
        size = dims[use.at].size
        a = a.movedim(use.at, 0).reshape(size, -1)
        return a @ b.movedim(use.at + 1, 1).reshape(len(turn), size, -1).mT


def _batched_view(block: Block, stacked: Tensor) -> Tensor:
    """Return the block of every network, ``[networks, *dims]``; nothing is copied."""
    strides = stacked.stride()[1:]
    offset = stacked.storage_offset() + sum(o * s for o, s in zip(block.offsets, strides, strict=True))
    sizes = [stacked.shape[0], *(dim.size for dim in block.dims)]
    steps = [stacked.stride(0), *(dim.stride * strides[dim.axis] for dim in block.dims)]
    return torch.as_strided(stacked, sizes, steps, offset)


def _gather(part: Tensor, at: int, element: Tensor, ancestors: tuple[int, ...] = ()) -> Tensor:
    shape = [len(element)] + [1] * (part.ndim - 1)
    for place in (*ancestors, at):
        shape[place + 1] = part.shape[place + 1]
    return torch.take_along_dim(part, element.reshape(shape), at + 1)


def _permute(graph: SymmetryGraph, name: str, tensor: Tensor, elements: Mapping[str, Tensor]) -> Tensor:
    """One tensor of every network in the order of ``elements``, parents before the units inside them."""
    if not graph.tensors[name].groups:
        return tensor
    result = torch.empty_like(tensor)
    for block in graph.tensors[name].blocks:
        part = as_bits(_batched_view(block, tensor))
        for at, dim in enumerate(block.dims):
            if dim.group is not None:
                part = _gather(part, at, elements[dim.group].to(tensor.device), dim.ancestors)
        _batched_view(block, result).copy_(part.view(tensor.dtype))
    return result


def _distances(target: Mapping[str, Tensor], networks: Mapping[str, Tensor], count: int) -> Tensor:
    """Return ``||reference - network||^2`` of ``count`` networks, float64 ``[count]``, from a batch at a time."""
    total = torch.zeros(count, dtype=torch.float64)
    for name, stacked in networks.items():
        if not is_number(stacked):
            continue
        own = target[name].detach().to(stacked.device).double()
        parts = torch.split(stacked, max(1, BATCH_ELEMENTS // max(1, own.numel())))
        total += torch.cat([(part.double() - own).reshape(len(part), -1).square().sum(1) for part in parts]).cpu()
    return total


def _stack_networks(
    graph: SymmetryGraph, networks: Sequence[WeightsSource] | Mapping[str, Tensor], reference: WeightsSource
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the networks as stacked tensors and the reference, both by first name and checked."""
    fit = fit_of(graph)
    target = fit.check_tensors(weights_of(reference), "the reference")
    if isinstance(networks, Mapping):
        counts = {name: len(tensor) if tensor.ndim else 0 for name, tensor in weights_of(networks).items()}
        if len(set(counts.values())) > 1:
            raise BindError(f"stacked tensors hold different numbers of networks: {counts}.")
        networks = [{n: t[i] for n, t in networks.items()} for i in range(next(iter(counts.values()), 0))]
    check_hidden_state({"the reference": reference, **{f"network {i}": x for i, x in enumerate(networks)}}, BindError)
    labelled = {f"network {i}": weights_of(row) for i, row in enumerate(networks)}
    fitted = {label: fit.check_tensors(row, label, values=False) for label, row in labelled.items()}
    sides = {"the reference": target, **fitted}
    fit.check_dtypes({label: {name: tensor.dtype for name, tensor in side.items()} for label, side in sides.items()})
    stacked: dict[str, Tensor] = {}
    if fitted and not fit.problems:
        stacked = {name: torch.stack([row[name] for row in fitted.values()]) for name in target}
        for name, tensor in stacked.items():
            # Looked at all at once: one by one this would take as long as the matching.
            if not all_finite(tensor):
                bad = [i for i, own in enumerate(tensor) if not all_finite(own)]
                fit.problems += [f"{name!r} of network {i} holds NaN or infinity" for i in bad]
    fit.raise_if_any(BindError, "the networks do not fit the graph", "networks count from 0")
    return stacked, target
