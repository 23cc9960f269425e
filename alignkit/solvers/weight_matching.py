"""Weight matching: coordinate ascent over groups, one linear assignment at a time ([Ainsworth23], Algorithm 1)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import networkx as nx
import torch
from pydantic import Field
from torch import Tensor

from alignkit.alignment import Alignment
from alignkit.assignment import assignment_value, linear_assignment
from alignkit.graph.permutation_graph import PermutationGraph
from alignkit.objective import Objective
from alignkit.solver import Outcome, Problem, Report, Returns, Solver, SolverOptions, Status, Step
from alignkit.tree_objective import TreeObjective


class WeightMatchingOptions(SolverOptions):
    """Options of weight matching."""

    restarts: int = Field(0, ge=0)
    """Further runs from seeded random orders and starting points. The best run is kept."""
    patience: int = Field(20, ge=1)
    """Stop when this many restarts in a row found nothing better."""
    start: Literal["average", "identity", "random"] = "average"
    """Where the first run starts without ``init``. "average" takes the groups that are not yet matched at the centre of
    all their orders, so the result does not depend on the order in which the units are stored."""


class WeightMatching(Solver[WeightMatchingOptions]):
    """Match one group of units at a time, all others fixed, until nothing changes.

    Coordinate ascent on ``<A, P # B>`` ([Ainsworth23], Algorithm 1), for any graph. Groups that do not meet in a tensor
    are updated together; a group is looked at again only when a neighbour has changed; trees of families are updated
    whole. A step is taken only when the true objective improves, so runs are monotone and end.
    """

    name = "weight_matching"
    returns = Returns(exact_on_permuted_copies=True, monotone=True)

    def solve(self, problem: Problem, report: Report) -> Outcome:
        """Run once, then restart; the best result is returned."""
        options = self.options
        ascent = Ascent(problem.objective, options.rtol, options.max_steps)
        generator = problem.generator()
        first = options.start if problem.init is None else "init"
        best = ascent.run(start_perms(problem, first, generator), colours(problem.graph, None))
        for step in best.steps:
            report(step)
        runs, idle = 1, 0
        while runs <= options.restarts and idle < options.patience and best.distance > ascent.negligible:
            kind: Literal["average", "random"] = "average" if runs % 2 else "random"
            run = ascent.run(start_perms(problem, kind, generator), colours(problem.graph, generator))
            idle = 0 if run.distance < best.distance - ascent.negligible else idle + 1
            if run.distance < best.distance:
                best = run
                report(Step(len(best.steps), best.distance, note=f"restart {runs}"))
            runs += 1
        status = Status.OK if best.converged else Status.MAX_STEPS
        stats = {"runs": float(runs), "sweeps": float(len(best.steps))}
        return Outcome(Alignment(problem.graph, best.perms), status, stats)


@dataclass(frozen=True)
class Run:
    """The end of one run of coordinate ascent."""

    perms: dict[str, Tensor]
    distance: float
    steps: tuple[Step, ...]
    converged: bool


def start_perms(problem: Problem, kind: str, generator: torch.Generator) -> dict[str, Tensor | None]:
    """Indices to start from; "average" is None for every group."""
    graph = problem.graph
    if kind == "average":
        return dict.fromkeys(graph.groups)
    if kind == "random":
        seed = int(torch.randint(2**31, (), generator=generator))
        return dict(Alignment.random(graph, seed).perms)
    return dict(problem.start.perms)


def colours(graph: PermutationGraph, generator: torch.Generator | None) -> list[list[str]]:
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

    def run(self, start: dict[str, Tensor | None], classes: list[list[str]]) -> Run:
        """Update until nothing improves."""
        perms = dict(start)
        dirty = set(self.graph.roots)
        steps: list[Step] = []
        distance = float("inf")
        while dirty and len(steps) < self.max_steps:
            for roots in classes:
                turn = [root for root in roots if root in dirty]
                dirty.difference_update(turn)
                for root in self._update(turn, perms):
                    dirty |= self.around[root]
            before, distance = distance, self._distance(perms)
            steps.append(Step(len(steps) + 1, distance))
            if before - distance <= self.rtol * distance + self.negligible:
                dirty.clear()
        if not steps:
            distance = self._distance(perms)
        known = {name: perm for name, perm in perms.items() if perm is not None}
        return Run(known, distance, tuple(steps), not dirty)

    def _update(self, roots: list[str], perms: dict[str, Tensor | None]) -> list[str]:
        """Update trees that do not meet; returns those that changed."""
        proposals = {root: self._propose(root, perms) for root in roots}
        changed = []
        for root, proposal in proposals.items():
            if proposal is not None:
                perms.update(proposal)
                changed.append(root)
        for root in roots:
            if self.graph.children(root) and self._refine_leaves(root, perms) and root not in changed:
                changed.append(root)
        return changed

    def _propose(self, root: str, perms: dict[str, Tensor | None]) -> dict[str, Tensor] | None:
        """A better element for one tree, or None."""
        if self.graph.children(root):
            return self._if_better(self.trees[root].propose(perms), perms)
        return self._propose_group(root, perms)

    def _propose_group(self, group: str, perms: dict[str, Tensor | None]) -> dict[str, Tensor] | None:
        similarity = self.objective.similarity(group, perms)
        current = perms[group]
        found = linear_assignment(similarity).reshape(self.graph.perm_shape(group))
        if current is None:
            return {group: found}
        if torch.equal(found, current):
            return None
        if not self.acts_once[group]:
            return self._if_better({group: found}, perms)
        flat = similarity.cpu().double()
        gain = assignment_value(flat, found.reshape(flat.shape[:-1])) - assignment_value(
            flat, current.reshape(flat.shape[:-1])
        )
        return {group: found} if float(gain.sum()) > self.negligible else None

    def _refine_leaves(self, root: str, perms: dict[str, Tensor | None]) -> bool:
        """Update the innermost groups of a tree with their parents held in place."""
        leaves = [name for name in self.graph.tree(root) if not self.graph.children(name)]
        found = False
        for leaf in leaves:
            proposal = self._propose_group(leaf, perms)
            if proposal is not None:
                perms.update(proposal)
                found = True
        return found

    def _if_better(self, proposal: dict[str, Tensor], perms: dict[str, Tensor | None]) -> dict[str, Tensor] | None:
        """The proposal when the true objective improves. It always does where there was nothing before."""
        if any(perms[name] is None for name in proposal):
            return proposal
        if all(torch.equal(proposal[name], perms[name]) for name in proposal):  # type: ignore[arg-type]
            return None
        touched = [t for t, node in self.graph.tensors.items() if not node.groups.isdisjoint(proposal)]
        if any(perms[name] is None for t in touched for name in self.graph.tensors[t].groups):
            # Neighbours are still at the centre of their orders: there is no true objective to compare yet.
            return None
        before = sum(self.objective.tensor_value(t, perms) for t in touched)
        after = sum(self.objective.tensor_value(t, {**perms, **proposal}) for t in touched)
        return proposal if after - before > self.negligible else None

    def _distance(self, perms: dict[str, Tensor | None]) -> float:
        value = self.objective.fixed_value + sum(self.objective.tensor_value(t, perms) for t in self.objective.a)
        return max(self.objective.squares - 2 * value, 0.0)
