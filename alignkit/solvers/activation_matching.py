"""Activation matching: units that are active together on the same inputs are the same unit."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from alignkit.activations import cross_moments, find_readings, probe_batches
from alignkit.activations.moments import CrossMoments
from alignkit.activations.random_inputs import PROBE_ROWS
from alignkit.graph.elements.alignment import Alignment
from alignkit.graph.kinds import KINDS, moves
from alignkit.graph.symmetry_graph import SymmetryGraph
from alignkit.matching.families import nested_assignment
from alignkit.matching.oracles import best_of_kind
from alignkit.matching.tree_objective import TreeObjective
from alignkit.solver import Needs, Outcome, Problem, Report, Returns, Solver, SolverOptions, Status, Step
from alignkit.solvers.coordinate_ascent import Ascent, colour_roots
from alignkit.tasks.batches import Batch
from alignkit.tasks.task import Task

TIE_BREAK = 1e-10
"""Weight of the similarity of weights relative to that of activations: it settles ties and nothing else."""


class ActivationMatchingOptions(SolverOptions):
    """Options of activation matching."""

    activation: Literal["post", "pre"] = "post"
    """Compare units after their activation function (the inputs of the modules that read them) or before it (the
    outputs of the modules that write them). A group that is not seen on the wanted side is compared on the other."""
    statistic: Literal["correlation", "covariance"] = "correlation"
    """Correlation counts every unit alike; covariance lets units with large activations decide. Units that rotate into
    each other are compared by covariances either way, with "correlation" relative to their mean variance."""
    weights: float = Field(1.0, ge=0)
    """Weight of the similarity of weights beside that of activations, where residual streams rotate: these are matched
    by both, in turn with all other groups by weights, until nothing changes. 0: activations alone."""
    max_batches: int | None = Field(None, ge=1)
    """Maximum number of batches of the task that are read. None reads all."""
    probes: int = Field(0, ge=0)
    """Random inputs to compare on instead of the task's data, in its shape. Floating-point inputs are standard normal,
    whole numbers are drawn between the smallest and the largest of the task's first batch. 0: the data."""
    input_shape: tuple[int, ...] | None = None
    """Shape of one input, without the batch. Compares on ``probes`` normal inputs (256 unless given); needs no task."""


class ActivationMatching(Solver[ActivationMatchingOptions]):
    """Match the units of each group by how their activations correlate over data.

    Source: Li et al., "Convergent learning", 2015; [Ainsworth23], 3.1. The statistics are streamed in float64 over any
    number of batches; families are matched from the inside out, so the result is the best one for the sum over all
    places where a group is seen (`alignkit.activations.sites` lists them). Constant units are told apart by their
    weights, and a group that is seen nowhere is matched by weights given the others: the last step of the history and
    ``stats["groups_by_weights"]`` say so. Where a residual stream rotates it is matched by activations and weights
    together, and all else by weights.
    """

    name = "activation_matching"
    kinds = frozenset(KINDS)
    needs = Needs(task=True)
    returns = Returns(exact_on_permuted_copies=True, monotone=True)

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        if self.options.input_shape is not None:
            self.needs = Needs(modules=True)  # type: ignore[misc]

    def solve(self, problem: Problem, report: Report) -> Outcome:
        """Collect statistics once, then assign every tree of groups."""
        observed = self._observe(problem)
        elements = _assign(problem, observed)
        groups, status = problem.graph.groups, Status.OK
        streams = _streams(problem, observed) if self.options.weights else []
        if streams:
            status = _ascend_on_both(problem, observed, elements, streams, self.options.weights)
        report(Step(1, observed.objective(elements), alignment=Alignment(problem.graph, elements)))
        by_weights = [n for n, group in groups.items() if moves(group.kind, group.size) and n not in observed.seen]
        if by_weights and not streams:
            status = _match_by_weights(problem, elements, frozenset(by_weights))
            note = f"not seen in activations, matched by weights: {', '.join(by_weights)}"
            report(Step(2, observed.objective(elements), note, Alignment(problem.graph, elements)))
        stats = {"samples": observed.samples, "readings": observed.readings, "groups_by_weights": len(by_weights)}
        return Outcome(Alignment(problem.graph, elements), status, {n: float(count) for n, count in stats.items()})

    def objective(self, problem: Problem, alignment: Alignment) -> float:
        """Return minus the mean correlation (or covariance) of matched units."""
        return self._observe(problem).objective(alignment.elements)

    def _observe(self, problem: Problem) -> Observed:
        """Run both models on the task's data, or on random inputs in the shape of the task or of the options."""
        options, task = self.options, problem.task
        if options.input_shape is not None:
            model = problem.bound.module_a
            assert model is not None, "needs.check asked for modules"
            count = options.probes or 256
            dtype = next((t.dtype for t in problem.a.values() if t.is_floating_point()), torch.float32)
            inputs = torch.randn(count, *options.input_shape, generator=problem.generator()).to(dtype)
            task = Task(model, (inputs, torch.zeros(count)), "mse", device=problem.device, chunk=PROBE_ROWS)
        assert task is not None, "needs.check asked for a task"
        batches: Iterable[Batch] = task.batches
        if options.probes and options.input_shape is None:
            batches = probe_batches(next(iter(task.batches)), options.probes, problem.generator())
        a, b = task.checked(problem.a), task.checked(problem.b)
        batches = islice(batches, options.max_batches)
        return Observed.of(problem.graph, task, a, b, batches, options.activation, options.statistic)


