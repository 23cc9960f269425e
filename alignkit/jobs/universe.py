"""Frank-Wolfe of many models against a common place ([Crisostomi24], section 3).

The sum of ``<P_i # A_i, P_j # A_j>`` over all pairs of models is raised by moving the soft alignments of all models and
groups at the same time. Along a line every softly moved tensor is a polynomial of the step, so the step is exact.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import chain, product

import numpy as np
import torch
from jaxtyping import Float
from numpy.polynomial import Polynomial
from torch import Tensor

from alignkit.arguments import usable_device
from alignkit.checkpoints.fit import is_number
from alignkit.graph.elements.action import act_on_blocks
from alignkit.graph.elements.alignment import Alignment
from alignkit.graph.symmetry_graph import Pair, SymmetryGraph
from alignkit.matching.families import best_element
from alignkit.matching.objective import divided, power_of_two
from alignkit.matching.relaxation import SAMPLES, Masses, Relaxation, best_step
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
    """Return rounded alignments of all models to a common order of units, in the order of the models.

    It begins half-way between ``start`` and the centre, and stops when the objective can rise by less than the fraction
    ``rtol`` to first order. The graph has at least one group; products are computed where the first model is, or on
    ``device``.
    """
    first = next(iter(weights[0].values()))
    where = first.device if device is None else usable_device(device)
    wide = any(tensor.dtype == torch.float64 for tensor in weights[0].values())
    dtype = torch.float64 if wide else torch.float32
    largest = max((float(t.double().square().sum()) for w in weights for t in w.values() if is_number(t)), default=0.0)
    if not largest:  # no order of units is better than another
        return list(start)
    scale = power_of_two(largest)
    networks = [
        {n: divided(w[n].to(where), scale, dtype) if is_number(w[n]) else w[n] for n in graph.tensors} for w in weights
    ]
    models = [Relaxation(Pair(graph, network, network), where, dtype) for network in networks]
    degree = max(term.degree or SAMPLES for term in models[0].terms)
    nodes = 0.5 - 0.5 * np.cos(np.pi * np.arange(degree + 1) / degree)
    centre = SoftAlignment.centre(graph)
    points = [
        model.between(model.point(centre), model.corner(alignment.elements), 0.5)
        for model, alignment in zip(models, start, strict=True)
    ]
    for _ in range(max_steps):
        moved = [_move(model, point.matrices) for model, point in zip(models, points, strict=True)]
        total = {name: torch.stack([m[name] for m in moved]).sum(0) for name in moved[0]}
        corners: list[Masses] = []
        ends: list[Tensors] = []
        slope = value = 0.0
        for model, point, own in zip(models, points, moved, strict=True):
            gradient = model.facing({name: total[name] - own[name] for name in total}).gradient(point)
            elements = best_element(graph, gradient.groups)
            corner = model.corner(elements)
            corners.append(corner)
            ends.append(_move(model, elements))
            ways = ((g * (corner[n] - point.masses[n])).sum(dtype=torch.float64) for n, g in gradient.groups.items())
            slope += float(sum(ways))
            value += gradient.value
        if slope <= rtol * abs(value):
            break
        samples = (
            [_move(m, m.between(p, c, float(node)).matrices) for m, p, c in zip(models, points, corners, strict=True)]
            for node in nodes[1:-1]
        )
        step = best_step(_objective_on_line(nodes, chain([moved], samples, [ends])))
        if step <= 0:
            break
        points = [m.between(p, c, step) for m, p, c in zip(models, points, corners, strict=True)]
    return [Alignment(graph, best_element(graph, point.masses)) for point in points]


def _objective_on_line(nodes: Float[np.ndarray, " nodes"], samples: Iterable[Sequence[Tensors]]) -> Polynomial:
    """Return the sum over pairs of models as a polynomial of the step, from moved tensors of all models at nodes."""
    flat = [[torch.cat([t.reshape(-1) for t in own.values()]).double() for own in models] for models in samples]
    stacked = torch.stack([torch.stack(models) for models in flat])
    summed = stacked.sum(1)
    gram = (summed @ summed.mT - torch.einsum("kme,lme->kl", stacked, stacked)).cpu().numpy() / 2
    bases = []  # of Lagrange: 1 at one node and 0 at the others
    for k, node in enumerate(nodes):
        others = np.delete(nodes, k)
        bases.append(Polynomial.fromroots(others) / float(np.prod(node - others)))
    pairs = product(range(len(bases)), repeat=2)
    return sum((float(gram[i, j]) * bases[i] * bases[j] for i, j in pairs), Polynomial([0.0]))


def _move(model: Relaxation, elements: Mapping[str, Tensor]) -> Tensors:
    """Move the model's tensors on which groups act by matrices or by indices."""
    network, tensors = model.bound.b, model.graph.tensors
    moved = dict.fromkeys(term.tensor for term in model.terms)
    return {name: act_on_blocks(tensors[name].blocks, network[name], elements) for name in moved}
