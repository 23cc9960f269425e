"""Random graphs with weights on them, and what alignkit has to compute with them, done again with numpy alone."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from alignkit import Alignment, SymmetryGraph
from fuzzers.engine import Dice
from helpers.graph_strategies import slow_apply
from helpers.small_pairs import SPECS

State = dict[str, Tensor]
NETS: dict[str, SymmetryGraph] = {
    name: SymmetryGraph.from_spec(spec, shapes, sizes=sizes) for name, (spec, shapes, sizes) in SPECS.items()
}
"""Small graphs of each kind of structure."""


def perceptron(*widths: int) -> nn.Sequential:
    """A perceptron; its weights are those of torch's random state."""
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(widths):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def perceptron_graph(net: nn.Sequential) -> SymmetryGraph:
    from alignkit import builders

    return builders.mlp(net)


def weights_for(dice: Dice, graph: SymmetryGraph, dtype: torch.dtype = torch.float32, scale: float = 1.0) -> State:
    """Random weights of a graph by the first name of each tensor."""
    return {
        name: dice.randn(*node.shape, dtype=torch.float64).mul(scale).to(dtype) for name, node in graph.tensors.items()
    }


def random_alignment(dice: Dice, graph: SymmetryGraph) -> Alignment:
    """An alignment whose indices were shuffled by Python."""
    elements = {}
    for name in graph.groups:
        shape = graph.element_shape(name)
        rows = [dice.sample(range(shape[-1]), shape[-1]) for _ in range(math.prod(shape[:-1]))]
        elements[name] = torch.tensor(rows, dtype=torch.int64).reshape(shape)
    return Alignment(graph, elements)


def moved(graph: SymmetryGraph, alignment: Alignment, weights: Mapping[str, Tensor]) -> State:
    """The weights with their units moved, one element after the other."""
    plain = {name: tensor.detach().as_subclass(Tensor) for name, tensor in weights.items()}
    places = {n: torch.arange(t.numel()).reshape(t.shape) for n, t in plain.items()}
    sources = slow_apply(graph, alignment, places)
    # Only places are moved one by one: not every dtype can be written to by its elements.
    values = {n: np.asarray(numbers(t).reshape(-1)[sources[n].numpy()]) for n, t in plain.items()}
    return {n: torch.from_numpy(values[n]).to(t.dtype) for n, t in plain.items()}


def numbers(tensor: Tensor) -> np.ndarray:
    """The numbers of a tensor in numpy's widest type of their kind."""
    plain = tensor.detach().as_subclass(Tensor)
    if plain.dtype.is_complex:
        return plain.resolve_conj().to(torch.complex128).numpy()
    if plain.dtype.is_floating_point:
        return plain.resolve_neg().to(torch.float64).numpy()
    return plain.to(torch.int64).numpy()


def squared(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> float:
    """Compute ``||a - b||^2`` over the tensors that hold numbers that are trained."""
    total = 0.0
    for name, tensor in a.items():
        left, right = (numbers(side).astype(complex) for side in (tensor, b[name]))
        with np.errstate(over="ignore", invalid="ignore"):
            total += float((np.abs(left - right) ** 2).sum())
    return total


def same(left: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> bool:
    """Return whether names, dtypes and numbers are equal; NaN equals NaN."""
    if left.keys() != right.keys():
        return False
    pairs = [(left[name], right[name]) for name in left]
    alike = all(a.dtype == b.dtype and a.shape == b.shape for a, b in pairs)
    return alike and all(np.array_equal(numbers(a), numbers(b), equal_nan=a.is_floating_point()) for a, b in pairs)


def close(left: float, right: float, rtol: float = 1e-6, scale: float = 0.0) -> bool:
    """Return whether two sums agree up to rounding; ``scale`` is the size of what was summed."""
    return left == right or abs(left - right) <= rtol * max(abs(left), abs(right), scale)
