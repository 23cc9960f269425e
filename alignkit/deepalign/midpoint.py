"""Midpoint steps: scores moved until the network halfway between two does on data what the two do on average.

Similarities judge each unit by itself. What a merge is judged by is the function in the middle, and its outputs tell,
without labels, which pairs of units to bring together. [Pena23] descends on the loss of the task in the same way, from
a start and for hundreds of steps; here a few steps on the outputs alone follow scores that are nearly right.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from alignkit.alignment import Alignment
from alignkit.batches import tensors_in
from alignkit.deepalign.aligner import Probing
from alignkit.deepalign.consensus import SHARPNESS, Scores, assign
from alignkit.deepalign.losses import relax
from alignkit.deepalign.probes import standardised
from alignkit.graph.permutation_graph import PermutationGraph
from alignkit.soft import ProjectedAlignment
from alignkit.task import call_with

STEPS, RATE = 8, 0.1
"""Steps and their length in standard deviations of the scores, fixed on networks of the training sets of the universal
encoder (`tests/benchmarks/paper/data.py`)."""
ALIKE = 1e-4
"""Deviation of the middle, as a share of the variance of outputs, below which nothing is left to mend."""

Weights = Mapping[str, Tensor]


def meet_in_the_middle(
    graph: PermutationGraph,
    probing: Probing,
    a: Weights,
    b: Weights,
    scores: Scores,
    *,
    steps: int = STEPS,
    rate: float = RATE,
    sharpness: float = SHARPNESS,
) -> dict[str, Tensor]:
    """Scores after some steps against the gradient of the deviation in the middle.

    Steps count only if they pay after assignment: else, and where the networks already agree in the middle, scores stay
    as they are. Units may come in any order. Swapping A and B transposes the result only as far as soft alignments are
    hard; the mean of both ways takes twice the time and was no better.

    Args:
        graph: The graph.
        probing: Runs the networks. Its inputs should be data: on noise the middle learns what nobody asks for.
        a: Weights of A, in the form that the model takes.
        b: Weights of B.
        scores: Standardised scores, float64.
        steps: How many steps.
        rate: Length of the first step, in standard deviations of the scores; later ones are as much shorter as their
            gradients.
        sharpness: Factor of scores before Sinkhorn.
    """
    middle = _Middle(graph, probing, a, b, sharpness)
    before = middle.deviation_of(scores)
    if before < ALIKE:
        return dict(scores)
    current, lengths = dict(scores), dict[str, Tensor]()
    for _ in range(steps):
        slopes = middle.slopes(current)
        for group, slope in slopes.items():
            length = lengths.setdefault(group, slope.square().mean().sqrt())
            if length > 0:
                current[group] = standardised(current[group] - rate * slope / length)
    return current if middle.deviation_of(current) < before else dict(scores)


class _Middle:
    """The network halfway between two, as scores move it."""

    def __init__(self, graph: PermutationGraph, probing: Probing, a: Weights, b: Weights, sharpness: float) -> None:
        self.graph, self.probing = graph, probing
        self.sides = (a, b)
        self.device = next(iter(a.values())).device
        self.log_sharpness = torch.tensor(math.log(sharpness), device=self.device)
        self.first = {name: node.name for node in graph.tensors.values() for name in node.names}
        self.parameters = {name for name, _ in probing.model.named_parameters(remove_duplicate=False)}
        with torch.no_grad():
            left, right = (self._outputs(side) for side in self.sides)
        self.target = [torch.lerp(one, other, 0.5) for one, other in zip(left, right, strict=True)]

    def deviation_of(self, scores: Scores) -> float:
        """Deviation of the outputs in the middle once units are assigned."""
        alignment = Alignment(self.graph, assign(self.graph, scores))
        with torch.no_grad():
            return float(self._deviation(lambda name, tensor: alignment.apply_tensor(name, tensor)))

    def slopes(self, scores: Scores) -> dict[str, Tensor]:
        """Gradient of the deviation between A and softly aligned B with respect to the scores."""
        with torch.enable_grad():
            live = {group: matrix.detach().requires_grad_() for group, matrix in scores.items()}
            on_device = {group: matrix.to(self.device) for group, matrix in live.items()}
            relaxed = relax(self.graph, [on_device], self.log_sharpness).soft
            soft = {group: matrix[0] for group, matrix in relaxed.items()}
            total = self._deviation(lambda n, t: ProjectedAlignment(self.graph, soft, t.dtype).apply_tensor(n, t))
            slopes = torch.autograd.grad(total, list(live.values()), allow_unused=True)
        return {group: slope for group, slope in zip(live, slopes, strict=True) if slope is not None}

    def _deviation(self, moved: Callable[[str, Tensor], Tensor]) -> Tensor:
        """Deviation of the outputs between A and B whose tensors are moved, by their first names."""
        a, b = self.sides
        middle: dict[str, Tensor] = {}
        weights = {}
        for name, tensor in a.items():
            if tensor.is_floating_point() and name in self.first:
                first = self.first[name]
                if first not in middle:
                    middle[first] = torch.lerp(moved(first, b[name]), tensor, 0.5)
                tensor = middle[first]
            # Gradients go through parameters only: batch_norm has none for its running statistics.
            weights[name] = tensor if name in self.parameters else tensor.detach()
        parts = [_deviation(found, wanted) for found, wanted in zip(self._outputs(weights), self.target, strict=True)]
        return torch.stack(parts).mean()

    def _outputs(self, weights: Weights) -> list[Tensor]:
        outputs = call_with(self.probing.model, weights, self.probing.batch.inputs)
        return [tensor for tensor in tensors_in(outputs) if tensor.is_floating_point()]


def _deviation(found: Tensor, wanted: Tensor) -> Tensor:
    """Mean squared deviation as a share of the variance of what is wanted, in float64."""
    wanted = wanted.double()
    spread = (wanted - wanted.mean(0)).square().mean().clamp(min=torch.finfo(torch.float32).tiny)
    return (found.double() - wanted).square().mean() / spread
