"""Midpoint steps: scores moved until the network halfway between two does on data what the two do on average.

Similarities judge each unit by itself. What a merge is judged by is the function in the middle, and its outputs tell,
without labels, which pairs of units to bring together. [Pena23] descends on the loss of the task in the same way, from
a start and for hundreds of steps; here a few steps on the outputs alone follow scores that are nearly right.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from alignkit.deepalign.consensus import SHARPNESS
from alignkit.deepalign.relaxation import relax
from alignkit.deepalign.scores import Scores, standardise
from alignkit.errors import SolverError
from alignkit.graph import SymmetryGraph
from alignkit.graph.elements.alignment import Alignment
from alignkit.matching.families import best_element
from alignkit.tasks.batches import Batch, tensors_in
from alignkit.tasks.line import Line
from alignkit.tasks.task import Task, cross_entropy

STEPS, RATE, SAMPLES = 8, 0.06, 512
"""Steps, their length in standard deviations of the scores, and inputs that they see; fixed on networks of the training
sets of the universal encoder (`tests/benchmarks/paper/data.py`)."""
ALIKE = 1e-6
"""Deviation of the middle below which nothing is left to mend: rounding of float32 outputs."""

Weights = Mapping[str, Tensor]


def meet_in_the_middle(
    graph: SymmetryGraph,
    task: Task,
    batches: Sequence[Batch],
    a: Weights,
    b: Weights,
    scores: Scores,
    *,
    steps: int = STEPS,
    rate: float = RATE,
    sharpness: float = SHARPNESS,
) -> dict[str, Tensor]:
    """Move scores against the gradient of the deviation in the middle, and return the new ones.

    Steps count only if they pay after assignment: else, and where the networks already agree in the middle, scores stay
    as they are. Units may come in any order. Swapping A and B transposes the result only as far as soft alignments are
    hard; the mean of both ways takes twice the time and was no better.

    Args:
        graph: The graph.
        task: Runs the networks. Its loss tells what outputs are: logits, or numbers.
        batches: The inputs, on the task's device; targets are not used. They should be data: on noise the middle learns
            what nobody asks for.
        a: Weights of A, in the form that the model takes.
        b: Weights of B.
        scores: Standardised scores, float64.
        steps: How many steps.
        rate: Length of the first step, in standard deviations of the scores; later ones are as much shorter as their
            gradients.
        sharpness: Factor of scores before Sinkhorn.

    Raises:
        SolverError: The model returns no floating-point tensor.
    """
    middle = _Middle(graph, task, batches, a, b, sharpness)
    before = middle.deviation_of(scores)
    if before < ALIKE:
        return dict(scores)
    current, first_lengths = dict(scores), dict[str, Tensor]()
    for _ in range(steps):
        for group, slope in middle.slopes(current).items():
            length = first_lengths.setdefault(group, slope.square().mean().sqrt())
            if length > 0:
                current[group] = standardise(current[group] - rate * slope / length)
    return current if middle.deviation_of(current) < before else dict(scores)


class _Middle:
    """The network halfway between two, as scores move it."""

    def __init__(
        self, graph: SymmetryGraph, task: Task, batches: Sequence[Batch], a: Weights, b: Weights, sharpness: float
    ) -> None:
        self.graph, self.task, self.a, self.b, self.sharpness = graph, task, a, b, sharpness
        self.samples = sum(batch.size for batch in batches)
        self.deviations: list[tuple[Batch, Callable[[Any], Tensor]]] = []
        with torch.no_grad():
            for batch in batches:
                ends = [task.outputs(side, batch.inputs) for side in (a, b)]
                self.deviations.append((batch, _deviation_from(*ends, is_logits=task.loss is cross_entropy)))

    def deviation_of(self, scores: Scores) -> float:
        """Measure the deviation of the outputs in the middle once units are assigned."""
        alignment = Alignment(self.graph, best_element(self.graph, scores))
        with torch.no_grad():
            weights = self._weights(alignment.apply_tensor)
            return sum(float(self._part(at, weights)) for at in range(len(self.deviations)))

    def slopes(self, scores: Scores) -> dict[str, Tensor]:
        """Compute the gradient of the deviation between A and softly aligned B with respect to the scores.

        Batches are run one after the other, down to the weights in the middle: memory is that of one of them.
        """
        with torch.enable_grad():
            live = {group: matrix.detach().to(self.task.device).requires_grad_() for group, matrix in scores.items()}
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
            for at in range(len(self.deviations)):
                gradients = torch.autograd.grad(self._part(at, leaves), list(ends.values()), allow_unused=True)
                for total, gradient in zip(pulled, gradients, strict=True):
                    if gradient is not None:
                        total += gradient
            slopes = torch.autograd.grad(moving, list(live.values()), pulled, allow_unused=True)
        return {g: slope.to(scores[g].device) for g, slope in zip(live, slopes, strict=True) if slope is not None}

    def _weights(self, move: Callable[[str, Tensor], Tensor]) -> dict[str, Tensor]:
        """Compute the mean of A and of B whose tensors are moved, under every name."""
        a = {name: self.a[name] for name in self.graph.tensors}
        moved = {name: move(name, self.b[name]) if t.is_floating_point() else t for name, t in a.items()}
        middle = Line(a, moved).at(0.5)
        return {**self.a, **{name: middle[first] for name, first in self.graph.first_names.items()}}

    def _part(self, at: int, weights: Weights) -> Tensor:
        """Compute one batch's share of the mean deviation over all samples."""
        batch, deviation = self.deviations[at]
        return batch.size / self.samples * deviation(self.task.outputs(weights, batch.inputs))


def _deviation_from(left: Any, right: Any, *, is_logits: bool) -> Callable[[Any], Tensor]:
    """Return a function that says how far outputs are from the mean of those of two networks, in float64.

    For logits the Kullback-Leibler divergence of probabilities, in nats a sample or token; for other outputs the mean
    squared deviation as a share of the variance of what is wanted.
    """
    (a, axis), (b, _) = _main_output(left, is_logits), _main_output(right, is_logits)
    if axis is not None:
        wanted = torch.lerp(a.double().softmax(axis), b.double().softmax(axis), 0.5)
        entropy = torch.special.entr(wanted).sum(axis).mean()
        return lambda outputs: (
            -(wanted * _main_output(outputs, is_logits)[0].double().log_softmax(axis)).sum(axis).mean() - entropy
        )
    mean = torch.lerp(a.double(), b.double(), 0.5)
    spread = (mean - mean.mean(0)).square().mean().clamp(min=torch.finfo(torch.float32).tiny)
    return lambda outputs: (_main_output(outputs, is_logits)[0].double() - mean).square().mean() / spread


def _main_output(outputs: Any, is_logits: bool) -> tuple[Tensor, int | None]:
    """Pick what a network is for among all that it returns, and the axis of classes if it is logits.

    Other outputs, such as hidden states and caches, may be in the order of units: their mean means nothing.
    """
    if isinstance(outputs, Mapping) and isinstance(outputs.get("logits"), Tensor):
        return outputs["logits"], -1
    first = next((tensor for tensor in tensors_in(outputs) if tensor.is_floating_point()), None)
    if first is None:
        raise SolverError(
            f"midpoint steps compare outputs, and the model returns {type(outputs).__name__} without any."
        )
    return first, 1 if is_logits and first.ndim > 1 else None
