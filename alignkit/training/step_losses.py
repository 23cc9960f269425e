"""The losses of one training step: pairs are made, scored, relaxed together and judged."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from alignkit.deepalign.aligner import Aligner, AlignerInput
from alignkit.deepalign.consensus import consensus
from alignkit.training.held_out import pair_objective
from alignkit.training.losses import alignment_loss, interpolation_loss, moved_softly, relax, supervised_loss
from alignkit.training.pairs import Pool, seeded
from alignkit.training.settings import TrainingSettings


class Portion:
    """Some of the pairs of one step, made and judged together.

    No dataclass: Fabric would look for tensors to convert in it.

    Args:
        pool: Where pairs come from.
        step: Number of the step.
        numbers: Numbers of the pairs in the step.
        labelled: Whether there are labelled pairs, too.
    """

    def __init__(self, pool: Pool, step: int, numbers: range, labelled: bool) -> None:
        self.pool, self.step, self.numbers, self.labelled = pool, step, numbers, labelled


class StepLosses(nn.Module):
    """Losses of a portion: what Fabric wraps, so that its precision holds for the aligner."""

    def __init__(self, aligner: Aligner, settings: TrainingSettings) -> None:
        super().__init__()
        self.aligner, self.settings = aligner, settings

    def forward(self, portion: Portion) -> dict[str, Tensor]:
        """Mean of each loss over the pairs of one portion."""
        found: dict[str, Tensor] = {}
        settings = self.settings
        if settings.alignment or settings.interpolation:
            found |= self._unlabelled(portion)
        if portion.labelled:
            found["supervised"] = self._labelled(portion)
        return found

    def _agreed(self, pair: AlignerInput, scores: dict[str, Tensor]) -> dict[str, Tensor]:
        """Scores after the rounds of consensus that follow in a solve, gradients included."""
        if not self.settings.rounds:
            return scores
        device = next(iter(scores.values())).device
        with torch.autocast(device.type, enabled=False):
            wide = {group: found.double().cpu() for group, found in scores.items()}
            agreed = consensus(pair_objective(pair), wide, self.settings.rounds)
        return {group: found.to(device, torch.float32) for group, found in agreed.items()}

    def _labelled(self, portion: Portion) -> Tensor:
        pool, settings = portion.pool, self.settings
        made = [
            pool.labelled(
                settings.augmentations, settings.seed, portion.step, i, "labelled", probed=self.aligner.needs_probes
            )
            for i in portion.numbers
        ]
        scores = [self.aligner(pair) for pair, _ in made]
        with torch.autocast(pool.device.type, enabled=False):
            relaxed = relax(pool.graph, scores, self.aligner.log_sharpness, project=False)
            return supervised_loss(relaxed, [answer for _, answer in made])

    def _unlabelled(self, portion: Portion) -> dict[str, Tensor]:
        pool, settings = portion.pool, self.settings
        seeds = [(settings.seed, portion.step, i, "unlabelled") for i in portion.numbers]
        drawn = [pool.unlabelled(*seed, probed=self.aligner.needs_probes) for seed in seeds]
        pairs, lefts = [pair for pair, _ in drawn], [left for _, left in drawn]
        scores = [self._agreed(pair, self.aligner(pair)) for pair in pairs]
        found = {}
        with torch.autocast(pool.device.type, enabled=False):
            relaxed = relax(pool.graph, scores, self.aligner.log_sharpness)
            a, moved = [pair.a for pair in pairs], moved_softly(relaxed, [pair.b for pair in pairs])
            if settings.alignment:
                found["alignment"] = alignment_loss(pool.graph, a, moved)
            if settings.interpolation:
                generators = [seeded(*seed, "task") for seed in seeds]
                places = [float(torch.rand((), generator=generator)) for generator in generators]
                batches = [pool.minibatch(left, one) for left, one in zip(lefts, generators, strict=True)]
                tasks = [pool.task("train", left) for left in lefts]
                found["interpolation"] = interpolation_loss(tasks, pool.graph, a, moved, places, batches)
        return found
