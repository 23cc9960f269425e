"""What an aligner is trained on ([Navon24], section 4.3): labels, distance, and loss on the line between networks.

`StepLosses` makes the pairs of a training step, scores them, relaxes them together and judges them by these losses.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from alignkit.deepalign.aligner import USUAL, Aligner, AlignerInput
from alignkit.deepalign.consensus import consensus
from alignkit.deepalign.relaxation import Relaxed, relax
from alignkit.graph import SymmetryGraph
from alignkit.graph.bind import StateDict
from alignkit.graph.elements.alignment import Alignment
from alignkit.matching.objective import Objective
from alignkit.tasks.batches import Batch
from alignkit.tasks.line import Line
from alignkit.tasks.merged_runs import Runs, merged_runs
from alignkit.training.held_out import on_cpu
from alignkit.training.pairs import Pool, seeded
from alignkit.training.settings import TrainingSettings


def supervised_loss(relaxed: Relaxed, answers: Sequence[Alignment]) -> Float[Tensor, ""]:
    """Compute the cross-entropy of rows and of columns of the logits against known alignments; mean over groups, pairs.

    A family is judged where its parents are: the units of a parent of A against those of the parent of B that belongs
    there. [Navon24], L_supervised.

    Args:
        relaxed: Logits of ``k`` pairs.
        answers: The alignment of B to A of each of them.
    """
    losses = []
    for name, logits in relaxed.logits.items():
        group, device = relaxed.graph.groups[name], logits.device
        size, parent = group.size, group.parent
        target = torch.stack([answer.elements[name].reshape(-1, size) for answer in answers]).to(device)
        if parent is not None:
            sources = torch.stack([answer.flat(parent) for answer in answers]).to(device)
            count = sources.shape[1]
            pairs = torch.arange(len(answers), device=device)[:, None]
            logits = logits[pairs, torch.arange(count, device=device), sources]
        logits, target = logits.reshape(-1, size, size), target.reshape(-1, size)
        rows = cross_entropy(logits.mT, target)  # classes are on axis 1: the columns of each row
        columns = cross_entropy(logits, target.argsort(-1))
        losses.append((rows + columns) / 2)
    return torch.stack(losses).mean()


def move_softly(relaxed: Relaxed, b: Sequence[StateDict]) -> list[dict[str, Tensor]]:
    """Compute ``F # B`` of each pair: every floating-point tensor that a group acts on is moved; differentiable."""
    moved = []
    for at, weights in enumerate(b):
        soft = relaxed.alignment(at)
        moved.append({n: soft.apply_tensor(n, t) if t.is_floating_point() else t for n, t in weights.items()})
    return moved


def alignment_loss(graph: SymmetryGraph, a: Sequence[StateDict], moved: Sequence[StateDict]) -> Float[Tensor, ""]:
    """Compute ``|| A - F # B ||^2 / (2 |A|^2)`` over the tensors that groups act on; mean over pairs.

    0 for networks that are permutations of each other and aligned; about 1 for unrelated ones that a permutation
    aligns at random. [Navon24], L_alignment.

    Args:
        graph: The graph.
        a: StateDict of A of each pair, by the first name of each tensor.
        moved: What `move_softly` returns.
    """
    losses = []
    for left, right in zip(a, moved, strict=True):
        names = [n for n, node in graph.tensors.items() if node.groups and left[n].is_floating_point()]
        distance = torch.stack([(left[n] - right[n]).square().sum() for n in names]).sum()
        size = torch.stack([left[n].detach().square().sum() for n in names]).sum()
        losses.append(distance / (2 * size).clamp_min(torch.finfo(size.dtype).tiny))
    return torch.stack(losses).mean()


def interpolation_loss(
    runs: Sequence[Runs],
    graph: SymmetryGraph,
    a: Sequence[StateDict],
    moved: Sequence[StateDict],
    lambdas: Sequence[float],
    batches: Sequence[Batch],
) -> Float[Tensor, ""]:
    """Compute the loss of the task at ``(1 - lambda) A + lambda F # B``; mean over pairs. [Navon24], L_LMC.

    Args:
        runs: For each pair, what runs the networks on the line and measures the loss.
        graph: The graph.
        a: StateDict of A of each pair, by the first name of each tensor.
        moved: What `move_softly` returns.
        lambdas: Where on the line each pair is measured.
        batches: Samples for each pair, on the task's device.
    """
    losses = []
    for run, left, right, share, batch in zip(runs, a, moved, lambdas, batches, strict=True):
        weights = Line(left, right).at(share)
        named = {name: weights[first] for name, first in graph.first_names.items()}
        losses.append(run(share, batch).loss_on(named, batch))
    return torch.stack(losses).mean()


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
                    runs = [merged_runs(pool.task("train", left)) for left in lefts]
                    losses["interpolation"] = interpolation_loss(runs, graph, a, moved, lambdas, batches)
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
            agreed = consensus(Objective(on_cpu(pair)), wide, replace(USUAL, rounds=self.settings.rounds))
        return {group: matrix.to(device, torch.float32) for group, matrix in agreed.items()}