@dataclass(frozen=True)
class Observed:
    """Similarities of units, from their activations."""

    graph: SymmetryGraph
    similarity: Mapping[str, Tensor]
    """For each group that was seen, ``[units, units]`` over all parents, summed over its readings."""
    samples: int
    """Maximum number of samples seen in one reading, positions counted."""
    readings: int

    @classmethod
    def of(
        cls,
        graph: SymmetryGraph,
        task: Task,
        a: Mapping[str, Tensor],
        b: Mapping[str, Tensor],
        batches: Iterable[Batch],
        activation: str = "post",
        statistic: str = "correlation",
    ) -> Observed:
        """Run A and B, weights that the task checked, on batches; sum up the statistic over each group's readings.

        ``activation`` and ``statistic`` are as in `ActivationMatchingOptions`.
        """
        every, sample_bytes = find_readings(graph, task, a)
        sides = (activation, "both")
        readings = {group: [r for r in all_ if r.site.when in sides] or all_ for group, all_ in every.items()}
        moments = cross_moments(readings, task, a, b, batches, sample_bytes)
        total: dict[str, Tensor] = {}
        for reading, sums in moments.items():
            matrix = _statistic(sums, statistic, graph.rotates(reading.group)).cpu()
            total[reading.group] = total[reading.group] + matrix if reading.group in total else matrix
        seen = {group: matrix for group, matrix in total.items() if bool(matrix.any())}
        return cls(graph, seen, max((m.count for m in moments.values()), default=0), len(moments))

    @property
    def seen(self) -> frozenset[str]:
        """Groups whose order is told by activations: their own, or those of the units inside them."""
        return frozenset(name for group in self.similarity for name in (*self.graph.ancestors(group), group))

    def objective(self, elements: Mapping[str, Tensor]) -> float:
        """Return minus the mean similarity of matched units over the groups that were seen; 0 if none was."""
        if not self.similarity:
            return 0.0
        alignment, total, units = Alignment(self.graph, elements), 0.0, 0
        for group, matrix in self.similarity.items():
            # B's units brought to their places are compared with A's one by one.
            moved = alignment.move_units(group, matrix)
            total, units = total + float(moved.diagonal().sum()), units + len(matrix)
        return -total / units


