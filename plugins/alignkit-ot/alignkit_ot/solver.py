"""The solver ``ot``: soft matching of units by optimal transport, for networks of one architecture."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from alignkit import Alignment, IterativeOptions, Needs, Outcome, Problem, Returns, SoftAlignment, Solver, Status, Step
from alignkit.errors import SolverError
from alignkit.matching.families import split_pairs
from alignkit.matching.sinkhorn import doubly_stochastic
from alignkit.matching.tree_objective import TreeObjective
from alignkit.solver import Report
from alignkit.solvers.activation_matching import Observed
from alignkit_ot.transport import transport_plans

PATIENCE = 5
"""Stop when this many sweeps in a row found no better rounding."""
SETTLED = 1e-4
"""Largest change of any share in a sweep that counts as none."""
TIE_BREAK = 1e-8
"""Weight of the similarity of weights beside that of activations: it settles ties and nothing else."""


class OptimalTransportOptions(IterativeOptions):
    """Options of optimal transport; a step is one sweep over all groups."""

    ground: Literal["auto", "weights", "activations"] = "auto"
    """What makes two units alike: their weights, or how their activations correlate over the task's data. "auto":
    activations if there is a task, else weights."""
    regularization: float = Field(0.1, ge=0)
    """Weight of the entropy, in standard deviations of the similarities. The larger, the softer. 0: exact transport,
    whose plans between equally many units are permutations."""
    max_steps: int = Field(100, ge=1)
    """Maximum number of sweeps over all groups."""


class OptimalTransport(Solver[OptimalTransportOptions]):
    """Move the units of B onto those of A by cheapest transport, softly, and round.

    OTFusion (Singh and Jaggi, NeurIPS 2020) on any graph: each group is transported given the plans of the groups that
    it meets in a tensor; those that have no plan yet count with the mean of their units. The paper goes over the layers
    once; here the sweeps are repeated until the plans settle. Units inside units (heads) are transported for every pair
    of parents, and the values of their plans are the similarities of the parents. The soft alignment holds the plans,
    scaled to rows that add up to 1; the alignment is its rounding, the best of all sweeps.
    """

    name = "ot"
    returns = Returns(soft=True, exact_on_permuted_copies=True, monotone=True)

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        if self.options.ground == "activations":
            self.needs = Needs(task=True)  # type: ignore[misc]

    def solve(self, problem: Problem, report: Report) -> Outcome:
        """Sweep until the plans settle, or no sweep finds a better rounding any more."""
        ground = self._ground(problem)
        graph = problem.graph
        elements: dict[str, Tensor | None] = dict.fromkeys(graph.groups)
        best = score = soft = None
        if problem.init is not None:
            best, score = problem.init, ground.score(problem.init)
            elements.update(best.elements)
        idle = 0
        for step in range(1, self.options.max_steps + 1):
            before = dict(elements)
            for root in graph.roots:
                elements.update(ground.transported(root, elements, self.options.regularization))
            moved = SoftAlignment(graph, {name: matrix for name, matrix in elements.items() if matrix is not None})
            rounded = moved.round()
            reached = ground.score(rounded)
            idle += 1
            if score is None or reached < score:
                best, score, soft, idle = rounded, reached, moved, 0
            report(Step(step, score, alignment=best))
            if idle >= PATIENCE or _change(before, elements) <= SETTLED:
                status = Status.OK
                break
        else:
            status = Status.MAX_STEPS
        assert best is not None, "there is at least one sweep"
        return Outcome(best, status, {"sweeps": float(step)}, soft or SoftAlignment.from_alignment(best))

    def objective(self, problem: Problem, alignment: Alignment) -> float:
        """Squared distance; with activations, minus the mean correlation of matched units."""
        return self._ground(problem).score(alignment)

    def _ground(self, problem: Problem) -> Ground:
        trees = {root: TreeObjective(problem.objective, root) for root in problem.graph.roots}
        ground = self.options.ground
        if ground == "weights" or (ground == "auto" and problem.task is None):
            return Ground(trees, {}, problem.objective.distance2)
        observed = _observed(problem)
        if not observed.similarity:
            return Ground(trees, {}, problem.objective.distance2)
        return Ground(trees, observed.similarity, lambda alignment: observed.objective(alignment.elements))


@dataclass(frozen=True)
class Ground:
    """What makes units alike.

    Attributes:
        trees: Similarities of weights, one object for each root of the graph.
        activations: ``[units, units]`` over all parents, for each group that was seen in activations.
        score: What roundings are compared by; lower is better.
    """

    trees: Mapping[str, TreeObjective]
    activations: Mapping[str, Tensor]
    score: Callable[[Alignment], float]

    def transported(self, root: str, elements: Mapping[str, Tensor | None], regularization: float) -> dict[str, Tensor]:
        """Matrices of a tree, as in `SoftAlignment`, given those of the groups outside it; None counts as unknown."""
        tree = self.trees[root]
        graph = tree.graph
        similarity = self._similarities(tree, elements)
        matrices: dict[str, Tensor] = {}

        def solve(group: str) -> Tensor:
            """Transport the group for each pair of parents; the values of the plans are the parents' similarities."""
            total = similarity[group]
            for child in graph.children(group):
                total = total + solve(child)
            pairs = split_pairs(total, graph.groups[group].size)
            plans = doubly_stochastic(transport_plans(pairs, regularization) * pairs.shape[-1])
            matrices[group] = plans[0, 0] if graph.groups[group].parent is None else plans
            return (plans * pairs).sum((-1, -2))

        solve(root)
        return matrices

    def _similarities(self, tree: TreeObjective, elements: Mapping[str, Tensor | None]) -> dict[str, Tensor]:
        graph = tree.graph
        members = graph.tree(tree.root)
        similarities = {}
        for name in members:
            units = graph.instances(name) * graph.groups[name].size
            similarities[name] = torch.zeros(units, units, dtype=torch.float64)
            for use in (*tree.plain[name], *tree.coupled[name]):
                similarities[name] += tree.objective.pair_similarity(use, elements).cpu().double()
        seen = [self.activations[name] for name in members if name in self.activations]
        if not seen:
            return similarities
        largest = max(float(matrix.abs().max()) for matrix in similarities.values())
        scale = TIE_BREAK * max(float(matrix.abs().max()) for matrix in seen) / max(largest, 1e-300)
        return {name: scale * matrix + self.activations.get(name, 0.0) for name, matrix in similarities.items()}


def _observed(problem: Problem) -> Observed:
    """Correlations of the units' activations over the task's data, after the activation functions where seen there."""
    task = problem.task
    if task is None:
        raise SolverError("ground='activations' works with data: pass task=alignkit.Task(model, batches, loss).")
    a, b = task.checked(problem.a), task.checked(problem.b)
    return Observed.of(problem.graph, task, a, b, task.batches)


def _change(before: Mapping[str, Tensor | None], after: Mapping[str, Tensor | None]) -> float:
    """Largest change of a share; infinite while a group had no plan."""
    change = 0.0
    for name, new in after.items():
        old = before[name]
        if new is None or old is None or old.shape != new.shape:
            return float("inf")
        change = max(change, float((new - old).abs().max()))
    return change
