"""How good an aligner is on held-out networks: the barrier after its alignment, beside that of weight matching."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

from alignkit.deepalign.aligner import Aligner, AlignerInput, Schedule
from alignkit.deepalign.consensus import consensus
from alignkit.deepalign.midpoint import meet_in_the_middle
from alignkit.deepalign.stand_ins import domain_inputs
from alignkit.graph import Pair
from alignkit.graph.elements.alignment import Alignment
from alignkit.jobs.mending import Mending
from alignkit.jobs.solve_many import solve_many
from alignkit.matching.families import best_element
from alignkit.matching.objective import Objective
from alignkit.training.pairs import Pool
from alignkit.training.settings import TrainingSettings

FLOOR = 1e-4
"""Added to barriers before their ratio is taken, for sets that weight matching aligns without any barrier. Far below
the barriers that matter."""


class HeldOut:
    """Held-out pairs of every set, with the barriers of weight matching.

    Args:
        pools: The sets.
        settings: How many pairs, and how they are judged.
        probed: Whether the aligner needs probes.

    Attributes:
        references: Mean barrier of each set after weight matching; NaN for a set without held-out pairs.
    """

    def __init__(self, pools: Sequence[Pool], settings: TrainingSettings, *, probed: bool) -> None:
        self.pools, self.settings = pools, settings
        self.pairs = [list(pool.held_out_pairs(settings.validation_pairs, probed=probed)) for pool in pools]
        self.references = self._barriers(match_all)

    def __bool__(self) -> bool:
        return any(self.pairs)

    def measure(self, aligner: Aligner, schedule: Schedule | None = None) -> tuple[float, tuple[float, ...]]:
        """Align every pair as the solver does without data: scores, consensus, midpoint steps if a domain is known.

        Args:
            aligner: The aligner.
            schedule: What follows its scores. None: its own, with the rounds of the settings.

        Returns:
            The mean over sets of the barrier relative to that of weight matching, below 1 is better than it; and the
            mean barrier of each set, NaN for a set without held-out pairs.
        """
        followed = schedule or replace(aligner.schedule, rounds=self.settings.validation_rounds)

        def align(pairs: Sequence[AlignerInput]) -> Iterator[Alignment]:
            for pair in pairs:
                scores = consensus(Objective(on_cpu(pair)), aligner.score(pair), followed)
                if aligner.domain is not None and pair.probing is not None and followed.steps:
                    device = pair.probing.batch.tensors[0].device
                    middle = domain_inputs(aligner.domain, pair.probing.model, device, pair.seed)
                    scores = meet_in_the_middle(middle.task, middle.batches, pair, scores, followed)
                yield Alignment(pair.graph, best_element(pair.graph, scores))

        was_training = aligner.training
        aligner.eval()
        barriers = self._barriers(align)
        aligner.train(was_training)
        both = zip(barriers, self.references, strict=True)
        ratios = [(barrier + FLOOR) / (reference + FLOOR) for barrier, reference in both if not math.isnan(barrier)]
        return _mean(ratios), barriers

    def _barriers(self, align: Callable[[Sequence[AlignerInput]], Iterable[Alignment]]) -> tuple[float, ...]:
        """Measure the mean barrier of each set after an alignment of its pairs, which share a graph.

        Networks between two get running statistics of their own, as merges do.
        """
        means = []
        for pool, pairs in zip(self.pools, self.pairs, strict=True):
            barriers = []
            for (pair, left), alignment in zip(pairs, align([pair for pair, _ in pairs]), strict=True):
                first_names = pair.graph.first_names
                moved = {name: alignment.apply_tensor(name, tensor) for name, tensor in pair.b.items()}
                a, b = ({name: side[first] for name, first in first_names.items()} for side in (pair.a, moved))
                mending = Mending(pool.task("test", left), resets=True, repairs=False)
                barriers.append(mending.line(a, b, self.settings.validation_points).barrier)
            means.append(_mean(barriers))
        return tuple(means)


def match_all(pairs: Sequence[AlignerInput]) -> list[Alignment]:
    """Align pairs of one graph by weight matching."""
    if not pairs:
        return []
    solved = solve_many(pairs[0].graph, [on_cpu(pair) for pair in pairs])
    if solved.interrupted:
        raise KeyboardInterrupt
    return [solution.alignment for solution in solved]


def on_cpu(pair: AlignerInput) -> Pair:
    """Bind the weights of a pair to its graph, on the CPU."""
    a, b = ({name: tensor.cpu() for name, tensor in side.items()} for side in (pair.a, pair.b))
    return Pair(pair.graph, a, b)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else float("nan")
