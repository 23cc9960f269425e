"""Weight matching: coordinate ascent over groups, one linear assignment at a time ([Ainsworth23], Algorithm 1)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import networkx as nx
import torch
from pydantic import Field
from torch import Tensor

from alignkit.graph.elements.alignment import Alignment
from alignkit.graph.symmetry_graph import SymmetryGraph
from alignkit.matching.assignment import Backend, assignment_value, linear_assignment
from alignkit.matching.objective import Objective
from alignkit.matching.tree_objective import TreeObjective
from alignkit.solver import IterativeOptions, Outcome, Problem, Report, Returns, Solver, Status, Step


class WeightMatchingOptions(IterativeOptions):
    """Options of weight matching; a step is one sweep over all groups."""

    rtol: float = Field(1e-9, ge=0)
    """Stop when a sweep lowers the squared distance by less than this fraction."""
    restarts: int = Field(0, ge=0)
    """Further runs, each in a random order of groups and from the best alignment so far with some units shuffled. The
    best run is kept."""
    shuffle: float = Field(0.3, gt=0, le=1)
    """Fraction of the units of each group that a restart shuffles."""
    patience: int = Field(20, ge=1)
    """Stop when this many restarts in a row found nothing better."""
    start: Literal["centre", "identity", "random"] = "centre"
    """Where the first run starts without ``init``. "centre" takes the groups that are not yet matched at the mean of
    all their orders, so the result does not depend on the order in which the units are stored."""
    products: Literal["float64", "float32"] = "float64"
    """Type in which similarities are multiplied. "float32" is for GPUs that are slow in float64. Steps are accepted by
    the objective in float64 either way."""


class WeightMatching(Solver[WeightMatchingOptions]):
    """Match one group of units at a time, all others fixed, until nothing changes.

    Coordinate ascent on ``<A, P # B>`` ([Ainsworth23], Algorithm 1), for any graph. Groups that do not meet in a tensor
    are updated together; a group is looked at again only when a neighbour has changed; trees of families are updated
    whole. A step is taken only when the true objective improves, so runs are monotone and end.
    """

    name = "weight_matching"
    returns = Returns(exact_on_permuted_copies=True, monotone=True)

    def solve(self, problem: Problem, report: Report) -> Outcome:
        """AscentRun once, then restart; the best result is returned."""
        options = self.options
        ascent = self.ascent(problem)
        generator = problem.generator()
        first = options.start if problem.init is None else "init"
        best = ascent.run(start_elements(problem, first, generator), colours(problem.graph, None))
        if problem.init is None and best.distance > sum(problem.objective.unaligned.values()):
            # Nearly aligned networks can be left in a worse place than they were: start where they are.
            best = ascent.run(start_elements(problem, "identity", generator), colours(problem.graph, None))
        for step in best.steps:
            report(step)
        runs, idle = 1, 0
        while runs <= options.restarts and idle < options.patience and best.distance > ascent.negligible:
            if runs == 1 and first != "centre":
                start = start_elements(problem, "centre", generator)
            else:
                start = shuffled(best.elements, options.shuffle, generator)
            run = ascent.run(start, colours(problem.graph, generator))
            idle = 0 if run.distance < best.distance - ascent.negligible else idle + 1
            if run.distance < best.distance:
                best = run
                report(Step(runs, best.distance, note=f"restart {runs}"))
            runs += 1
        status = Status.OK if best.converged else Status.MAX_STEPS
        stats = {"runs": float(runs), "sweeps": float(len(best.steps))}
        return Outcome(Alignment(problem.graph, best.elements), status, stats)

    def ascent(self, problem: Problem) -> Ascent:
        """The coordinate ascent that every run of a solve uses."""
        objective = problem.objective
        if self.options.products == "float32":
            objective = Objective(problem.bound, problem.device, products=torch.float32)
        return Ascent(objective, self.options.rtol, self.options.max_steps)


@dataclass(frozen=True)
class Proposal:
    """New indices for one tree, and what they add to ``<A, P # B>``; infinite where nothing was known before."""

    elements: dict[str, Tensor]
    gain: float