def _statistic(sums: CrossMoments, statistic: str, rotates: bool) -> Tensor:
    """Return the similarities of units in one reading. Units that rotate have no size of their own to divide by."""
    if statistic == "covariance":
        return sums.covariance()
    return sums.relative_covariance() if rotates else sums.correlation()


def _assign(problem: Problem, observed: Observed) -> dict[str, Tensor]:
    """Find the best element for the similarities; weights settle what activations leave open.

    Constant units correlate with nothing, and two units that are active on one and the same sample correlate perfectly.
    So small similarities by weights, other groups averaged, are added.
    """
    graph = problem.graph
    unknown: dict[str, Tensor | None] = dict.fromkeys(graph.groups)
    elements: dict[str, Tensor] = {}
    for root in graph.roots:
        groups = graph.tree(root)
        similarity = {group: observed.similarity[group] for group in groups if group in observed.similarity}
        if not similarity:
            elements.update({group: problem.start.elements[group] for group in groups})
            continue
        tree = TreeObjective(problem.objective, root)
        scale = TIE_BREAK * max(float(matrix.abs().max()) for matrix in similarity.values())
        for group in groups:
            uses = (*tree.plain[group], *tree.coupled[group])
            total = sum(tree.objective.pair_similarity(use, unknown).cpu().double() for use in uses)
            if isinstance(total, Tensor):
                extra = total * (scale / max(float(total.abs().max()), 1e-300))
                similarity[group] = similarity[group] + extra if group in similarity else extra
        elements.update(nested_assignment(graph, root, similarity))
    return elements


def _streams(problem: Problem, observed: Observed) -> list[str]:
    """Return residual streams: groups that rotate as a whole, were seen, and whose similarities are exact."""
    rotating = [root for root in problem.graph.roots if problem.graph.rotates(root) and root in observed.similarity]
    return [root for root in rotating if root in Ascent(problem.objective).linear]


def _ascend_on_both(
    problem: Problem, observed: Observed, elements: dict[str, Tensor], streams: list[str], weights: float
) -> Status:
    """Match streams that rotate by activations and weights, all else by weights; ``elements`` is updated.

    On transformers of two seeds activations tell best how streams are rotated, and weights what is inside layers.
    Ascent on weights alone loses what activations told (docs/symmetries.md). The sum of both is one objective; at the
    start both are of one size, ``weights`` times.
    """
    rest = (root for root in problem.graph.roots if root not in streams)
    _match_by_weights(problem, elements, frozenset(name for root in rest for name in problem.graph.tree(root)))
    beside = {}
    for stream in streams:
        seen, own = observed.similarity[stream], problem.objective.similarity(stream, elements).cpu()
        beside[stream] = seen * (own.norm() / (weights * seen.norm()))
    run = Ascent(problem.objective, beside=beside).run(elements, colour_roots(problem.graph))
    elements.update(run.elements)
    return Status.OK if run.converged else Status.MAX_STEPS


def _match_by_weights(problem: Problem, elements: dict[str, Tensor], groups: frozenset[str]) -> Status:
    """Match groups by the similarity of weights given all others; ``elements`` is updated."""
    graph, objective = problem.graph, problem.objective
    roots = {root for root in graph.roots if groups.issuperset(graph.tree(root))}
    status = Status.OK
    if roots:
        ascent = Ascent(objective)
        free = {name for root in roots for name in graph.tree(root)}
        start = {name: None if name in free and problem.init is None else element for name, element in elements.items()}
        classes = [[root for root in members if root in roots] for members in colour_roots(graph)]
        run = ascent.run(start, [members for members in classes if members])
        elements.update(run.elements)
        status = Status.OK if run.converged else Status.MAX_STEPS
    for root in set(graph.roots) - roots:
        for group in graph.tree(root):
            if group in groups and not graph.children(group):
                best = best_of_kind(graph.groups[group].kind, objective.similarity(group, elements))
                elements[group] = best.reshape(graph.element_shape(group))
    return status
