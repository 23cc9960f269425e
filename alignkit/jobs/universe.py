"""Frank-Wolfe of many models against a common place ([Crisostomi24], section 3).

The sum of ``<P_i # A_i, P_j # A_j>`` over all pairs of models is raised by moving the soft alignments of all models and
groups at the same time. Along a line every softly moved tensor is a polynomial of the step, so the step is exact.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.polynomial import Polynomial
from torch import Tensor

from alignkit.graph.elements.action import act_on_block
from alignkit.graph.elements.alignment import Alignment
from alignkit.graph.symmetry_graph import Pair, SymmetryGraph
from alignkit.matching.families import best_element
from alignkit.matching.relaxation import SAMPLES, Masses, Point, Relaxation, best_step
from alignkit.matching.soft_alignment import SoftAlignment

Tensors = dict[str, Tensor]


def ascend_together(
    graph: SymmetryGraph,
    weights: Sequence[Mapping[str, Tensor]],
    start: Sequence[Alignment],
    device: torch.device | str | None = None,
    *,
    rtol: float = 1e-5,
    max_steps: int = 100,
) -> list[Alignment]:
    """Alignments of all models to a common place.

    Args:
        graph: The graph that the models share; with at least one group.
        weights: Tensors of each model.
        start: Alignments that say which place is which; the ascent begins half-way between them and the centre.
        device: Where products are computed. Default: where the first model's tensors are.
        rtol: Stop when the objective can rise by less than this fraction to first order.
        max_steps: Most steps.

    Returns:
        The rounded alignments, in the order of the models.
    """
    first = next(iter(weights[0].values()))
    place = first.device if device is None else torch.device(device)
    wide = any(tensor.dtype == torch.float64 for tensor in weights[0].values())
    together = _Together(graph, weights, place, torch.float64 if wide else torch.float32)
    points = together.start(start)
    for _ in range(max_steps):
        moved = together.step(points, rtol)
        if moved is None:
            break
        points = moved
    return [Alignment(graph, best_element(graph, point.masses)) for point in points]


class _Together:
    def __init__(
        self,
        graph: SymmetryGraph,
        weights: Sequence[Mapping[str, Tensor]],
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self.graph = graph
        self.models = [Relaxation(Pair(graph, w, w), device, dtype) for w in weights]
        degrees = [term.degree or SAMPLES for term in self.models[0].terms]
        self.degree = max(degrees)
        self.nodes = 0.5 - 0.5 * np.cos(np.pi * np.arange(self.degree + 1) / self.degree)

    def start(self, alignments: Sequence[Alignment]) -> list[Point]:
        """Half-way between alignments and the centre."""
        points = []
        for model, alignment in zip(self.models, alignments, strict=True):
            centre = model.point(SoftAlignment.centre(self.graph))
            points.append(model.between(centre, model.corner(alignment.elements), 0.5))
        return points

    def step(self, points: list[Point], rtol: float) -> list[Point] | None:
        """One step of all models and groups; None when no direction gains."""
        moved = [_moved(model, point.matrices) for model, point in zip(self.models, points, strict=True)]
        total = {name: torch.stack([m[name] for m in moved]).sum(0) for name in moved[0]}
        corners: list[Masses] = []
        elements: list[dict[str, Tensor]] = []
        slope = value = 0.0
        for model, point, own in zip(self.models, points, moved, strict=True):
            gradient = model.facing({name: total[name] - own[name] for name in total}).gradient(point)
            elements.append(best_element(self.graph, gradient.groups))
            corners.append(model.corner(elements[-1]))
            ways = (
                (g * (corners[-1][n] - point.masses[n])).sum(dtype=torch.float64) for n, g in gradient.groups.items()
            )
            slope += float(sum(ways))
            value += gradient.value
        if slope <= rtol * abs(value):
            return None
        step = best_step(self._along(points, corners, elements, moved))
        if step <= 0:
            return None
        return [m.between(p, c, step) for m, p, c in zip(self.models, points, corners, strict=True)]

    def _along(
        self, points: list[Point], corners: list[Masses], elements: list[dict[str, Tensor]], moved: list[Tensors]
    ) -> Polynomial:
        """The sum over pairs of models as a polynomial of the step."""
        samples: list[list[Tensor]] = [[] for _ in self.nodes]
        for at, model in enumerate(self.models):
            for k, node in enumerate(self.nodes):
                if k == 0:
                    tensors = moved[at]
                elif k == len(self.nodes) - 1:
                    tensors = _moved(model, elements[at])
                else:
                    tensors = _moved(model, model.between(points[at], corners[at], float(node)).matrices)
                samples[k].append(torch.cat([tensor.reshape(-1) for tensor in tensors.values()]).double())
        stacked = torch.stack([torch.stack(models) for models in samples])
        summed = stacked.sum(1)
        gram = (summed @ summed.mT - torch.einsum("kme,lme->kl", stacked, stacked)).cpu().numpy() / 2
        bases = [_lagrange(self.nodes, k) for k in range(len(self.nodes))]
        line = Polynomial([0.0])
        for i, left in enumerate(bases):
            for j, right in enumerate(bases):
                line += float(gram[i, j]) * left * right
        return line


def _moved(model: Relaxation, elements: Mapping[str, Tensor]) -> Tensors:
    """The model's tensors on which groups act, moved by matrices or by indices."""
    found = {}
    for name, tensor in model.b.items():
        result = torch.empty_like(tensor)
        for block in model.graph.tensors[name].blocks:
            block.view(result).copy_(act_on_block(block, block.view(tensor), elements))
        found[name] = result
    return found


def _lagrange(nodes: np.ndarray[tuple[int], np.dtype[np.float64]], k: int) -> Polynomial:
    """The polynomial that is 1 at one node and 0 at the others."""
    others = np.delete(nodes, k)
    return Polynomial.fromroots(others) / float(np.prod(nodes[k] - others))
