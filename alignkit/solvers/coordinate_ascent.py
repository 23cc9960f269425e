"""Coordinate ascent: one tree of groups is matched at a time, all others fixed ([Ainsworth23], Algorithm 1).

Weight matching is this; Frank-Wolfe, straight-through and activation matching polish or project with it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from types import MappingProxyType

import torch
from torch import Tensor

from alignkit.graph.elements.alignment import Alignment
from alignkit.graph.elements.element import shuffled_element
from alignkit.graph.kinds import FULL, WITH_MEAN
from alignkit.graph.structure import GraphStructure
from alignkit.graph.uses import Use
from alignkit.matching.objective import Objective
from alignkit.matching.oracles import best_of_kind, value_of
from alignkit.matching.tree_objective import TreeObjective
from alignkit.solver.outcome import Report, Step
from alignkit.solvers.sweep_progress import SweepProgress

RTOL, TURNING_RTOL, MAX_SWEEPS = 1e-9, 1e-5, 1000
"""Where a caller has no opinion: to the end, which orders reach in some 20 sweeps. Rotations near it ever more slowly:
of two GPT-2 the last 2e-4 of the distance take 9 of 10 sweeps, and their average gets no better by it."""
ROUNDING = 1e-12
"""Gains below this part of the squares of the tensors that they come from are rounding of products in float64."""
NEARLY, EXACT, SLOW = 1e-6, 1e-24, 0.99
"""Networks whose squared distance is below the first part of their squares are copies, perhaps with noise. Rotations of
these go on by their true distance until it is below the second part, or a sweep leaves more than the third of it."""
TINY = 1e-300
"""In place of the squared norms of networks whose weights are all 0."""


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


class Ascent:
    """Coordinate ascent over the trees of a graph.

    Groups that do not meet in a tensor are updated together; a tree is looked at again only when a neighbour has
    changed. An update is taken only when the true objective improves, so a run is monotone and ends.

    Args:
        objective: Objective of the pair.
        rtol: A sweep that improves the distance by less than this fraction is the last. None: 1e-9, or 1e-5 where a
            group rotates.
        max_sweeps: Maximum number of sweeps.
        beside: Similarities of units, ``[n, n]``, that count beside those of weights, of groups in `linear`.
    """

    def __init__(
        self,
        objective: Objective,
        rtol: float | None = None,
        max_sweeps: int = MAX_SWEEPS,
        beside: Mapping[str, Tensor] = MappingProxyType({}),
    ) -> None:
        self.objective, self.graph, self.beside = objective, objective.graph, beside
        turns = any(map(self.graph.rotates, self.graph.groups))
        self.rtol = (TURNING_RTOL if turns else RTOL) if rtol is None else rtol
        self.max_sweeps = max_sweeps
        self.negligible = ROUNDING * max(objective.squares, TINY)
        """Squared distances below this are rounding of the networks as a whole."""
        self.trees = {root: TreeObjective(objective, root) for root in self.graph.roots}
        self.around = neighbours_of_trees(self.graph)
        self.progress = SweepProgress(objective)
        self._roundings: dict[frozenset[str], float] = {}

    def run(
        self, start: Mapping[str, Tensor | None], classes: list[list[str]], report: Report = lambda step: None
    ) -> AscentRun:
        """Update until nothing improves; a sweep goes over all classes, which `colour_roots` returns.

        Trees whose root is in none of them stay as they are.
        It starts from indices for each group; one that is None is taken at the centre of all its orders. Every sweep is
        reported with the alignment that it has reached.
        """
        with self.progress.counting():
            return self._run(dict(start), classes, report)

    def _run(self, elements: dict[str, Tensor | None], classes: list[list[str]], report: Report) -> AscentRun:
        free = {root for roots in classes for root in roots}
        dirty = set(free)
        steps: list[Step] = []
        distance = self._distance(elements)
        every = classes
        # Rotations that meet in one tree are updated in turn, and settle slowly.
        rotating = (root for root in self.graph.roots if any(map(self.graph.rotates, self.graph.tree(root))))
        again = {root: frozenset({root}) for root in rotating}
        while dirty and len(steps) < self.max_sweeps:
            before = distance
            classes = every if steps or self._averages(elements) else roots_by_knowledge(self.objective, elements)
            for i in range(len(classes)):
                waiting = [[root for root in later if root in dirty] for later in classes[i:]]
                self.progress.expect(len(steps) + 1, waiting, elements)
                turn = waiting[0]
                dirty.difference_update(turn)
                for root, gain in self._update(turn, elements).items():
                    dirty |= free & (self.around[root] | again.get(root, frozenset()))
                    distance -= 2 * gain
            if not math.isfinite(distance):
                distance = self._distance(elements)
            steps.append(Step(len(steps) + 1, max(distance, 0.0)))
            report(replace(steps[-1], alignment=Alignment._of_valid(self.graph, known_elements(elements))))
            if before - distance <= self.rtol * distance:
                dirty.clear()
        for known, distance in self._polished(known_elements(elements), free):
            elements.update(known)
            steps.append(Step(len(steps) + 1, distance))
            report(replace(steps[-1], alignment=Alignment._of_valid(self.graph, known)))
        return AscentRun(known_elements(elements), max(distance, 0.0), tuple(steps), not dirty)

    def _polished(self, elements: dict[str, Tensor], roots: set[str]) -> Iterator[tuple[dict[str, Tensor], float]]:
        """Yield better and better rotations of copies, with their distances: gains of these are lost in rounding."""
        groups = [name for root in self.graph.roots if root in roots for name in self.graph.tree(root)]
        turning = [name for name in groups if self.graph.rotates(name)]
        if not turning or self.beside or len(elements) < len(self.graph.groups):
            return
        distance, squares = self._distance(elements), max(self.objective.squares, TINY)
        for _ in range(self.max_sweeps):
            if not EXACT * squares < distance < NEARLY * squares:
                break
            before = distance
            for group in turning:
                similarity = self.objective.similarity(group, elements).cpu()
                best = best_of_kind(self.graph.groups[group].kind, similarity, self.objective.backend)
                turned = {**elements, group: best.reshape(self.graph.element_shape(group))}
                if (reached := self._distance(turned)) < distance:
                    elements, distance = turned, reached
            if not distance < SLOW * before:
                break
            yield elements, distance

    def _averages(self, elements: Mapping[str, Tensor | None]) -> bool:
        """Tell whether groups that are not known yet have a mean that says something of their units."""
        return all(elements[name] is not None or g.kind in WITH_MEAN for name, g in self.graph.groups.items())

    def _update(self, roots: list[str], elements: dict[str, Tensor | None]) -> dict[str, float]:
        """Update trees that do not meet; return those that changed, and what each gained."""
        gains: dict[str, float] = {}
        self._refine_leaves(roots, elements, gains)
        proposals = {root: self.propose(root, elements) for root in roots}
        for root, proposal in proposals.items():
            if proposal is not None:
                elements.update(proposal.elements)
                gains[root] = gains.get(root, 0.0) + proposal.gain
        self._refine_leaves([root for root in roots if proposals[root] is not None], elements, gains)
        return gains

    def propose(self, root: str, elements: dict[str, Tensor | None]) -> Proposal | None:
        """Find a better element for one tree; None if there is none."""
        with self.progress.tree(root, elements):
            if self.graph.children(root):
                return self._if_better(self.trees[root].propose(elements), elements)
            return self._propose_group(root, elements)

    def _propose_group(self, group: str, elements: dict[str, Tensor | None]) -> Proposal | None:
        similarity = self.objective.similarity(group, elements).cpu()
        if group in self.beside:
            similarity = similarity + self.beside[group]
        current, kind = elements[group], self.graph.groups[group].kind
        best = best_of_kind(kind, similarity, self.objective.backend)
        assigned = best.reshape(self.graph.element_shape(group))
        if current is None:
            return Proposal({group: assigned}, math.inf)
        if torch.equal(assigned, current):
            return None
        if group not in self.linear:
            return self._if_better({group: assigned}, elements)
        both = torch.stack([best, current.reshape(best.shape)])
        values = value_of(kind, similarity.expand(2, *similarity.shape), both)
        gain = float((values[0] - values[1]).sum())
        return Proposal({group: assigned}, gain) if gain > self._rounding_of({group}) else None

    @cached_property
    def linear(self) -> frozenset[str]:
        """Groups whose similarities are exact, and say what a step gains: they act once on each block."""

        def is_linear(group: str) -> bool:
            blocks = (use.block for use in self.graph.uses[group])
            once = all(sum(name == group for _, name in block.moving) == 1 for block in blocks)
            return once and self.objective.is_exact(group)

        return frozenset(filter(is_linear, self.graph.groups))

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
        """Return the proposal if the true objective improves; it always does where there was nothing before."""
        if any(elements[name] is None for name in proposal):
            return Proposal(proposal, math.inf)
        if all(torch.equal(proposal[name], elements[name]) for name in proposal):  # type: ignore[arg-type]
            return None
        touched = self._touched(proposal)
        if any(elements[name] is None for t in touched for name in self.graph.tensors[t].groups):
            # Neighbours are still at the centre of their orders: there is no true objective to compare yet.
            return None
        changed = {**elements, **proposal}
        gain = self.objective.gain(elements, changed)
        return Proposal(proposal, gain) if gain > self._rounding_of(proposal) else None

    def _distance(self, elements: Mapping[str, Tensor | None]) -> float:
        """Return ``|A - P # B|^2`` and how far similarities beside it are below a bound; infinity where not known."""
        known = known_elements(elements)
        if len(known) < len(elements):
            return math.inf
        missed = 0.0
        for group, similarity in self.beside.items():
            value = value_of(self.graph.groups[group].kind, similarity, known[group])
            missed += float(torch.linalg.matrix_norm(similarity, "nuc") - value)
        return sum(self.objective.distances2(known).values()) + 2 * missed

    def _touched(self, groups: Iterable[str]) -> list[str]:
        """List the tensors on which one of some groups acts."""
        wanted = set(groups)
        return [name for name, node in self.graph.tensors.items() if not node.groups.isdisjoint(wanted)]

    def _rounding_of(self, groups: Iterable[str]) -> float:
        """Return what a gain of some groups has to exceed; tensors may be of very different sizes."""
        wanted = frozenset(groups)
        if wanted not in self._roundings:
            sums = (self.objective.sums[name] for name in self._touched(wanted))
            self._roundings[wanted] = ROUNDING * max(sum(each.squares_a + each.squares_b for each in sums), TINY)
        return self._roundings[wanted]


