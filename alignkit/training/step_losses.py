"""The losses of one training step: pairs are made, scored, relaxed together and judged."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from alignkit.deepalign.aligner import Aligner, AlignerInput
from alignkit.deepalign.consensus import consensus
from alignkit.deepalign.relaxation import Relaxed, relax
from alignkit.matching.objective import Objective
from alignkit.training.held_out import on_cpu
from alignkit.training.losses import alignment_loss, interpolation_loss, move_softly, supervised_loss
from alignkit.training.pairs import Pool, seeded
from alignkit.training.settings import TrainingSettings


class StepLosses(nn.Module):
    """Losses of some of the pairs of a step: what Fabric wraps, so that its precision holds for the aligner."""

    def __init__(self, aligner: Aligner, settings: TrainingSettings) -> None:
        super().__init__()
        self.aligner, self.settings = aligner, settings

    def forward(self, pool: Pool, step: int, numbers: tuple[int, ...], labelled: bool) -> dict[str, Tensor]:
        """Compute the mean of each loss over some pairs of a step.

        Args:
            pool: Where pairs come from.
            step: Number of the step.
            numbers: Numbers of the pairs in the step.
            labelled: Whether there are labelled pairs, too.
        """
        settings, graph, probed = self.settings, pool.graph, self.aligner.needs_probes
        losses: dict[str, Tensor] = {}
        if settings.alignment or settings.interpolation:
            seeds = [(settings.seed, step, i, "unlabelled") for i in numbers]
            pairs, lefts = zip(*(pool.unlabelled(*seed, probed=probed) for seed in seeds), strict=True)
            scores = [self._agree(pair) for pair in pairs]
            with torch.autocast(pool.device.type, enabled=False):
                a, moved = (
                    [pair.a for pair in pairs],
                    move_softly(self._relax(pool, scores), [pair.b for pair in pairs]),
                )
                if settings.alignment:
                    losses["alignment"] = alignment_loss(graph, a, moved)
                if settings.interpolation:
                    generators = [seeded(*seed, "task") for seed in seeds]
                    lambdas = [1 - float(torch.rand((), generator=generator)) for generator in generators]
                    batches = [pool.minibatch(left, one) for left, one in zip(lefts, generators, strict=True)]
                    tasks = [pool.task("train", left) for left in lefts]
                    losses["interpolation"] = interpolation_loss(tasks, graph, a, moved, lambdas, batches)
        if labelled:
            seeds = [(settings.seed, step, i, "labelled") for i in numbers]
            pairs, answers = zip(*(pool.labelled(*seed, probed=probed) for seed in seeds), strict=True)
            scores = [self.aligner(pair) for pair in pairs]
            with torch.autocast(pool.device.type, enabled=False):
                losses["supervised"] = supervised_loss(self._relax(pool, scores), answers)
        return losses

    def _relax(self, pool: Pool, scores: list[dict[str, Tensor]]) -> Relaxed:
        """Make the soft alignments of all pairs together, in float32."""
        stacked = {name: torch.stack([one[name].float() for one in scores]) for name in scores[0]}
        return relax(pool.graph, stacked, self.aligner.log_sharpness.exp())

    def _agree(self, pair: AlignerInput) -> dict[str, Tensor]:
        """Score a pair and run the rounds of consensus that follow in a solve, gradients included."""
        scores = self.aligner(pair)
        if not self.settings.rounds:
            return dict(scores)
        device = next(iter(scores.values())).device
        with torch.autocast(device.type, enabled=False):
            wide = {group: matrix.double().cpu() for group, matrix in scores.items()}
            agreed = consensus(Objective(on_cpu(pair)), wide, self.settings.rounds)
        return {group: matrix.to(device, torch.float32) for group, matrix in agreed.items()}
