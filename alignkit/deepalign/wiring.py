"""Which groups feed which: the weight matrices between the units of two groups, read off a graph and its modules.

A tensor that one group indexes where its module reads, and another where it writes, is a matrix of connections. Axes of
the graph have no direction of their own; the table of modules in `alignkit.activations.sites` gives it.

The example of this file is a convolution from 2 to 3 channels with a flatten and a linear layer behind it::

    conv.weight  [3, 2, 1, 2]  "c2 c1 . ."     one block; dims: c2, c1, kernel, kernel (sizes 3, 2, 1, 2)
    conv.bias    [3]           "c2"            one block; dims: c2
    fc.weight    [5, 12]       "h (c2 4)"      one block; dims: h, c2, positions (sizes 5, 3, 4)

``conv.weight`` reads ``c1`` (axis 1 of a convolution indexes its input) and writes ``c2``; ``fc.weight`` reads ``c2``
and writes ``h``. So there are two connections, ``c1 -> c2`` and ``c2 -> h``, each from dim 1 to dim 0 of its block;
and one unit vector, the bias of ``c2``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from math import prod

from jaxtyping import Float
from torch import Tensor, nn

from alignkit.activations.sites import find_sites, owner_of
from alignkit.graph import SymmetryGraph, Use
from alignkit.graph.uses import uses_of_block

RMS_FLOOR = 1e-12
"""Root mean squares below this count as this: tensors of zeros, and their gradients, stay finite."""
ALIKE = 1e-3
"""Deviations below this share of the values themselves count as none: dividing by them would make noise a signal."""


@dataclass(frozen=True, eq=False)
class Connection:
    """A block of a tensor that leads from the units of one group to those of another.

    Attributes:
        source: Use of the group that is read.
        target: Use of the group that is written, on the same block.
    """

    source: Use
    target: Use

    def matrix(self, weights: Mapping[str, Tensor]) -> Float[Tensor, "outputs inputs"]:
        """Sum the weights over everything else (a kernel) and scale them to root mean square ``1 / sqrt(inputs)``.

        Rows then have norm 1 on average, so that sums over all inputs keep the size of what is summed. Example:
        ``[3, 2, 1, 2]`` is summed over the kernel to ``[3, 2, 1, 1]`` and reshaped to ``[3, 2]``.
        """
        block, dims = self.source.block, (*self.target.chain, *self.source.chain)
        rest = tuple(i for i in range(len(block.dims)) if i not in dims)
        view = block.view(weights[self.source.tensor])
        summed = view.sum(rest, keepdim=True) if rest else view
        matrix = summed.permute(*dims, *rest).reshape(self.target.unit_count, self.source.unit_count)
        scaled: Tensor = matrix / (_rms(matrix) * self.source.unit_count**0.5)
        return scaled


@dataclass(frozen=True, eq=False)
class UnitVector:
    """A use of a block with one number for each unit: a bias, or the scale of a norm."""

    use: Use
    is_scale: bool

    def values(self, weights: Mapping[str, Tensor]) -> Float[Tensor, " units"]:
        """Scale the numbers to root mean square 1; scales of a norm, which are near 1, relative to their mean."""
        numbers = self.use.block.view(weights[self.use.tensor]).reshape(-1)
        size = _rms(numbers)
        numbers = numbers - numbers.mean() if self.is_scale else numbers
        # Scales that are all alike say nothing, and their rounding must not be blown up.
        return numbers / _rms(numbers).clamp(min=float(ALIKE * size.detach()))


@dataclass(frozen=True, eq=False)
class Wiring:
    """All connections and unit vectors of a graph."""

    connections: tuple[Connection, ...]
    vectors: tuple[UnitVector, ...]


@lru_cache(maxsize=64)
def find_wiring(graph: SymmetryGraph, model: nn.Module) -> Wiring:
    """Read the wiring off a graph and the modules that own its tensors.

    Args:
        graph: The graph.
        model: A model with its tensors; only the kinds of its modules matter.
    """
    connections: list[Connection] = []
    vectors: list[UnitVector] = []
    for node in (node for node in graph.tensors.values() if node.groups):
        path, attribute = owner_of(model, node.name)
        module = model.get_submodule(path)
        # Axes whose site lies behind an activation function ("post") or is a state ("both") are read.
        is_read = [
            any(site.when != "pre" for site in find_sites(module, attribute, axis) or ())
            for axis in range(len(node.shape))
        ]
        for block in node.blocks:
            # A unit inside a head speaks for its head.
            leaves = [use for use in uses_of_block(node.name, block) if use.is_innermost]
            read, written = ([u for u in leaves if is_read[block.dims[u.at].axis] == side] for side in (True, False))
            connections += [
                Connection(source, target)
                for source in read
                for target in written
                if not set(source.chain) & set(target.chain)  # else both are in one unit: a grouped convolution
            ]
            size = prod(dim.size for dim in block.dims)
            if node.role == "parameter" and [use.unit_count for use in leaves] == [size]:
                vectors.append(UnitVector(leaves[0], "bias" not in attribute))
    return Wiring(tuple(connections), tuple(vectors))


def unit_norms(use: Use, weights: Mapping[str, Tensor]) -> Float[Tensor, " units"]:
    """Compute the norm of the weights of each unit relative to their root mean square, minus 1."""
    each = use.unfold(use.block.view(weights[use.tensor]).square()).sum(-1).reshape(-1)
    return each.sqrt() / each.mean().sqrt().clamp(min=RMS_FLOOR) - 1


def _rms(values: Tensor) -> Tensor:
    return values.square().mean().sqrt().clamp(min=RMS_FLOOR)