def known_elements(elements: Mapping[str, Tensor | None]) -> dict[str, Tensor]:
    """Return the groups that have indices; after one sweep these are all groups."""
    return {name: element for name, element in elements.items() if element is not None}


def neighbours_of_trees(graph: GraphStructure) -> dict[str, frozenset[str]]:
    """Return for each root the roots of the other trees that meet its tree in a tensor."""
    trees = {root: graph.tree(root) for root in graph.roots}
    owner = {name: root for root, tree in trees.items() for name in tree}
    meets = {root: (other for name in tree for other in graph.neighbours(name)) for root, tree in trees.items()}
    return {root: frozenset(owner[other] for other in others) - {root} for root, others in meets.items()}


def colour_roots(graph: GraphStructure, generator: torch.Generator | None = None) -> list[list[str]]:
    """Put roots into classes whose trees do not meet, so that a class can be updated at once.

    The generator draws the order in which roots are coloured; None takes that of the graph.
    """
    roots = list(graph.roots)
    if generator is not None:
        roots = [roots[i] for i in torch.randperm(len(roots), generator=generator)]
    around = neighbours_of_trees(graph)
    classes: list[list[str]] = []
    for root in roots:
        apart = next((roots for roots in classes if around[root].isdisjoint(roots)), None)
        if apart is None:
            classes.append([root])
        else:
            apart.append(root)
    return classes


