"""Weight matching of two checkpoints that are larger than the memory given ([Ainsworth23], Algorithm 1, from disk)."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from alignkit.arguments import check_arguments
from alignkit.checkpoints import Checkpoint, OnProgress, open_checkpoint
from alignkit.errors import BindError
from alignkit.graph.bind import fit_of
from alignkit.graph.elements.alignment import Alignment
from alignkit.graph.structure import GraphStructure
from alignkit.graph.symmetry_graph import Pair, SymmetryGraph
from alignkit.jobs.from_disk.budget import Budget, budget_for, parse_memory
from alignkit.jobs.from_disk.sweeps import AscentOnDisk
from alignkit.jobs.from_disk.weights import Reordered, WeightsOnDisk, read_piece
from alignkit.jobs.solve import find_start
from alignkit.jobs.solver_run import run_solver
from alignkit.plugins.plugin_registry import Registry
from alignkit.plugins.plugin_registry import registry as process_registry
from alignkit.solver import Outcome, Problem, Report, Solution
from alignkit.solvers.weight_matching import WeightMatching
from alignkit.text import list_some

MISFIT = "the weights do not fit the graph"


@check_arguments
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
        options: Options of weight matching.

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
    problem = Problem(pair, find_start(graph, init), seed=seed)
    # The squares tell whether all numbers are finite; the sums of the same pass are used again by the solver.
    fit = fit_of(graph)
    fit.problems += [
        f"{name!r} of {label} holds NaN or infinity, or numbers whose squares overflow float64"
        for name, sums in problem.objective.sums.items()
        for label, squares in (("A", sums.squares_a), ("B", sums.squares_b))
        if not math.isfinite(squares)
    ]
    fit.raise_if_any(BindError, MISFIT)
    return run_solver(problem, solver, registry if registry is not None else process_registry())


class WeightMatchingOnDisk(WeightMatching):
    """Weight matching of a `ProblemOnDisk`; ``on_progress`` is called with the bytes read in each sweep."""

    def __init__(self, budget: Budget, on_progress: OnProgress | None, **options: Any) -> None:
        super().__init__(**options)
        self.budget, self._on_progress = budget, on_progress

    def solve(self, problem: Problem, report: Report) -> Outcome:
        """Match as `WeightMatching` does, and keep how much memory was allowed."""
        outcome = super().solve(problem, report)
        return replace(outcome, stats={**outcome.stats, "memory": float(self.budget.memory)})

    def ascent(self, problem: Problem) -> AscentOnDisk:
        """Return the coordinate ascent that every run of a solve uses."""
        plain = super().ascent(problem)
        return AscentOnDisk(plain.objective, plain.rtol, plain.max_sweeps, self._on_progress)


def fit_on_disk(
    graph: GraphStructure, a: Checkpoint, b: Checkpoint, budget: Budget
) -> tuple[WeightsOnDisk, WeightsOnDisk]:
    """Hold two checkpoints against a graph, by the facts of their tensors; values are read only where names are tied.

    Raises:
        BindError: Names, shapes, dtypes or ties do not fit; the message lists every mismatch of both.
    """
    fit, first = fit_of(graph), graph.first_names
    for checkpoint, label in ((a, "A"), (b, "B")):
        if whole := sorted(checkpoint.whole_only):
            raise BindError(
                f"{checkpoint.path} stores {list_some(whole, 3)} in other pieces than the model holds, such as each "
                "expert on its own. They cannot be read a few rows at a time: leave the limit of memory out."
            )
        fit.check_shapes(checkpoint.shapes, label)
    fit.check_dtypes({label: {first.get(n, n): d for n, d in c.dtypes.items()} for label, c in (("A", a), ("B", b))})
    fit.raise_if_any(BindError, MISFIT)
    sides = WeightsOnDisk(graph, a, budget.piece), WeightsOnDisk(graph, b, budget.piece)
    for side, label in zip(sides, "AB", strict=True):
        for node in graph.tensors.values():
            kept, *others = (name for name in node.names if name in side.checkpoint)
            for other in others:
                for span in Reordered(node, {}).pieces(budget.piece):
                    one, two = (read_piece(side.checkpoint, name, span) for name in (kept, other))
                    if one.dtype != two.dtype or not torch.equal(one, two):
                        fit.problems.append(f"{other!r} and {kept!r} are tied in the graph but differ in {label}")
                        break
    fit.raise_if_any(BindError, MISFIT)
    return sides
