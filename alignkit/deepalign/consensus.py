"""Consensus: similarities of all groups brought to agree through the weights that connect them.

A round turns scores into soft alignments by Sinkhorn, computes the similarities of weights under the soft alignments of
all neighbours ([Ainsworth23]'s matrices, relaxed), and adds them to the scores. [Navon24] learns a map from weights to
similarities; here the similarities come from probes, and the rounds have no parameters.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from alignkit.deepalign.probes import standardised
from alignkit.graph.symmetry_graph import SymmetryGraph
from alignkit.matching.families import nested_assignment, split_pairs
from alignkit.matching.objective import Objective
from alignkit.matching.sinkhorn import balanced_sinkhorn
from alignkit.matching.tree_objective import TreeObjective

Scores = Mapping[str, Float[Tensor, "units units"]]
"""Similarities of the units of each group over all parents, row-major."""

ROUNDS, SHARPNESS, CARRY_OVER = 3, 6.0, 1.0
"""Rounds, factor of scores and weight of earlier scores, fixed on networks of the training sets of the universal
encoder (`tests/benchmarks/paper/data.py`). Around them barriers change by less than the noise of eight pairs a set."""
TRUST = 2
"""Power of the peak of scores with which they are weighted."""
SCALINGS = 12
"""Scalings of one Sinkhorn projection."""


def consensus(
    objective: Objective,
    scores: Scores,
    rounds: int = ROUNDS,
    sharpness: float = SHARPNESS,
    carry_over: float = CARRY_OVER,
) -> dict[str, Tensor]:
    """Scores after some rounds.

    Args:
        objective: Objective of the pair.
        scores: First scores, float64; a group without an entry counts as unknown until the first round.
        rounds: How many rounds.
        sharpness: Factor of standardised scores before Sinkhorn; the larger, the harder the soft alignment.
        carry_over: Weight of the scores of the round before, beside the similarities of weights.
    """
    trees = {root: TreeObjective(objective, root) for root in objective.graph.roots}
    current = {name: standardised(matrix) for name, matrix in scores.items()}
    for _ in range(rounds):
        soft = soft_elements(objective.graph, current, sharpness)
        current = {
            name: _updated(weights, current.get(name), carry_over)
            for root in trees
            for name, weights in _weight_similarities(trees[root], soft).items()
        }
    return current


def _updated(weights: Tensor, before: Tensor | None, carry_over: float) -> Tensor:
    """Similarities of weights and earlier scores, each trusted as far as it is decided.

    Weights of a residual stream say little about a unit and responses much; in an MLP it is the other way round.
    """
    new = standardised(weights)
    if before is None:
        return new
    return standardised(peak(new) ** TRUST * new + carry_over * peak(before) ** TRUST * before)


def peak(scores: Float[Tensor, "units units"]) -> Tensor:
    """Mean of the largest entry of rows and of columns, relative to that of as many normal random numbers."""
    found = scores.detach()
    largest = (found.amax(0).mean() + found.amax(1).mean()) / 2
    return largest / math.sqrt(2 * math.log(max(len(found), 3)))


def _weight_similarities(tree: TreeObjective, soft: Mapping[str, Tensor | None]) -> dict[str, Tensor]:
    """For each group of a tree the similarities of its own units, everything off its chain being soft or averaged."""
    found = {}
    for name in tree.graph.tree(tree.root):
        uses = (*tree.plain[name], *tree.coupled[name])
        units = tree.graph.unit_count(name)
        total = torch.zeros(units, units, dtype=torch.float64)
        for use in uses:
            total += tree.pair_similarity(use, soft).cpu().double()
        if uses:
            found[name] = total
    return found


def soft_elements(graph: SymmetryGraph, scores: Scores, sharpness: float) -> dict[str, Tensor | None]:
    """Doubly stochastic matrices for each group, as in `SoftAlignment`; None for a tree without any score."""
    elements: dict[str, Tensor | None] = {}
    for root in graph.roots:
        members = graph.tree(root)
        if any(name in scores for name in members):
            _soften(graph, root, scores, sharpness, elements)
        else:
            elements.update(dict.fromkeys(members))
    return elements


def _soften(
    graph: SymmetryGraph, name: str, scores: Scores, sharpness: float, elements: dict[str, Tensor | None]
) -> None:
    """Soften the children of a group, then the group: two parents are as alike as their softly matched children."""
    units = graph.unit_count(name)
    total = scores[name] if name in scores else torch.zeros(units, units, dtype=torch.float64)
    for child in graph.children(name):
        _soften(graph, child, scores, sharpness, elements)
        own = elements[child]
        assert own is not None
        if child in scores:
            pairs = split_pairs(scores[child], graph.groups[child].size)
            total = total + standardised((own * pairs).sum((-1, -2)))
    matrices = split_pairs(standardised(total), graph.groups[name].size)
    soft = balanced_sinkhorn(sharpness * matrices, SCALINGS)
    elements[name] = soft[0, 0] if graph.groups[name].parent is None else soft


def assign(graph: SymmetryGraph, scores: Scores) -> dict[str, Tensor]:
    """The best element of the symmetry group for the scores, families from the inside out."""
    elements: dict[str, Tensor] = {}
    for root in graph.roots:
        similarity = {name: scores[name] for name in graph.tree(root) if name in scores}
        elements.update(nested_assignment(graph, root, similarity))
    return elements
