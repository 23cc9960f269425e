"""How far several networks are apart, and how much maps disagree that align every pair alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import fmean
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn

from alignkit.checkpoints.fit import is_number
from alignkit.errors import AlignmentError, BindError
from alignkit.graph.bind import WeightsSource, fit_models
from alignkit.graph.elements.alignment import Alignment
from alignkit.graph.parts import as_tensors, common_parts
from alignkit.graph.stored import Budget, StoredNetwork
from alignkit.graph.stored.opening import open_stored
from alignkit.graph.symmetry_graph import Pair, SymmetryGraph
from alignkit.jobs.solve import SolverLike
from alignkit.jobs.solve_many import solve_many


def cycle_error(alignments: Mapping[tuple[int, int], Alignment]) -> float:
    """Return the share of units that three maps around a circle do not bring back to their place.

    It is the mean over all circles of three models; 0 for two. ``alignments[i, j]``, ``i < j``, brings model j to i.
    """
    models = sorted({i for pair in alignments for i in pair})
    shares = []
    for i, j, k in combinations(models, 3):
        circle = alignments[i, j] @ alignments[j, k] @ alignments[i, k].inverse()
        units = sum(circle.graph.unit_count(name) for name in circle.graph.groups)
        shares.append(sum(circle.moved().values()) / max(units, 1))
    return sum(shares) / len(shares) if shares else 0.0


def fitted_models(
    graph: SymmetryGraph, models: Sequence[WeightsSource], memory: int | str | None = None
) -> Sequence[Mapping[str, Tensor]]:
    """Return the weights of two or more models by first names; a `BindError` lists every mismatch by model.

    With a limit of memory, and for networks that stay on disk already, they are read when they are asked for.
    """
    if isinstance(models, nn.Module | Mapping | str) or len(models) < 2:
        raise AlignmentError("aligning many takes a sequence of at least two models.")
    labelled = {f"model {i}": model for i, model in enumerate(models)}
    kept = next((model.budget.memory for model in models if isinstance(model, StoredNetwork)), memory)
    if kept is not None:
        return open_stored(graph, labelled, Budget.of(graph, kept if memory is None else memory))
    return fit_models(graph, labelled, BindError, "the models do not fit the graph", "models count from 0")


def spread(weights: Sequence[Mapping[str, Tensor]], alignments: Sequence[Alignment]) -> float:
    """Return the mean squared distance over all pairs of aligned models, in float64."""
    count = len(weights)
    total = 0.0
    networks = [(as_tensors(w, None), dict(a.elements)) for w, a in zip(weights, alignments, strict=True)]
    for name, node in alignments[0].graph.tensors.items():
        for parts in common_parts(node, networks) if is_number(networks[0][0].dtype(name)) else ():
            moved = torch.stack([part.double() for part in parts])
            total += float((moved - moved.mean(0)).square().sum())
    # The sum over pairs is `count` times the sum of squared distances to the mean.
    return total * count / (count * (count - 1) / 2)


@dataclass(frozen=True, eq=False)
class DirectPairs:
    """Alignments ``(i, j)``, ``i < j``, of every pair of models, each solved alone: the comparison for a common place.

    ``spread`` is the mean of ``||A_i - P_ij # A_j||^2`` over the pairs, ``seconds`` the wall-clock time.
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
        seed: Seed of the first pair; the next has one more.
        arguments: Further arguments of `alignkit.solve_many`.

    Raises:
        AlignmentError: There are fewer than two models.
        BindError: A model does not fit the graph; the message names the model.
    """
    started = perf_counter()
    weights = fitted_models(graph, models)
    numbers = list(combinations(range(len(weights)), 2))
    pairs = [Pair(graph, weights[i], weights[j]) for i, j in numbers]
    solved = solve_many(graph, pairs, solver=solver, seed=seed, **arguments)
    if solved.interrupted:
        raise KeyboardInterrupt
    alignments = {pair: solution.alignment for pair, solution in zip(numbers, solved, strict=True)}
    mean = fmean(solution.objective_after for solution in solved)
    return DirectPairs(alignments, mean, perf_counter() - started)
