"""Two solvers for alignkit: coordinate ascent in 15 lines, and greedy matching, a baseline with some care."""

from __future__ import annotations

from typing import Any

import torch
from pydantic import Field
from torch import Tensor

import alignkit
from alignkit import Alignment, IterativeOptions, Outcome, Problem, Returns, Solver, Status, Step
from alignkit.matching.assignment import linear_assignment
from alignkit.solver import Report


# --8<-- [start:solver]
class CoordinateAscent(Solver[IterativeOptions]):
    """Match one group after the other by linear assignment until nothing gains [Ainsworth23, Algorithm 1]."""

    name = "coordinate_ascent"

    def solve(self, problem: Problem, report: Report) -> Outcome:
        """Start at the identity, or where the caller says; keep only what lowers the squared distance."""
        best, distance = problem.start, problem.objective.distance2(problem.start)
        for step in range(1, self.options.max_steps + 1):
            elements = dict(best.elements)
            for group in problem.graph.groups:
                similarity = problem.objective.similarity(group, elements)
                elements[group] = linear_assignment(similarity).reshape(elements[group].shape)
            alignment = Alignment(problem.graph, elements)
            if problem.objective.distance2(alignment) >= distance:
                return Outcome(best)
            best, distance = alignment, problem.objective.distance2(alignment)
            report(Step(step, distance, alignment=best))
        return Outcome(best, Status.MAX_STEPS)


# --8<-- [end:solver]
class GreedyOptions(IterativeOptions):
    """Options of greedy matching; a step is one sweep over all groups."""

    rtol: float = Field(1e-9, ge=0)
    """Stop when a sweep lowers the squared distance by less than this fraction."""


class GreedyMatching(Solver[GreedyOptions]):
    """Match units group by group, the most similar pair first, until a sweep over all groups gains nothing.

    A baseline: what weight matching gains over it is the worth of solving assignments exactly. Without
    ``init``, a group that is not matched yet counts with the mean of its units. Not exact on permuted copies:
    a unit with large weights can win a place that is not its own.
    """

    name = "greedy_matching"
    returns = Returns(monotone=True)

    def solve(self, problem: Problem, report: Report) -> Outcome:
        """Sweep over the groups until a sweep gains less than ``rtol``. Only gains are kept."""
        graph, objective, best = problem.graph, problem.objective, problem.init
        elements: dict[str, Tensor | None] = dict(best.elements) if best else dict.fromkeys(graph.groups)
        distance = objective.distance2(best) if best else float("inf")
        for step in range(1, self.options.max_steps + 1):
            for group in graph.groups:
                matched = greedy_assignment(objective.similarity(group, elements))
                elements[group] = matched.reshape(graph.element_shape(group))
            alignment = Alignment(graph, {name: element for name, element in elements.items() if element is not None})
            before, after = distance, objective.distance2(alignment)
            if after < before:
                best, distance = alignment, after
                report(Step(step, after, alignment=best))
            if after >= before * (1 - self.options.rtol):
                return Outcome(best or alignment)
        return Outcome(best or problem.start, Status.MAX_STEPS)


def greedy_assignment(similarity: Tensor) -> Tensor:
    """Pair each row with a column, the largest entry first.

    A pair that is the best of its row and of its column is taken by the greedy rule whatever it takes before.
    So all such pairs are taken at once, in a few rounds (R. Preis, STACS 1999, "locally heaviest edges").

    Args:
        similarity: Finite similarities ``[..., n, n]``.

    Returns:
        int64 ``[..., n]`` on the CPU: the column of each row.
    """
    left, columns = similarity, torch.arange(similarity.shape[-1], device=similarity.device)
    element = torch.full(similarity.shape[:-1], -1, device=similarity.device)
    while bool((element < 0).any()):
        best = left.argmax(-1)
        mutual = (left.argmax(-2).gather(-1, best) == columns) & (element < 0)
        element = torch.where(mutual, best, element)
        taken = ((best[..., None] == columns) & mutual[..., None]).any(-2)
        left = left.masked_fill(mutual[..., None] | taken[..., None, :], -torch.inf)
    return element.cpu()


# --8<-- [start:hook]
@alignkit.hookimpl
def alignkit_register_solvers() -> list[type[Solver[Any]]]:
    """Offer the solvers to alignkit."""
    return [CoordinateAscent, GreedyMatching]


# --8<-- [end:hook]
