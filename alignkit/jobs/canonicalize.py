"""Thousands of small networks brought to the order of units of one reference, and to its signs and rotations.

Weight matching ([Ainsworth23], Algorithm 1) works on a whole stack of networks (`alignkit.solvers.stacked_matching`).
Every network takes the same steps as it would alone. Other solvers align one network after the other.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from alignkit.arguments import check_arguments, usable_device
from alignkit.checkpoints.dtypes import common_dtype
from alignkit.checkpoints.fit import all_finite
from alignkit.checkpoints.writer import OnProgress, byte_counter
from alignkit.errors import AlignkitError, AlignmentError, BindError
from alignkit.graph import Pair, SymmetryGraph
from alignkit.graph.bind import WeightsSource, fit_of, weights_of
from alignkit.graph.elements.alignment import Alignment
from alignkit.graph.folded import check_folded
from alignkit.graph.hidden_state import check_hidden_state
from alignkit.graph.stored import Budget, StoredNetwork
from alignkit.graph.stored.opening import open_stored
from alignkit.jobs.pair_batches import PairSetup
from alignkit.jobs.solve import SolverLike, build_solvers, check_solver_kinds, completed, solve
from alignkit.matching.objective import Objective
from alignkit.plotting.pictures import bar_chart
from alignkit.plugins.plugin_registry import registry
from alignkit.reports.document import Facts, Names, Part, Picture, Report, Section, Table, Text
from alignkit.reports.sections import facts_section, number, uncovered_section
from alignkit.solver.solution import Solution
from alignkit.solvers.stacked_matching import STACK_ELEMENTS, StackedMatching, distances2, permuted
from alignkit.tasks.task import Task
from alignkit.text import Explained, plural

ROWS = 200
"""Maximum number of networks in the table of a report."""
STAGE = "bringing networks to the reference"


class StackOnDisk(Mapping[str, Tensor]):
    """Networks that stay on disk as one mapping of stacked tensors ``[networks, *shape]``, read when asked for."""

    def __init__(self, networks: Sequence[StoredNetwork]) -> None:
        self.networks = tuple(networks)

    def __getitem__(self, name: str) -> Tensor:
        return torch.stack([network[name] for network in self.networks])

    def __iter__(self) -> Iterator[str]:
        return iter(self.networks[0])

    def __len__(self) -> int:
        return len(self.networks[0])


@dataclass(frozen=True, eq=False)
class Canonical(Explained):
    """A set of networks in the order of units of a reference.

    Attributes:
        weights: The networks in their new order, ``[networks, *shape]`` for each tensor by its first name. Those of
            several floating-point dtypes are held in float32, or float64 where one is.
        elements: Indices or matrices of every group, ``[networks, *graph.element_shape(group)]``.
        before: ``||reference - network||^2`` as the networks were given, float64 ``[networks]``.
        after: The same in the new order.
        batched: Whether networks were matched in batches. Solvers other than weight matching, graphs with families, and
            those with a group that acts twice on one part of a tensor, take one network after the other.
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
    def network(self, index: int) -> Mapping[str, Tensor]:
        """Return the weights of one network in the new order."""
        if isinstance(self.weights, StackOnDisk):
            return self.weights.networks[index]
        return {name: tensor[index] for name, tensor in self.weights.items()}

    def explain(self) -> str:
        """Say in two lines what it was worth, and how it was done."""
        how = "in batches" if self.batched else "one after the other"
        gain = f"{float(self.before.mean()):.6g} -> {float(self.after.mean()):.6g}"
        return f"{plural(len(self), 'network')}, mean squared distance to the reference {gain}.\nAligned {how}."

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
    solver: SolverLike | Sequence[SolverLike] = "weight_matching",
    task: Task | None = None,
    device: torch.device | str | None = None,
    seed: int = 0,
    memory: int | str | None = None,
    on_progress: OnProgress | None = None,
    **options: Any,
) -> Canonical:
    """Bring many networks of one architecture to the order of units of a reference.

    Args:
        graph: The graph that they share.
        networks: Modules, state dicts or paths; or one mapping of stacked tensors ``[networks, *shape]``.
        reference: The network whose order of units all others take.
        solver: Solver or chain, as in `alignkit.solve`. Weight matching without restarts works on whole stacks of
            networks; others on one after the other, number ``i`` with the seed ``seed + i``.
        task: Data and a loss, for solvers that need them.
        device: Where solvers work. Default: where the reference's tensors are.
        seed: Seed of solvers.
        memory: With a limit all networks, which are paths then, stay on disk, as in `SymmetryGraph.bind`; and so do
            those in the new order, which are read when they are asked for.
        on_progress: Called with the part of the networks that is done.
        options: Options of the solver.

    Raises:
        AlignmentError: There are no networks.
        BindError: A network or the reference does not fit the graph; the message names it by its number.
        SolverError: The solver is unknown, an option is wrong, or it failed.
    """
    started = perf_counter()
    where = None if device is None else str(usable_device(device))
    setup = PairSetup(graph, tuple(build_solvers(solver, options, None, registry())), task, where, seed)
    check_solver_kinds(graph, setup.stages, registry())
    if memory is not None or isinstance(reference, StoredNetwork):
        return _canonicalize_stored(setup, networks, reference, memory, on_progress, started)
    stacked, target = _stack_networks(graph, networks, reference)
    count = len(next(iter(stacked.values()))) if stacked else 0
    if not count:
        raise AlignmentError("there are no networks to bring to the reference.")
    dtypes = {name: torch.double if graph.rotates(name) else torch.long for name in graph.groups}
    elements = {n: torch.empty(count, *graph.element_shape(n), dtype=dtype) for n, dtype in dtypes.items()}
    Objective(Pair(graph, target, target)).scale  # noqa: B018  refuses weights whose squares overflow or vanish
    shared = {name: tensor[None] for name, tensor in target.items()}
    before, matching = _distances(graph, shared, stacked, count), setup.matching
    if not bool(torch.isfinite(before).all()):
        far = int((~torch.isfinite(before)).nonzero()[0])
        raise BindError(f"network {far} holds numbers whose squares overflow float64. Make all networks smaller.")
    alone, weights, advance = list(range(count)), stacked, byte_counter(on_progress, STAGE, count)
    if matching is not None:
        rtol, max_steps = matching.options.rtol, matching.options.max_steps
        at = torch.device(where) if where else next(iter(target.values())).device
        size = max(1, STACK_ELEMENTS // max(1, sum(tensor.numel() for tensor in target.values())))
        for first in range(0, count, size):
            stack = {name: tensor[first : first + size] for name, tensor in stacked.items()}
            for name, element in StackedMatching(graph, shared, stack, at).run(rtol, max_steps).elements.items():
                elements[name][first : first + size] = element
            advance(min(size, count - first))
        weights = _moved(graph, stacked, elements)
        # Weight matching alone starts again from a network that it would leave in a worse place than it was.
        alone = (_distances(graph, shared, weights, count) > before).nonzero().squeeze(1).tolist()
    for i in alone:
        pair = Pair(graph, target, {name: tensor[i] for name, tensor in stacked.items()})
        for name, element in _solve(setup, i, pair).alignment.elements.items():
            elements[name][i] = element
        if matching is None:
            advance(1)
    if alone:
        weights = _moved(graph, stacked, elements)
    after = _distances(graph, shared, weights, count)
    return Canonical(graph, weights, elements, before, after, perf_counter() - started, matching is not None)


def _solve(setup: PairSetup, index: int, pair: Pair) -> Solution:
    """Align one network to the reference; errors name it."""
    arguments: dict[str, Any] = {"task": setup.task, "device": setup.device, "seed": setup.seed + index}
    try:
        return completed(solve(pair, solver=list(setup.stages), **arguments))
    except AlignkitError as error:
        raise type(error)(f"network {index}: {error}") from error


def _canonicalize_stored(
    setup: PairSetup,
    networks: Sequence[WeightsSource] | Mapping[str, Tensor],
    reference: WeightsSource,
    memory: int | str | None,
    on_progress: OnProgress | None,
    started: float,
) -> Canonical:
    """Match networks that stay on disk, one after the other."""
    graph = setup.graph
    if isinstance(networks, Mapping) or not networks:
        raise AlignmentError("with memory= networks are a sequence of one checkpoint or more.")
    sources = {"the reference": reference, **{f"network {i}": network for i, network in enumerate(networks)}}
    budget = reference.budget if isinstance(reference, StoredNetwork) else Budget.of(graph, memory or 0)
    target, *others = open_stored(graph, sources, budget)
    advance, solutions = byte_counter(on_progress, STAGE, len(others)), list[Solution]()
    for index, network in enumerate(others):
        solutions.append(_solve(setup, index, Pair(graph, target, network)))
        advance(1)
    elements = {n: torch.stack([solution.alignment.elements[n] for solution in solutions]) for n in graph.groups}
    moved = [network.under(s.alignment.elements) for network, s in zip(others, solutions, strict=True)]
    before, after = torch.tensor([(s.objective_before, s.objective_after) for s in solutions], dtype=torch.float64).T
    return Canonical(graph, StackOnDisk(moved), elements, before, after, perf_counter() - started, False)


def _moved(graph: SymmetryGraph, stacked: Mapping[str, Tensor], elements: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return every network under its elements; signs and rotations one network after the other, as `Alignment` does."""
    if all(group.kind == "permutation" for group in graph.groups.values()):
        return permuted(graph, stacked, elements)
    count = len(next(iter(stacked.values())))
    moves = [Alignment(graph, {name: element[i] for name, element in elements.items()}) for i in range(count)]
    return {n: torch.stack([move.apply_tensor(n, t[i]) for i, move in enumerate(moves)]) for n, t in stacked.items()}


def _distances(
    graph: SymmetryGraph, reference: Mapping[str, Tensor], networks: Mapping[str, Tensor], count: int
) -> Tensor:
    return sum(distances2(graph, reference, networks).values(), start=torch.zeros(count, dtype=torch.float64))


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
        rows = fitted.values()
        dtypes = {name: common_dtype(row[name].dtype for row in rows) for name in target}
        stacked = {name: torch.stack([row[name].to(dtypes[name]) for row in rows]) for name in target}
        for name, tensor in stacked.items():
            # Looked at all at once: one by one this would take as long as the matching.
            if not all_finite(tensor):
                bad = [i for i, own in enumerate(tensor) if not all_finite(own)]
                fit.problems += [f"{name!r} of network {i} holds NaN or infinity" for i in bad]
    fit.raise_if_any(BindError, "the networks do not fit the graph", "networks count from 0")
    check_folded(graph, sides, BindError)
    return stacked, target
