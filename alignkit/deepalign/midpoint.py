"""Midpoint steps: scores moved until the network halfway between two does on data what the two do on average.

Similarities judge each unit by itself. What a merge is judged by is the function in the middle, and its outputs tell,
without labels, which pairs of units to bring together. [Pena23] descends on the loss of the task in the same way, from
a start and for hundreds of steps; here a few steps on the outputs alone follow scores that are nearly right.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache

import torch
from torch import Tensor

from alignkit.deepalign.aligner import USUAL, AlignerInput, Schedule
from alignkit.deepalign.relaxation import relax
from alignkit.deepalign.scores import Scores, comparable
from alignkit.graph.elements.alignment import Alignment
from alignkit.matching.families import best_element
from alignkit.tasks.batches import Batch
from alignkit.tasks.goals import by_outputs
from alignkit.tasks.line import Line
from alignkit.tasks.merged_runs import merged_runs
from alignkit.tasks.task import Task

SAMPLES = 512
"""Inputs that steps see; fixed on networks of the training sets of the universal encoder
(`tests/benchmarks/paper/data.py`), as those of `Schedule`."""
ALIKE = 1e-6
"""Deviation of the middle below which nothing is left to mend: rounding of float32 outputs."""


def meet_in_the_middle(
    task: Task, batches: Sequence[Batch], pair: AlignerInput, scores: Scores, schedule: Schedule = USUAL
) -> dict[str, Tensor]:
    """Move scores against the gradient of the deviation in the middle, and return the new ones.

    Steps count only if they pay after assignment: else, and where the networks already agree in the middle, scores stay
    as they are. Units may come in any order. Swapping A and B transposes the result only as far as soft alignments are
    hard; the mean of both ways takes twice the time and was no better. BatchNorm takes the statistics of each batch
    (`alignkit.tasks.goals.by_outputs`).

    Args:
        task: Runs the networks. Its loss tells what outputs are: logits, or numbers.
        batches: The inputs, on the task's device; targets are not used. They should be data, or what networks take for
            data (`alignkit.deepalign.stand_ins`): on plain noise the middle learns what nobody asks for.
        pair: The networks, their weights in the form that the model takes.
        scores: Standardised scores, float64.
        schedule: How many steps, and how long the first is; later ones are as much shorter as their gradients.

    Raises:
        TaskError: The model returns no floating-point tensor.
    """
    middle = _Middle(task, batches, pair, schedule.sharpness)
    before = middle.deviation_of(scores)
    if before < ALIKE:
        return dict(scores)
    current, first_lengths = {group: matrix.to(task.device) for group, matrix in scores.items()}, dict[str, Tensor]()
    for _ in range(schedule.steps):
        for group, slope in middle.slopes(current).items():
            length = first_lengths.setdefault(group, slope.square().mean().sqrt())
            moved = comparable(pair.graph.groups[group].kind, current[group] - schedule.rate * slope / length)
            current[group] = torch.where(length > 0, moved, current[group])
    return current if middle.deviation_of(current) < before else dict(scores)


class _Middle:
    """The network halfway between two, as scores move it."""

    def __init__(self, task: Task, batches: Sequence[Batch], pair: AlignerInput, sharpness: float) -> None:
        self.pair, self.graph, self.sharpness = pair, pair.graph, sharpness
        samples = sum(batch.size for batch in batches)
        runs = merged_runs(task)
        self.parts = [(batch.size / samples, by_outputs(runs, pair.a, pair.b, batch)) for batch in batches]
        """The share of each batch in the mean deviation, and its deviation by the weights in the middle."""

    def deviation_of(self, scores: Scores) -> float:
        """Measure the deviation of the outputs in the middle once units are assigned."""
        alignment = Alignment(self.graph, best_element(self.graph, scores))
        with torch.no_grad():
            weights = self._weights(alignment.apply_tensor)
            return sum(share * float(deviation(0.5, weights)) for share, deviation in self.parts)

    def slopes(self, scores: Scores) -> dict[str, Tensor]:
        """Compute the gradient of the deviation between A and softly aligned B with respect to the scores.

        Batches are run one after the other, down to the weights in the middle: memory is that of one of them.
        """
        with torch.enable_grad():
            live = {group: matrix.detach().requires_grad_() for group, matrix in scores.items()}
            soft = relax(self.graph, {group: matrix[None] for group, matrix in live.items()}, self.sharpness)
            in_dtype = cache(lambda dtype: soft.alignment(0, dtype))
            weights = self._weights(lambda name, tensor: in_dtype(tensor.dtype).apply_tensor(name, tensor))
            # Tied tensors are one tensor under several names, and one leaf of every batch's gradient.
            moving = list({id(tensor): tensor for tensor in weights.values() if tensor.requires_grad}.values())
            if not moving:
                return {}
            ends = {id(tensor): tensor.detach().requires_grad_() for tensor in moving}
            leaves = {name: ends.get(id(tensor), tensor) for name, tensor in weights.items()}
            pulled = [torch.zeros_like(tensor) for tensor in moving]
            for share, deviation in self.parts:
                gradients = torch.autograd.grad(share * deviation(0.5, leaves), list(ends.values()), allow_unused=True)
                for total, gradient in zip(pulled, gradients, strict=True):
                    if gradient is not None:
                        total += gradient
            slopes = torch.autograd.grad(moving, list(live.values()), pulled, allow_unused=True)
        return {group: slope for group, slope in zip(live, slopes, strict=True) if slope is not None}

    def _weights(self, move: Callable[[str, Tensor], Tensor]) -> dict[str, Tensor]:
        """Compute the mean of A and of B whose tensors are moved, under every name."""
        a = {name: self.pair.a[name] for name in self.graph.tensors}
        moved = {name: move(name, self.pair.b[name]) if t.is_floating_point() else t for name, t in a.items()}
        middle = Line(a, moved).at(0.5)
        return {**self.pair.a, **{name: middle[first] for name, first in self.graph.first_names.items()}}
