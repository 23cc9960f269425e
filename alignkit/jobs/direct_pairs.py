"""Every pair of several networks aligned alone: the comparison for one common order of units."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from time import perf_counter
from typing import Any

from alignkit.graph import Pair
from alignkit.graph.bind import WeightsSource
from alignkit.graph.elements.alignment import Alignment
from alignkit.graph.symmetry_graph import SymmetryGraph
from alignkit.jobs.solve import SolverLike, solve
from alignkit.jobs.spread import cycle_error, fitted_models


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
