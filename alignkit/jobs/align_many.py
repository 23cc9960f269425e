"""Many models at once: every model brought to one common place, so that compositions are consistent.

Aligning models pair by pair gives maps that disagree around a circle: from A to B to C and back to A, units end up in
other places. Here each model has one alignment to a common order of units (a *universe*), and the map between two
models goes through it, so every circle closes exactly.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from time import perf_counter
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypeVar, cast

import torch
from torch import Tensor, nn

from alignkit.errors import AlignmentError, BindError, SolverError
from alignkit.graph.bind import WeightsSource, fit_weights
from alignkit.graph.elements.alignment import Alignment
from alignkit.graph.structure import GraphStructure
from alignkit.graph.symmetry_graph import Pair, SymmetryGraph
from alignkit.jobs.solve import SolverLike, solve
from alignkit.jobs.universe import ascend_together
from alignkit.solver import Step

if TYPE_CHECKING:
    from alignkit.tasks.task import Task

Method: TypeAlias = Literal["reference", "merge_many", "universe"]
Weights: TypeAlias = Mapping[str, Tensor]
WeightsT = TypeVar("WeightsT", bound="nn.Module | Mapping[str, Tensor]")
METHODS: tuple[Method, ...] = ("reference", "merge_many", "universe")


def cycle_error(alignments: Mapping[tuple[int, int], Alignment]) -> float:
    """Share of units that three maps around a circle do not bring back to their place.

    Args:
        alignments: For each pair of models ``(i, j)`` with ``i < j`` the alignment that brings model j to model i.

    Returns:
        The mean over all circles of three models; 0 when there are only two models.
    """
    models = sorted({i for pair in alignments for i in pair})
    shares = []
    for i, j, k in combinations(models, 3):
        circle = alignments[i, j] @ alignments[j, k] @ alignments[i, k].inverse()
        units = sum(circle.flat(name).numel() for name in circle.graph.groups)
        shares.append(sum(circle.moved().values()) / max(units, 1))
    return sum(shares) / len(shares) if shares else 0.0


@dataclass(frozen=True, eq=False)
class DirectPairs:
    """Alignments of every pair of models, each solved alone: the comparison for a common place.

    Attributes:
        alignments: For ``(i, j)`` with ``i < j`` the alignment that brings model j to model i.
        spread: Mean of ``||A_i - P_ij # A_j||^2`` over the pairs.
        seconds: Wall-clock time.
    """

    alignments: Mapping[tuple[int, int], Alignment]
    spread: float
    seconds: float

    @property
    def cycle_error(self) -> float:
        """Share of units that a circle of three maps does not bring back."""
        return cycle_error(self.alignments)


@dataclass(frozen=True, eq=False)
class ManyAlignment:
    """Several models brought to the order of units of one of them.

    Attributes:
        alignments: For each model the alignment that brings it to the common place.
        method: How it was found.
        solver: Name of the solver of pairs.
        reference: The model whose order of units is the common place; its alignment is the identity.
        spread_before: Mean of ``||A_i - A_j||^2`` over all pairs of the models as given, in float64.
        spread_after: The same for the aligned models.
        history: Spread after each sweep over the models.
        seconds: Wall-clock time.
    """

    alignments: tuple[Alignment, ...]
    method: Method
    solver: str
    reference: int
    spread_before: float
    spread_after: float
    history: tuple[Step, ...] = ()
    seconds: float = 0.0

    @property
    def graph(self) -> GraphStructure:
        """The graph that all models share."""
        return self.alignments[0].graph

    def apply(self, models: Sequence[WeightsT]) -> list[WeightsT]:
        """Return every model with its units in the common order: modules for modules, mappings for mappings.

        Raises:
            AlignmentError: There are more or fewer models than were aligned, or one does not fit the graph.
        """
        if len(models) != len(self.alignments):
            raise AlignmentError(f"{len(self.alignments)} models were aligned, but {len(models)} were given.")
        pairs = zip(self.alignments, models, strict=True)
        return [cast(WeightsT, alignment.apply(cast(Any, model))) for alignment, model in pairs]

    def pairwise(self, i: int, j: int) -> Alignment:
        """The alignment that brings model ``j`` to model ``i``, through the common place."""
        return self.alignments[i].inverse() @ self.alignments[j]

    @property
    def cycle_error(self) -> float:
        """Share of units that a circle of three maps does not bring back: 0, because maps go through one place."""
        count = len(self.alignments)
        return cycle_error({(i, j): self.pairwise(i, j) for i, j in combinations(range(count), 2)})

    def __repr__(self) -> str:
        return (
            f"ManyAlignment({len(self.alignments)} models, {self.method} with {self.solver}, mean squared distance "
            f"{self.spread_before:.6g} -> {self.spread_after:.6g})"
        )


def align_many(
    graph: SymmetryGraph,
    models: Sequence[WeightsSource],
    method: Method = "merge_many",
    *,
    solver: SolverLike = "weight_matching",
    reference: int = 0,
    init: ManyAlignment | Sequence[Alignment] | None = None,
    task: Task | None = None,
    device: torch.device | str | None = None,
    seed: int = 0,
    max_sweeps: int = 100,
    **options: Any,
) -> ManyAlignment:
    """Bring several models to one common order of units.

    Args:
        graph: The graph that they share.
        models: Two or more modules, state dicts or checkpoint paths.
        method: ``"reference"`` aligns each model to one of them. ``"merge_many"`` goes on to align each to the mean of
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
        max_sweeps: Most sweeps over the models.
        options: Options of the solver.

    Returns:
        The alignments, with the mean squared distance over all pairs before and after.

    Raises:
        AlignmentError: There are fewer than two models, or ``init`` does not fit.
        BindError: A model does not fit the graph; the message names the model.
        SolverError: The method, the reference or an option of the solver is wrong.
    """
    started = perf_counter()
    if method not in METHODS:
        raise SolverError(f"method={method!r} is not known. Methods: {', '.join(METHODS)}.")
    weights = fitted_models(graph, models)
    if not 0 <= reference < len(weights):
        raise SolverError(f"reference={reference} is no model: there are {len(weights)}, counted from 0.")
    arguments = {"solver": solver, "task": task, "device": device, "seed": seed, "throw": True, **options}
    work = _Work(graph, weights, arguments, _starts(graph, len(weights), init), max_sweeps)
    if method == "reference":
        found = work.to_reference(reference)
    elif method == "merge_many":
        found = work.merge_many(reference, torch.Generator().manual_seed(seed))
    else:
        found = work.universe(device)
    back = found[reference].inverse()
    identity = [Alignment.identity(graph)] * len(weights)
    return ManyAlignment(
        alignments=tuple(back @ alignment for alignment in found),
        method=method,
        solver=_solver_name(solver),
        reference=reference,
        spread_before=spread(weights, identity),
        spread_after=spread(weights, found),
        history=tuple(work.history),
        seconds=perf_counter() - started,
    )


def direct_pairs(
    graph: SymmetryGraph,
    models: Sequence[WeightsSource],
    *,
    solver: SolverLike = "weight_matching",
    seed: int = 0,
    **arguments: Any,
) -> DirectPairs:
    """Align every pair of models alone; their `DirectPairs.cycle_error` says how much the maps disagree.

    Args:
        graph: The graph that they share.
        models: Two or more modules, state dicts or checkpoint paths.
        solver: Solver of pairs.
        seed: Seed of the solver.
        arguments: Further arguments of `alignkit.solve`.

    Raises:
        AlignmentError: There are fewer than two models.
        BindError: A model does not fit the graph; the message names the model.
    """
    started = perf_counter()
    weights = fitted_models(graph, models)
    solutions = {
        (i, j): solve(Pair(graph, weights[i], weights[j]), solver=solver, seed=seed, **arguments)
        for i, j in combinations(range(len(weights)), 2)
    }
    mean = sum(solution.objective_after for solution in solutions.values()) / len(solutions)
    found = {pair: solution.alignment for pair, solution in solutions.items()}
    return DirectPairs(found, mean, perf_counter() - started)


def fitted_models(graph: SymmetryGraph, models: Sequence[WeightsSource]) -> list[dict[str, Tensor]]:
    """Weights of every model by the first name of each tensor.

    Raises:
        AlignmentError: There are fewer than two models.
        BindError: Models do not fit the graph; the message lists every mismatch with the number of its model.
    """
    if isinstance(models, nn.Module | Mapping | str) or len(models) < 2:
        raise AlignmentError("aligning many takes a sequence of at least two models.")
    problems: list[str] = []
    weights = [fit_weights(graph, model, f"model {i}", problems) for i, model in enumerate(models)]
    for i, other in enumerate(weights[1:], 1):
        for name in weights[0].keys() & other.keys():
            first, found = weights[0][name].dtype, other[name].dtype
            if first != found:
                problems.append(f"{name!r} is {first} in model 0 but {found} in model {i}")
    if problems:
        listed = "\n".join(f"  - {text}" for text in sorted(problems))
        raise BindError(f"the models do not fit the graph, {len(problems)} problems (models count from 0):\n{listed}")
    return weights


def spread(weights: Sequence[Weights], alignments: Sequence[Alignment]) -> float:
    """Mean squared distance over all pairs of aligned models, in float64."""
    count = len(weights)
    total = 0.0
    for name in weights[0]:
        moved = [a.apply_tensor(name, w[name]).double() for a, w in zip(alignments, weights, strict=True)]
        mean = torch.stack(moved).mean(0)
        total += sum(float((tensor - mean).square().sum()) for tensor in moved)
    # The sum over pairs is `count` times the sum of squared distances to the mean.
    return total * count / (count * (count - 1) / 2)


@dataclass
class _Work:
    """The models with what all methods share: how pairs are solved, where to start, and the history."""

    graph: SymmetryGraph
    weights: list[dict[str, Tensor]]
    arguments: dict[str, Any]
    init: list[Alignment] | None
    max_sweeps: int
    history: list[Step] = field(default_factory=list)

    def to_reference(self, reference: int) -> list[Alignment]:
        """Align every model to one of them."""
        found = []
        for i in range(len(self.weights)):
            start = None if self.init is None else self.init[reference].inverse() @ self.init[i]
            found.append(
                Alignment.identity(self.graph) if i == reference else self._pair(self.weights[reference], i, start)
            )
        self._record(found, "aligned to the reference")
        return found

    def merge_many(self, reference: int, generator: torch.Generator | None) -> list[Alignment]:
        """Align each model to the mean of the others until nothing improves."""
        found = list(self.init) if self.init is not None else self.to_reference(reference)
        return self.sweeps(found, generator)

    def sweeps(self, start: Sequence[Alignment], generator: torch.Generator | None) -> list[Alignment]:
        """[Ainsworth23], Algorithm 3, from any start; in random order with a generator, else from first to last."""
        found = list(start)
        if not self.graph.groups:
            return found
        count = len(found)
        total = self._sum(found)
        for _ in range(self.max_sweeps):
            changed = False
            order = torch.randperm(count, generator=generator).tolist() if generator else range(count)
            for i in order:
                own = found[i].apply(self.weights[i])
                others = {name: (total[name] - own[name].double()) / (count - 1) for name in total}
                better = self._pair(others, i, found[i])
                if better != found[i]:
                    found[i], changed = better, True
                    total = self._sum(found)
            self._record(found, "sweep")
            if not changed:
                break
        return found

    def universe(self, device: torch.device | str | None) -> list[Alignment]:
        """Move all models at once, then sweep; the better of this and of sweeping alone."""
        # In an order that depends on the weights alone, so that the order of the models is irrelevant.
        order = sorted(range(len(self.weights)), key=lambda i: _rank(self.weights[i]))
        inside = _Work(
            self.graph,
            [self.weights[i] for i in order],
            self.arguments,
            None if self.init is None else [self.init[i] for i in order],
            self.max_sweeps,
            self.history,
        )
        start = inside.init or inside.to_reference(0)
        candidates = [inside.sweeps(start, None)]
        if self.graph.groups:
            together = ascend_together(self.graph, inside.weights, start, device)
            candidates.append(inside.sweeps(together, None))
        best = min(candidates, key=lambda found: spread(inside.weights, found))
        return [best[order.index(i)] for i in range(len(order))]

    def _pair(self, target: Weights, i: int, start: Alignment | None) -> Alignment:
        """Align model ``i`` to a target; the start is kept when the solver finds nothing better."""
        mean = {name: tensor.to(self.weights[i][name].dtype) for name, tensor in target.items()}
        solution = solve(Pair(self.graph, mean, self.weights[i]), init=start, **self.arguments)
        if start is not None and not solution.objective_after < solution.objective_init * (1 - 1e-12):
            return start
        return solution.alignment

    def _sum(self, found: Sequence[Alignment]) -> dict[str, Tensor]:
        moved = [alignment.apply(weights) for alignment, weights in zip(found, self.weights, strict=True)]
        return {name: torch.stack([m[name].double() for m in moved]).sum(0) for name in moved[0]}

    def _record(self, found: Sequence[Alignment], note: str) -> None:
        value = min([spread(self.weights, found), *(step.objective for step in self.history)])
        self.history.append(Step(len(self.history), value, note))


def _starts(
    graph: SymmetryGraph, count: int, init: ManyAlignment | Sequence[Alignment] | None
) -> list[Alignment] | None:
    if init is None:
        return None
    starts = list(init.alignments if isinstance(init, ManyAlignment) else init)
    if len(starts) != count:
        raise AlignmentError(f"init= holds {len(starts)} alignments for {count} models.")
    if wrong := [i for i, start in enumerate(starts) if start.graph != graph]:
        raise AlignmentError(f"init= of model {wrong[0]} belongs to another graph.")
    return starts


def _rank(weights: Weights) -> tuple[float, ...]:
    return tuple(float(f"{float(tensor.double().square().sum()):.9e}") for tensor in weights.values())


def _solver_name(solver: SolverLike) -> str:
    return solver if isinstance(solver, str) else solver.name