@dataclass(frozen=True)
class AscentRun:
    """The end of one run of coordinate ascent."""

    elements: dict[str, Tensor]
    distance: float
    steps: tuple[Step, ...]
    converged: bool


def start_elements(problem: Problem, kind: str, generator: torch.Generator) -> dict[str, Tensor | None]:
    """Return indices to start from; "centre" is None for every group."""
    graph = problem.graph
    if kind == "centre":
        return dict.fromkeys(graph.groups)
    if kind == "random":
        seed = int(torch.randint(2**31, (), generator=generator))
        return dict(Alignment.random(graph, seed).elements)
    return dict(problem.start.elements)


def shuffled(elements: dict[str, Tensor], fraction: float, generator: torch.Generator) -> dict[str, Tensor | None]:
    """Indices with a fraction of the places of each group, at least two, put in random order."""
    moved: dict[str, Tensor | None] = {}
    for name, element in elements.items():
        count = max(2, round(fraction * element.shape[-1]))
        places = torch.rand(element.shape, generator=generator, dtype=torch.float64).argsort(-1)[..., :count]
        order = torch.rand(places.shape, generator=generator, dtype=torch.float64).argsort(-1)
        moved[name] = element.scatter(-1, places, element.gather(-1, places.gather(-1, order)))
    return moved


def colours(graph: SymmetryGraph, generator: torch.Generator | None) -> list[list[str]]:
    """Roots in classes whose trees do not meet, so that a class can be updated at once; in random order if asked."""
    roots = list(graph.roots)
    if generator is not None:
        roots = [roots[i] for i in torch.randperm(len(roots), generator=generator)]
    meeting = nx.Graph()
    meeting.add_nodes_from(roots)
    owner = {name: root for root in roots for name in graph.tree(root)}
    for name, root in owner.items():
        meeting.add_edges_from((root, owner[other]) for other in graph.neighbours(name) if owner[other] != root)
    colour = nx.greedy_color(meeting, strategy=lambda g, _: iter(g))
    classes: dict[int, list[str]] = {}
    for root in roots:
        classes.setdefault(colour[root], []).append(root)
    return list(classes.values())


