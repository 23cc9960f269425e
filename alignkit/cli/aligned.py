"""Checkpoints brought to one order of units, and what there is to say about it: as text, as numbers, as a report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from alignkit.graph import Pair, SymmetryGraph
from alignkit.graph.proof.verify import Verification
from alignkit.jobs.align_many import ManyAlignment, align_many
from alignkit.jobs.solve import solve
from alignkit.reports import Lines, Report, Section, many_report, solution_report
from alignkit.reports.solved import facts_section, function_section
from alignkit.solver.solution import Solution
from alignkit.tasks.interpolation import interpolate
from alignkit.tasks.task import Task
from alignkit.text import list_some

Weights = Mapping[str, Tensor]
POINTS = 11
"""Places on the line between two models where a task is evaluated."""
LISTED = 20


@dataclass(frozen=True)
class Aligned:
    """Models in one order of units.

    Attributes:
        graph: Their graph.
        weights: The models, the first as it was.
        solution: How the second was aligned, if there are two.
        many: How all were aligned, if there are more.
        pair: The two models as they were given.
        lines: The task on the line between two models, if there is one.
    """

    graph: SymmetryGraph
    weights: Sequence[Weights]
    solution: Solution | None = None
    many: ManyAlignment | None = None
    pair: Pair | None = None
    lines: Lines | None = None

    @property
    def text(self) -> list[str]:
        """What is printed."""
        if self.solution is not None:
            before, after = self.solution.objective_before, self.solution.objective_after
            said = f"Squared distance of the two: {before:.6g} unaligned, {after:.6g} aligned."
            return [self.solution.explain(), said, *self._losses]
        if self.many is None:
            return ["Not aligned.", *self._losses]
        before, after = self.many.spread_before, self.many.spread_after
        lines = [
            f"{len(self.weights)} models, {self.many.method} with {self.many.solver}, {len(self.many.history)} sweeps.",
            f"Mean squared distance of a pair: {before:.6g} unaligned, {after:.6g} aligned.",
        ]
        if uncovered := self.graph.uncovered:
            lines.append(f"Not covered: {list_some(uncovered, LISTED)}.")
        return lines

    @property
    def _losses(self) -> list[str]:
        if self.lines is None:
            return []
        before, after = self.lines.identity, self.lines.aligned
        return [
            f"Loss: A {before.losses[0]:.4f}, B {before.losses[-1]:.4f}; their average {before.midpoint.loss:.4f} "
            f"unaligned, {after.midpoint.loss:.4f} aligned. Barrier: {before.barrier:.4f} unaligned, "
            f"{after.barrier:.4f} aligned."
        ]

    @property
    def facts(self) -> dict[str, Any]:
        """What ``--json`` prints."""
        found: dict[str, Any] = {}
        if self.solution is not None:
            found = {
                "solver": self.solution.solver,
                "before": self.solution.objective_before,
                "after": self.solution.objective_after,
                "gain": dict(self.solution.gain),
                "moved": dict(self.solution.moved),
                "uncovered": self.solution.uncovered,
            }
        if self.many is not None:
            found = {"solver": self.many.solver, "before": self.many.spread_before, "after": self.many.spread_after}
            found["uncovered"] = list(self.graph.uncovered)
        if self.lines is not None:
            before, after = self.lines.identity, self.lines.aligned
            found["task"] = {
                "loss_a": before.losses[0],
                "loss_b": before.losses[-1],
                "loss_average_unaligned": before.midpoint.loss,
                "loss_average_aligned": after.midpoint.loss,
                "barrier_unaligned": before.barrier,
                "barrier_aligned": after.barrier,
            }
        return found

    def report(self, title: str, names: Sequence[str], check: Verification | None, facts: Mapping[str, str]) -> Report:
        """What ``--report`` writes."""
        if self.solution is not None:
            return solution_report(self.solution, title, pair=self.pair, check=check, lines=self.lines, facts=facts)
        if self.many is not None:
            return many_report(self.many, names, title, check=check, facts=facts)
        sections: list[Section] = [facts_section("Summary", {**facts, "aligned": "no"}), function_section(check)]
        return Report(title, tuple(sections))


def align(graph: SymmetryGraph, weights: Sequence[Weights], arguments: Mapping[str, Any], task: Task | None) -> Aligned:
    """Two models as a pair; more with a common place, each aligned to the mean of the others.

    Raises:
        BindError: The models do not fit the graph.
        SolverError: The solver is unknown, its options are wrong, or it failed.
    """
    if len(weights) > 2:
        many = align_many(graph, weights, task=task, **arguments)
        return Aligned(graph, many.apply(list(weights)), many=many)
    pair = graph.bind(*weights)
    solution = solve(pair, task=task, **arguments)
    moved = solution.apply(weights[1])
    lines = None
    if task is not None:
        ends = {"identity": weights[1], "aligned": moved}
        lines = Lines(*(interpolate(task, weights[0], end, POINTS, name) for name, end in ends.items()))
    return Aligned(graph, [weights[0], moved], solution, None, pair, lines)


def unaligned(graph: SymmetryGraph, weights: Sequence[Weights], task: Task | None) -> Aligned:
    """The models as they were given."""
    if task is None or len(weights) > 2:
        return Aligned(graph, list(weights))
    line = interpolate(task, weights[0], weights[1], POINTS, "identity")
    return Aligned(graph, list(weights), lines=Lines(line, line))
