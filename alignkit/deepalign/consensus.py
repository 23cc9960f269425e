"""Consensus: scores of all groups brought to agree through the weights that connect them.

A round turns scores into soft alignments by Sinkhorn, computes the similarities of weights under the soft alignments of
all neighbours ([Ainsworth23]'s matrices, relaxed), and adds them to the scores. [Navon24] learns a map from weights to
similarities; here the similarities come from probes, and the rounds have no parameters.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from jaxtyping import Float
from torch import Tensor

from alignkit.deepalign.aligner import USUAL, Schedule
from alignkit.deepalign.relaxation import relax
from alignkit.deepalign.scores import Scores, comparable
from alignkit.graph import SymmetryGraph, Use
from alignkit.graph.kinds import GroupKind
from alignkit.matching.objective import Objective
from alignkit.matching.sinkhorn import balanced_sinkhorn
from alignkit.matching.tree_objective import TreeObjective

TRUST = 2
"""Power of the peak of scores with which they are weighted."""
SCALINGS = 12
"""Scalings of one Sinkhorn projection. Sums are only nearly 1 after so few, which the similarities do not mind."""


def consensus(
    objective: Objective,
    scores: Scores,
    schedule: Schedule = USUAL,
) -> dict[str, Tensor]:
    """Run some rounds of consensus and return the new scores, one ``[units, units]`` float64 matrix a group on the CPU.

    Each round scores every group anew, from the weights that connect it to its softly aligned neighbours.

    Args:
        objective: Objective of the pair.
        scores: First scores, float64; a group without an entry counts as unknown until the first round.
        schedule: How many rounds, how hard the soft alignments are, and how much of earlier scores is kept.
    """
    trees = [TreeObjective(objective, root) for root in objective.graph.roots]
    kinds = {name: group.kind for name, group in objective.graph.groups.items()}
    current = {name: comparable(kinds[name], matrix.to(objective.device)) for name, matrix in scores.items()}
    for _ in range(schedule.rounds):
        soft = soft_elements(objective.graph, current, schedule.sharpness)
        updated: dict[str, Tensor] = {}
        for tree in trees:
            for name in tree.graph.tree(tree.root):
                uses = (*tree.plain[name], *tree.coupled[name])
                # Similarities of units by their weights, all other groups being soft, or averaged where unknown.
                weights = [objective.pair_similarity(use, around(use, soft)) for use in uses]
                if not weights:
                    continue
                new = comparable(kinds[name], sum(weights[1:], weights[0]))
                if name in current:
                    # Each is trusted as far as it is decided. Weights of a residual stream say little about a unit and
                    # responses much; in an MLP it is the other way round.
                    old = schedule.carry_over * peak(current[name], kinds[name]) ** TRUST * current[name]
                    new = comparable(kinds[name], peak(new, kinds[name]) ** TRUST * new + old)
                updated[name] = new
        current = updated
    return {name: matrix.cpu() for name, matrix in current.items()}


def around(use: Use, soft: Mapping[str, Tensor | None]) -> dict[str, Tensor | None]:
    """Return the soft alignments that a use is scored under: not those of what is nested beside it."""
    nested = {str(use.block.dims[at].group) for at in use.branches}
    return {**soft, **dict.fromkeys(nested)}


def peak(scores: Float[Tensor, "units units"], kind: GroupKind = "permutation") -> Tensor:
    """Compute the mean of the largest entry of rows and of columns, relative to that of as many normal numbers.

    Where units may change their sign entries count without theirs.
    """
    scores = scores.detach() if kind == "permutation" else scores.detach().abs()
    largest = (scores.amax(0).mean() + scores.amax(1).mean()) / 2
    # The largest of n standard normal numbers is near sqrt(2 ln n).
    return largest / math.sqrt(2 * math.log(max(len(scores), 3)))


def soft_elements(graph: SymmetryGraph, scores: Scores, sharpness: float) -> dict[str, Tensor | None]:
    """Make nearly doubly stochastic matrices of each group, as in `SoftAlignment`; None where nothing is known."""
    one_pair = {name: matrix[None] for name, matrix in scores.items()}
    soft = relax(graph, one_pair, sharpness, lambda x: {n: balanced_sinkhorn(m, SCALINGS) for n, m in x.items()}).soft
    return {name: soft[name][0] if name in soft else None for name in graph.groups}
