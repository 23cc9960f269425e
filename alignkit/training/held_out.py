"""How good an aligner is on held-out networks: the barrier after its alignment, beside that of weight matching."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from alignkit.deepalign.aligner import Aligner, AlignerInput
from alignkit.deepalign.consensus import consensus
from alignkit.graph import Pair
from alignkit.graph.elements.alignment import Alignment
from alignkit.jobs.solve import solve
from alignkit.matching.families import best_element
from alignkit.matching.objective import Objective
from alignkit.tasks.interpolation import interpolate
from alignkit.training.pairs import Pool
from alignkit.training.settings import TrainingSettings

FLOOR = 1e-4
"""Added to barriers before their ratio is taken, for sets that weight matching aligns without any barrier. Far below
the barriers that matter."""


@dataclass(frozen=True)
class HeldOutResult:
    """Barriers on held-out pairs.

    Attributes:
        barriers: Mean barrier of each set; NaN for a set without held-out pairs.
        score: Mean over sets of the barrier relative to that of weight matching; below 1 is better than it.
    """

    barriers: tuple[float, ...]
    score: float


class HeldOut:
    """Held-out pairs of every set, with the barriers of weight matching.

    Args:
        pools: The sets.
        settings: How many pairs, and how they are judged.
        probed: Whether the aligner needs probes.
    """

    def __init__(self, pools: Sequence[Pool], settings: TrainingSettings, *, probed: bool) -> None:
        self.pools, self.settings = pools, settings
        self.pairs = [list(pool.held_out_pairs(settings.validation_pairs, probed=probed)) for pool in pools]
        self.references = [
            _mean([self._barrier(pool, pair, left, solve(_bind(pair)).alignment) for pair, left in pairs])
            for pool, pairs in zip(pools, self.pairs, strict=True)
        ]

    def __bool__(self) -> bool:
        return any(self.pairs)

    def measure(self, aligner: Aligner) -> HeldOutResult:
        """Align every pair as the solver does and measure its barrier."""
        was_training = aligner.training
        aligner.eval()
        rounds = self.settings.validation_rounds
        barriers = [
            _mean([self._barrier(pool, pair, left, align(aligner, pair, rounds)) for pair, left in pairs])
            for pool, pairs in zip(self.pools, self.pairs, strict=True)
        ]
        aligner.train(was_training)
        ratios = [
            (barrier + FLOOR) / (reference + FLOOR)
            for barrier, reference in zip(barriers, self.references, strict=True)
            if barrier == barrier  # not NaN
        ]
        return HeldOutResult(tuple(barriers), _mean(ratios))

    def _barrier(self, pool: Pool, pair: AlignerInput, left: int, alignment: Alignment) -> float:
        moved = {name: alignment.apply_tensor(name, tensor) for name, tensor in pair.b.items()}
        first_names = pair.graph.first_names
        a, b = ({name: side[first] for name, first in first_names.items()} for side in (pair.a, moved))
        return interpolate(pool.task("test", left), a, b, points=self.settings.validation_points).barrier


def align(aligner: Aligner, pair: AlignerInput, rounds: int) -> Alignment:
    """Align B to A by an aligner: scores, rounds of consensus, assignment."""
    with torch.no_grad():
        scores = {name: matrix.detach().cpu().double() for name, matrix in aligner(pair).items()}
    if rounds:
        scores = consensus(pair_objective(pair), scores, rounds)
    return Alignment(pair.graph, best_element(pair.graph, scores))


def pair_objective(pair: AlignerInput) -> Objective:
    """Make the weight-matching objective of a pair, in float64 on the CPU."""
    return Objective(_bind(pair))


def _bind(pair: AlignerInput) -> Pair:
    a, b = ({name: tensor.cpu() for name, tensor in side.items()} for side in (pair.a, pair.b))
    return Pair(pair.graph, a, b)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else float("nan")
