"""Weight matching of two checkpoints that are larger than the memory given ([Ainsworth23], Algorithm 1, from disk)."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from alignkit.checkpoints import Checkpoint, OnProgress, open_checkpoint
from alignkit.errors import BindError
from alignkit.graph.elements.alignment import Alignment
from alignkit.graph.structure import GraphStructure
from alignkit.graph.symmetry_graph import Pair, SymmetryGraph
from alignkit.jobs.from_disk.budget import Budget, budget_for, parse_memory
from alignkit.jobs.from_disk.objective import ObjectiveOnDisk
from alignkit.jobs.from_disk.sweeps import AscentOnDisk
from alignkit.jobs.from_disk.weights import Reordered, WeightsOnDisk, bits
from alignkit.jobs.solve import find_start, run_solver
from alignkit.plugins.plugin_registry import Registry
from alignkit.plugins.plugin_registry import registry as process_registry
from alignkit.solver import Outcome, Problem, Report, Solution
from alignkit.solvers.weight_matching import WeightMatching
from alignkit.text import dtype_name


def match_checkpoints(
    graph: SymmetryGraph,
    a: Checkpoint | str | Path,
    b: Checkpoint | str | Path,
    memory: int | str,
    *,
    init: Solution | Alignment | None = None,
    seed: int = 0,
    on_progress: OnProgress | None = None,
    registry: Registry | None = None,
    **options: Any,
) -> Solution:
    """Find the order of B's units that brings B closest to A, with both checkpoints left on disk.

    The algorithm, its acceptance rule and its result are those of ``solve(pair, solver="weight_matching")``; see
    `alignkit.solvers.weight_matching`. Tensors are read in pieces, each place where a group acts adds to the group's
    similarities, and these are assigned. Every sweep reads each tensor about once for each group that acts on it.

    Args:
        graph: The graph of their architecture; traced on fake tensors it needs no weights.
        a: Reference checkpoint.
        b: Checkpoint to be aligned.
        memory: What may be used beyond what the process takes anyway: bytes, or text such as ``"2GB"``. It has to hold
            two square float64 matrices of the largest group, and some pieces of tensors.
        init: Where to start.
        seed: Seed of every random choice.
        on_progress: Called with the bytes read in each sweep, with an estimate of the time left of the sweep.
        registry: Where observers live. Default: that of the process.
        options: Options of weight matching. ``products="float32"`` is exact enough for weights in 16 bits and twice as
            fast: every step is accepted by the objective in float64.

    Returns:
        The solution. Its objectives are squared distances in float64, summed from disk.

    Raises:
        SolverError: The memory does not suffice, or an option is wrong.
        BindError: A checkpoint does not fit the graph, or holds NaN or infinity.
        AlignmentError: ``init`` belongs to another graph.
        WeightsError: A checkpoint cannot be read.
    """
    budget = budget_for(graph, parse_memory(memory))
    solver = WeightMatchingOnDisk(budget, on_progress, **options, seed=seed)
    left, right = (open_checkpoint(side) if isinstance(side, str | Path) else side for side in (a, b))
    pair = Pair(graph, *fit_on_disk(graph, left, right, budget))
    problem = ProblemOnDisk(pair, find_start(graph, init), seed=seed, budget=budget)
    # The squares tell whether all numbers are finite; the sums of the same pass are used again by the solver.
    _raise_if_any(
        [
            f"{name!r} of {label} holds NaN or infinity"
            for name, sums in problem.objective.sums.items()
            for label, squares in (("A", sums.squares_a), ("B", sums.squares_b))
            if not math.isfinite(squares)
        ]
    )
    return run_solver(problem, solver, registry if registry is not None else process_registry())


@dataclass(frozen=True, eq=False)
class ProblemOnDisk(Problem):
    """A problem whose weights are on disk; its objective reads them in pieces."""

    budget: Budget = field(kw_only=True)

    @cached_property
    def objective(self) -> ObjectiveOnDisk:
        """Squared distance and similarities of the pair, summed from disk."""
        return ObjectiveOnDisk(self.bound, self.budget)


class WeightMatchingOnDisk(WeightMatching):
    """Weight matching of a `ProblemOnDisk`.

    Args:
        budget: Memory that may be used.
        on_progress: Called with the bytes read in each sweep.
        options: Options of weight matching.
    """

    def __init__(self, budget: Budget, on_progress: OnProgress | None, **options: Any) -> None:
        super().__init__(**options)
        self.budget, self._on_progress = budget, on_progress

    def solve(self, problem: Problem, report: Report) -> Outcome:
        """Match as `WeightMatching` does, and keep how much memory was allowed."""
        outcome = super().solve(problem, report)
        return replace(outcome, stats={**outcome.stats, "memory": float(self.budget.memory)})

    def ascent(self, problem: Problem) -> AscentOnDisk:
        """Return the coordinate ascent that every run of a solve uses."""
        objective = problem.objective
        assert isinstance(objective, ObjectiveOnDisk)
        if self.options.products == "float32":
            narrow = ObjectiveOnDisk(problem.bound, self.budget, torch.float32)
            narrow.sums = objective.sums  # One pass over the files is enough.
            objective = narrow
        return AscentOnDisk(objective, self.options.rtol, self.options.max_steps, self._on_progress)


def fit_on_disk(
    graph: GraphStructure, a: Checkpoint, b: Checkpoint, budget: Budget
) -> tuple[WeightsOnDisk, WeightsOnDisk]:
    """Hold two checkpoints against a graph, by the facts of their tensors; values are read only where names are tied.

    Raises:
        BindError: Names, shapes, dtypes or ties do not fit; the message lists every mismatch of both.
    """
    problems: list[str] = []
    for checkpoint, label in ((a, "A"), (b, "B")):
        problems += _mismatches(graph, checkpoint, label)
    for node in graph.tensors.values():
        dtypes = [next((c.entry(n).dtype for n in node.names if n in c), None) for c in (a, b)]
        if None not in dtypes and dtypes[0] != dtypes[1]:
            in_a, in_b = (dtype_name(dtype) for dtype in dtypes)
            problems.append(f"{node.name!r} is {in_a} in A but {in_b} in B")
    _raise_if_any(problems)
    sides = WeightsOnDisk(graph, a), WeightsOnDisk(graph, b)
    for side, label in zip(sides, "AB", strict=True):
        problems += _broken_ties(side, graph, label, budget)
    _raise_if_any(problems)
    return sides


def _mismatches(graph: GraphStructure, checkpoint: Checkpoint, label: str) -> list[str]:
    problems = [f"{name!r} of {label} is not in the graph" for name in checkpoint if name not in graph.first_names]
    for node in graph.tensors.values():
        present = [name for name in node.names if name in checkpoint]
        if not present:
            problems.append(f"{node.name!r} is missing in {label}")
        for name in present:
            shape = checkpoint.entry(name).shape
            if shape != node.shape:
                problems.append(f"{name!r} has shape {shape} in {label}, the graph says {node.shape}")
    return problems


def _broken_ties(side: WeightsOnDisk, graph: GraphStructure, label: str, budget: Budget) -> list[str]:
    """Names of one tensor that hold different values."""
    problems = []
    for node in graph.tensors.values():
        present = [name for name in node.names if name in side.checkpoint]
        for other in present[1:]:
            for span in Reordered(node, {}).pieces(budget.piece):
                piece = side.checkpoint[other] if span is None else side.checkpoint.rows(other, *span)
                first = side.piece(node.name, span)
                if first.dtype != piece.dtype or not torch.equal(bits(first), bits(piece)):
                    problems.append(f"{other!r} and {present[0]!r} are tied in the graph but differ in {label}")
                    break
    return problems


def _raise_if_any(problems: list[str]) -> None:
    if problems:
        listed = "\n".join(f"  - {text}" for text in sorted(problems))
        raise BindError(f"the weights do not fit the graph, {len(problems)} problems:\n{listed}")