def shuffle_elements(
    graph: GraphStructure, elements: Mapping[str, Tensor], fraction: float, generator: torch.Generator
) -> dict[str, Tensor]:
    """Move a fraction of the places of each group, at least two, at random."""
    kinds = {name: graph.groups[name].kind for name in elements}
    return {name: shuffled_element(kinds[name], each, fraction, generator) for name, each in elements.items()}


def roots_by_knowledge(objective: Objective, elements: Mapping[str, Tensor | None]) -> list[list[str]]:
    """Put roots in an order in which each is matched by as much as possible, one to a class.

    What counts is how many numbers of each unit can be compared: those at uses where all other groups are known, or
    were matched before. Unknown permutations leave the mean of their units, and other kinds nothing, because their mean
    is 0. One number tells units apart, and ``n`` of each determine a rotation of ``n`` units. So a residual stream that
    rotates is matched by embeddings, whose rows are tokens, before the heads that read it. Among equals the larger
    weights decide.
    """
    graph, waiting = objective.graph, list(objective.graph.roots)
    known, order = {name for name, element in elements.items() if element is not None}, list[list[str]]()

    def compared(use: Use, tree: Sequence[str]) -> int:
        """Count the numbers of each unit that can be compared at a use."""
        dims = [use.block.dims[i] for i in use.rest]
        unknown = [dim for dim in dims if dim.group is not None and dim.group not in known and dim.group not in tree]
        if any(dim.kind not in WITH_MEAN for dim in unknown):
            return 0
        return math.prod(dim.size for dim in dims if dim not in unknown)

    def evidence(root: str) -> tuple[float, float]:
        tree = graph.tree(root)
        counts = {use: compared(use, tree) for name in tree for use in objective.uses[name]}
        needed = {name: graph.groups[name].size if graph.groups[name].kind in FULL else 1 for name in tree}
        covered = (sum(counts[use] for use in objective.uses[name]) / needed[name] for name in tree)
        speaking = {use.tensor for use, count in counts.items() if count}
        weight = sum(objective.sums[name].squares_a + objective.sums[name].squares_b for name in speaking)
        return min(1.0, *covered), weight

    while waiting:
        best = max(waiting, key=evidence)
        waiting.remove(best)
        known.update(graph.tree(best))
        order.append([best])
    return order
