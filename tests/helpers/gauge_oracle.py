"""The exact oracle of completeness: how many directions in the space of weights leave a network's outputs as they are.

At generic weights the nullity of the Jacobian of the outputs by the weights is the dimension of the group of all
continuous symmetries. A trace is complete where its rotations, folds and balances have as many dimensions.
"""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev

from alignkit.graph import SymmetryGraph
from alignkit.graph.rewrites import Balance, Fold, Gain, Mean, OutputScale, Phase, Shift, Through, Zero

RANK = 1e-10
"""Singular values below this share of the largest are rounding: those of null directions are near 1e-16, others were
seen down to 1e-7."""


def nullity(model: nn.Module, x: Tensor) -> int:
    """Return the number of directions of the parameters that leave the outputs on a batch as they are."""
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    sizes = [p.numel() for p in parameters.values()]

    def outputs(flat: Tensor) -> Tensor:
        parts = dict(zip(parameters, flat.split(sizes), strict=True))
        return functional_call(model, {n: parts[n].view_as(p) for n, p in parameters.items()}, (x,)).flatten()

    flat = torch.cat([p.flatten() for p in parameters.values()])
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        jacobian = jacrev(outputs, chunk_size=256)(flat)
    assert len(jacobian) > len(flat), "more inputs are needed"
    values = torch.linalg.svdvals(jacobian)
    return int((values < RANK * values[0]).sum())


def found(graph: SymmetryGraph) -> int:
    """Return the dimension of what a trace found: rotations, folds and balances."""
    return (
        graph.dimension
        + sum(_folded(graph, fold) for fold in graph.folds)
        + sum(_balanced(graph, balance) for balance in graph.balances)
    )


def _folded(graph: SymmetryGraph, fold: Fold) -> int:
    """Return how many numbers a fold takes out of a network."""
    shapes = {name: node.shape for name, node in graph.tensors.items()}
    match fold:
        case Gain(name) | OutputScale(name) | Shift(name):
            return prod(shapes[name])
        case Zero(place) | Through(place):
            return len(list(place.positions(shapes)))
        case Mean(writers, readers):
            places = (*writers, *readers)
            return sum(prod(shapes[place.tensor]) // shapes[place.tensor][place.axis] for place in places)
    raise AssertionError(fold)


def _balanced(graph: SymmetryGraph, balance: Balance | Phase) -> int:
    """Return the dimension of what a balance removes beside isometries; half periods are steps."""
    if isinstance(balance, Phase):
        return 0
    size, instances = graph.groups[balance.group].size, graph.instances(balance.group)
    each = {"invertible": size * (size + 1) // 2, "complex_planes": size // 2}
    return instances * each.get(balance.kind, size)
