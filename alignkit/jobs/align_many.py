"""Many models at once: every model brought to one common place, so that compositions are consistent.

Aligning models pair by pair gives maps that disagree around a circle: from A to B to C and back to A, units end up in
other places. Here each model has one alignment to a common order of units (a *universe*), and the map between two
models goes through it, so every circle closes exactly.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from os import PathLike
from time import perf_counter
from typing import Any, Literal, TypeAlias, TypeVar, cast

import torch
from torch import Tensor, nn

from alignkit.arguments import check_arguments
from alignkit.checkpoints import ByteProgress, OnProgress
from alignkit.checkpoints.dtypes import common_dtype
from alignkit.errors import AlignmentError, SolverError
from alignkit.graph import GraphStructure, Pair, SymmetryGraph
from alignkit.graph.bind import WeightsSource
from alignkit.graph.elements.alignment import Alignment
from alignkit.graph.stored import StoredNetwork
from alignkit.jobs.average import AverageNetwork, Averaging
from alignkit.jobs.kept_solves import KeptSolves
from alignkit.jobs.row_file import digest_of
from alignkit.jobs.shares import shares_of
from alignkit.jobs.solve import SolverLike, completed, graph_and_models, solve
from alignkit.jobs.spread import cycle_error, fitted_models, spread
from alignkit.jobs.universe import ascend_together
from alignkit.plotting.pictures import bar_chart
from alignkit.reports import Check, Facts, MergeLosses, Names, Picture, Report, Section, Table
from alignkit.reports.sections import facts_section, function_section, side_by_side_section, uncovered_section
from alignkit.solver import Step
from alignkit.tasks.task import Task
from alignkit.text import Explained, list_some, plural

Method: TypeAlias = Literal["reference", "merge_many", "universe"]
"""How many networks are brought to one order; see `align_many`."""
WeightsT = TypeVar("WeightsT", bound="nn.Module | Mapping[str, Tensor]")
TITLE = "Models in one order of units"
LISTED = 20
"""Maximum number of uncovered tensors that an explanation names."""
GROUPS = 200
"""Maximum number of groups in the table of a report."""


@dataclass(frozen=True, eq=False)
class ManyAlignment(Explained):
    """Several models brought to the order of units of one of them.

    Attributes:
        alignments: For each model the alignment that brings it to the common place.
        solver: Name of the solver of pairs.
        reference: The model whose order of units is the common place; its alignment is the identity.
        spread_before: Mean of ``||A_i - A_j||^2`` over all pairs of the models as given, in float64.
        spread_after: The same for the aligned models.
        history: Spread after each sweep over the models.
    """

    alignments: tuple[Alignment, ...]
    method: Method
    solver: str
    reference: int
    spread_before: float
    spread_after: float
    history: tuple[Step, ...] = ()
    seconds: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "alignments", tuple(self.alignments))
        object.__setattr__(self, "history", tuple(self.history))

    @property
    def graph(self) -> GraphStructure:
        """The graph that all models share."""
        return self.alignments[0].graph

    @check_arguments
    def apply(self, models: Sequence[WeightsT]) -> list[WeightsT]:
        """Return every model with its units in the common order: modules for modules, mappings for mappings.

        Raises:
            AlignmentError: There are more or fewer models than were aligned, or one does not fit the graph.
        """
        if len(models) != len(self.alignments):
            raise AlignmentError(f"{plural(len(self.alignments), 'model')} were aligned, but {len(models)} were given.")
        pairs = zip(self.alignments, models, strict=True)
        return [cast(WeightsT, alignment.apply(cast(Any, model))) for alignment, model in pairs]

    def pairwise(self, i: int, j: int) -> Alignment:
        """Return the alignment that brings model ``j`` to model ``i``, through the common place."""
        return self.alignments[i].inverse() @ self.alignments[j]

    @property
    def cycle_error(self) -> float:
        """Share of units that a circle of three maps does not bring back: 0, because maps go through one place."""
        count = len(self.alignments)
        return cycle_error({(i, j): self.pairwise(i, j) for i, j in combinations(range(count), 2)})

    def explain(self) -> str:
        """Say in a few lines what was done, what it was worth, and what could not move."""
        how, count = f"{self.method} with {self.solver}", len(self.alignments)
        text = f"{plural(count, 'model')}, {how}, {plural(len(self.history), 'sweep')}."
        text += (
            f"\nMean squared distance of a pair: {self.spread_before:.6g} unaligned, {self.spread_after:.6g} aligned."
        )
        uncovered = self.graph.uncovered
        return f"{text}\nNot covered: {list_some(uncovered, LISTED)}." if uncovered else text

    def facts(self) -> dict[str, Any]:
        """Return what came out as plain values, as JSON takes them."""
        return {
            "method": self.method,
            "solver": self.solver,
            "before": self.spread_before,
            "after": self.spread_after,
            "units_moved": [sum(alignment.moved().values()) for alignment in self.alignments],
            "uncovered": list(self.graph.uncovered),
            "seconds": self.seconds,
        }

    @check_arguments
    def report(
        self,
        title: str = TITLE,
        *,
        names: Names = None,
        check: Check = None,
        losses: MergeLosses | None = None,
        facts: Facts = None,
    ) -> Report:
        """Say what moved in each model, with pictures."""
        called = [f"model {i}" for i in range(len(self.alignments))] if names is None else list(names)
        summary = {
            **(facts or {}),
            "method": self.method,
            "solver": self.solver,
            "reference": called[self.reference],
            "sweeps": str(len(self.history)),
            "seconds": f"{self.seconds:.3g}",
        }
        moved = [alignment.moved() for alignment in self.alignments]
        totals = {name: sum(units.values()) for name, units in zip(called, moved, strict=True)}
        rows = tuple((group, *(str(units[group]) for units in moved)) for group in list(self.graph.groups)[:GROUPS])
        picture = Picture.of(bar_chart(totals, "units moved"), "moved", "Units of each network that change place.")
        spreads, what = (self.spread_before, self.spread_after), "mean squared distance of a pair"
        distance = side_by_side_section(*spreads, losses, what)
        units = Section("Units moved", (picture, Table(("group", *called), rows)))
        ends = function_section(check), uncovered_section(self.graph)
        return Report(title, (facts_section(summary), distance, units, *ends))

    def __repr__(self) -> str:
        how, gain = f"{self.method} with {self.solver}", f"{self.spread_before:.6g} -> {self.spread_after:.6g}"
        return f"ManyAlignment({plural(len(self.alignments), 'model')}, {how}, mean squared distance {gain})"


@check_arguments
def align_many(
    pair: Pair | SymmetryGraph,
    *models: WeightsSource,
    method: Method = "merge_many",
    solver: SolverLike = "weight_matching",
    reference: int = 0,
    init: ManyAlignment | Sequence[Alignment] | None = None,
    task: Task | None = None,
    device: torch.device | str | None = None,
    seed: int = 0,
    max_sweeps: int = 100,
    memory: int | str | None = None,
    path: str | PathLike[str] | None = None,
    on_progress: OnProgress | None = None,
    **options: Any,
) -> ManyAlignment:
    """Bring several models to one common order of units.

    Args:
        pair: Two networks, ``graph.bind(a, b)``; or the graph that all share, with two or more networks behind it.
        models: The networks, if ``pair`` is a graph: modules, state dicts or checkpoint paths.
        method: ``"reference"`` aligns each model to one of them. ``"merge_many"`` then aligns each to the mean of
            the others until nothing improves ([Ainsworth23], Algorithm 3). ``"universe"`` moves all models together
            towards a common place by Frank-Wolfe ([Crisostomi24]), and finishes in the same way; its result does not
            depend on the order in which the models are given.
        solver: Solver of pairs, as in `alignkit.solve`.
        reference: Which model's order of units is the common place.
        init: Where to start. The mean squared distance never ends above that of the start, for ``"reference"`` that
            to the reference.
        task: Data and a loss, for solvers that need them.
        device: Where solvers work. Default: where the models' tensors are.
        seed: Seed of solvers and of the order in which merge_many visits the models.
        max_sweeps: Maximum number of sweeps over the models.
        memory: With a limit the checkpoints stay on disk, as in `SymmetryGraph.bind`; not with ``"universe"``.
        path: A file to which every solve is written when it is done, and now and then the best alignment of the one
            that is under way. If it is there already, the job goes on from there: a killed run resumes where it was.
        on_progress: Called after every solve, with the part of this round over the models that is done.
        options: Options of the solver.

    Raises:
        AlignmentError: ``init`` does not fit, or ``path`` holds the solves of another job.
        BindError: There are fewer than two models, or one does not fit the graph; the message names it.
        SolverError: The method, the reference or an option of the solver is wrong.
    """
    started = perf_counter()
    graph, sources = graph_and_models("align_many", pair, models)
    weights = fitted_models(graph, sources, memory)
    if method == "universe" and isinstance(weights[0], StoredNetwork):
        raise SolverError("method='universe' holds all networks in memory: leave memory= out, or take merge_many.")
    if not 0 <= reference < len(weights):
        raise SolverError(f"reference={reference} is not a model: there are {len(weights)}, counted from 0.")
    starts = None if init is None else list(init.alignments if isinstance(init, ManyAlignment) else init)
    if starts is not None and len(starts) != len(weights):
        raise AlignmentError(f"init= holds {plural(len(starts), 'alignment')} for {plural(len(weights), 'model')}.")
    if wrong := [i for i, start in enumerate(starts or ()) if start.graph != graph]:
        raise AlignmentError(f"init= of model {wrong[0]} belongs to another graph.")
    arguments = {"solver": solver, "task": task, "device": device, "seed": seed, "throw": True, **options}
    kept = None
    if path is not None:
        began = [digest_of(sorted(start.elements.items())) for start in starts or ()]
        order = {"method": method, "reference": reference, "max_sweeps": max_sweeps, "start": began}
        kept = KeptSolves(path, graph, weights, arguments, **order)
    work = _CommonOrder(graph, weights, arguments, starts, max_sweeps, kept, on_progress)
    if method == "reference":
        alignments = work.to_reference(reference)
    elif method == "merge_many":
        begin = work.to_reference(reference) if starts is None else starts
        alignments = work.sweep(begin, torch.Generator().manual_seed(seed))
    else:
        alignments = work.universe(device)
    back = alignments[reference].inverse()
    moved = tuple(back @ alignment for alignment in alignments)
    name = solver if isinstance(solver, str) else solver.name
    before, after = spread(weights, [Alignment.identity(graph)] * len(weights)), spread(weights, alignments)
    history = tuple(work.history)
    return ManyAlignment(moved, method, name, reference, before, after, history, perf_counter() - started)


@dataclass
class _CommonOrder:
    """The models with what all methods share: how pairs are solved, where to start, and the history."""

    graph: SymmetryGraph
    weights: Sequence[Mapping[str, Tensor]]
    arguments: dict[str, Any]
    init: list[Alignment] | None
    max_sweeps: int
    kept: KeptSolves | None = None
    on_progress: OnProgress | None = None
    history: list[Step] = field(default_factory=list)

    def to_reference(self, reference: int) -> list[Alignment]:
        """Align every model to one of them."""
        alignments = [Alignment.identity(self.graph)] * len(self.weights)
        others = [i for i in range(len(self.weights)) if i != reference]
        for i in self._counted(others, "models aligned to the reference"):
            start = None if self.init is None else self.init[reference].inverse() @ self.init[i]
            alignments[i] = self._align(i, self.weights[reference], start)
        self._record(alignments, "aligned to the reference")
        return alignments

    def sweep(self, start: Sequence[Alignment], generator: torch.Generator | None) -> list[Alignment]:
        """Align each model to the mean of the others until nothing improves: [Ainsworth23], Algorithm 3.

        A sweep visits the models in random order with a generator, else from first to last.
        """
        alignments, count = list(start), len(start)
        if not self.graph.groups:
            return alignments
        moved = [alignment.apply(weights) for alignment, weights in zip(alignments, self.weights, strict=True)]
        for sweep in range(1, self.max_sweeps + 1):
            changed = False
            visits = torch.randperm(count, generator=generator).tolist() if generator else list(range(count))
            for i in self._counted(visits, f"models aligned to the others, sweep {sweep}"):
                others = _mean([network for j, network in enumerate(moved) if j != i])
                better = self._align(i, others, alignments[i])
                if better != alignments[i]:
                    alignments[i], moved[i], changed = better, better.apply(self.weights[i]), True
            self._record(alignments, "sweep")
            if not changed:
                break
        return alignments

    def universe(self, device: torch.device | str | None) -> list[Alignment]:
        """Move all models at once, then sweep; the better of this and of sweeping alone."""
        # In an order that depends on the weights alone, so that the order of the models is irrelevant.
        norms = [[float(f"{float(t.double().square().sum()):.9e}") for t in w.values()] for w in self.weights]
        order = sorted(range(len(norms)), key=norms.__getitem__)
        init = None if self.init is None else [self.init[i] for i in order]
        inside = replace(self, weights=[self.weights[i] for i in order], init=init)
        start = init or inside.to_reference(0)
        candidates = [inside.sweep(start, None)]
        if self.graph.groups:
            candidates.append(inside.sweep(ascend_together(self.graph, inside.weights, start, device), None))
        best = min(candidates, key=lambda alignments: spread(inside.weights, alignments))
        return [best[order.index(i)] for i in range(len(order))]

    def _align(self, i: int, target: Mapping[str, Tensor], start: Alignment | None) -> Alignment:
        """Align model ``i`` to a target; the start is kept when the solver finds nothing better."""
        pair = Pair(self.graph, target, self.weights[i])
        one = solve(pair, init=start, **self.arguments) if self.kept is None else self.kept.solve(pair, start)
        solution = completed(one)
        if start is not None and not solution.objective_after < solution.objective_init * (1 - 1e-12):
            return start
        return solution.alignment

    def _counted(self, models: Sequence[int], what: str) -> Iterator[int]:
        """Yield models, and tell after each how many are done."""
        began = perf_counter()
        for done, model in enumerate(models, 1):
            yield model
            if self.on_progress is not None:
                share, stage = done / len(models), f"{done} of {len(models)} {what}"
                self.on_progress(ByteProgress(0, 0, perf_counter() - began, stage, share))

    def _record(self, alignments: Sequence[Alignment], note: str) -> None:
        value = min([spread(self.weights, alignments), *(step.objective for step in self.history)])
        self.history.append(Step(len(self.history), value, note))


def _mean(networks: Sequence[Mapping[str, Tensor]]) -> Mapping[str, Tensor]:
    """Return the mean of networks, in dtypes that hold what each of them has.

    Of networks on disk it is computed when it is asked for.
    """
    shares = shares_of(None, len(networks))
    if stored := [network for network in networks if isinstance(network, StoredNetwork)]:
        every = {network.dtype(name) for network in stored for name in network}
        floats = [dtype for dtype in every if dtype.is_floating_point]
        return AverageNetwork(stored, Averaging(shares, dtype=common_dtype(floats) if floats else None))
    means = {name: torch.stack([network[name].double() for network in networks]).mean(0) for name in networks[0]}
    dtypes = {name: common_dtype(network[name].dtype for network in networks) for name in means}
    return {name: mean.to(dtypes[name]) for name, mean in means.items()}