class Ascent:
    """Coordinate ascent over the trees of a graph.

    Args:
        objective: Objective of the pair.
        rtol: A sweep that improves the distance by less than this fraction is the last.
        max_steps: Most sweeps.
    """

    backend: Backend = "auto"
    """What assigns groups that stand alone; see `linear_assignment`."""

    def __init__(self, objective: Objective, rtol: float, max_steps: int) -> None:
        self.objective, self.graph = objective, objective.graph
        self.rtol, self.max_steps = rtol, max_steps
        # Differences below this are rounding of the inner product in float64.
        self.negligible = 1e-12 * max(objective.squares, 1e-300)
        self.trees = {root: TreeObjective(objective, root) for root in self.graph.roots}
        self.acts_once = {
            name: all(sum(d.group == name for d in use.block.dims) == 1 for use in uses)
            for name, uses in objective.uses.items()
        }
        self.around = {root: self._around(root) for root in self.graph.roots}

    def _around(self, root: str) -> frozenset[str]:
        members = set(self.graph.tree(root))
        owner = {name: other for other in self.graph.roots for name in self.graph.tree(other)}
        return frozenset(owner[n] for m in members for n in self.graph.neighbours(m)) - {root}

    def run(self, start: dict[str, Tensor | None], classes: list[list[str]]) -> AscentRun:
        """Update until nothing improves."""
        elements = dict(start)
        dirty = set(self.graph.roots)
        steps: list[Step] = []
        distance = self._distance(elements) if all(p is not None for p in elements.values()) else math.inf
        while dirty and len(steps) < self.max_steps:
            before = distance
            for roots in classes:
                turn = [root for root in roots if root in dirty]
                dirty.difference_update(turn)
                for root, gain in self._update(turn, elements).items():
                    dirty |= self.around[root]
                    distance -= 2 * gain
            if not math.isfinite(distance):
                distance = self._distance(elements)
            steps.append(Step(len(steps) + 1, max(distance, 0.0)))
            if before - distance <= self.rtol * distance:
                dirty.clear()
        known = {name: element for name, element in elements.items() if element is not None}
        return AscentRun(known, max(distance, 0.0), tuple(steps), not dirty)

    def _update(self, roots: list[str], elements: dict[str, Tensor | None]) -> dict[str, float]:
        """Update trees that do not meet; returns those that changed, and what each gained."""
        gains: dict[str, float] = {}
        self._refine_leaves(roots, elements, gains)
        proposals = {root: self._propose(root, elements) for root in roots}
        for root, proposal in proposals.items():
            if proposal is not None:
                elements.update(proposal.elements)
                gains[root] = gains.get(root, 0.0) + proposal.gain
        self._refine_leaves([root for root in roots if proposals[root] is not None], elements, gains)
        return gains

    def _propose(self, root: str, elements: dict[str, Tensor | None]) -> Proposal | None:
        """A better element for one tree, or None."""
        if self.graph.children(root):
            return self._if_better(self.trees[root].propose(elements), elements)
        return self._propose_group(root, elements)

    def _propose_group(self, group: str, elements: dict[str, Tensor | None]) -> Proposal | None:
        similarity = self.objective.similarity(group, elements).cpu().double()
        current = elements[group]
        found = linear_assignment(similarity, self.backend).reshape(self.graph.element_shape(group))
        if current is None:
            return Proposal({group: found}, math.inf)
        if torch.equal(found, current):
            return None
        if not self.acts_once[group] or self.objective.products != self.objective.dtype:
            return self._if_better({group: found}, elements)
        values = [assignment_value(similarity, p.reshape(similarity.shape[:-1])) for p in (found, current)]
        gain = float((values[0] - values[1]).sum())
        return Proposal({group: found}, gain) if gain > self.negligible else None

    def _refine_leaves(self, roots: list[str], elements: dict[str, Tensor | None], gains: dict[str, float]) -> None:
        """Update the innermost groups of trees of families with their parents held in place."""
        for root in roots:
            members = self.graph.tree(root)
            if len(members) == 1 or any(elements[name] is None for name in members):
                continue
            for leaf in members:
                proposal = None if self.graph.children(leaf) else self._propose_group(leaf, elements)
                if proposal is not None:
                    elements.update(proposal.elements)
                    gains[root] = gains.get(root, 0.0) + proposal.gain

    def _if_better(self, proposal: dict[str, Tensor], elements: dict[str, Tensor | None]) -> Proposal | None:
        """The proposal when the true objective improves. It always does where there was nothing before."""
        if any(elements[name] is None for name in proposal):
            return Proposal(proposal, math.inf)
        if all(torch.equal(proposal[name], elements[name]) for name in proposal):  # type: ignore[arg-type]
            return None
        touched = [t for t, node in self.graph.tensors.items() if not node.groups.isdisjoint(proposal)]
        if any(elements[name] is None for t in touched for name in self.graph.tensors[t].groups):
            # Neighbours are still at the centre of their orders: there is no true objective to compare yet.
            return None
        changed = {**elements, **proposal}
        gain = sum(self.objective.tensor_value(t, changed) - self.objective.tensor_value(t, elements) for t in touched)
        return Proposal(proposal, gain) if gain > self.negligible else None

    def _distance(self, elements: dict[str, Tensor | None]) -> float:
        value = self.objective.fixed_value + sum(self.objective.tensor_value(t, elements) for t in self.objective.a)
        return self.objective.squares - 2 * value
