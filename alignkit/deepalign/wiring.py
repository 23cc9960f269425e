"""Which groups feed which: the weight matrices between the units of two groups, read off a graph and its modules.

A tensor that one group indexes where its module reads, and another where it writes, is a matrix of connections. Axes of
the graph have no direction of their own; the table of modules in `alignkit.activations.sites` gives it.

The example of this file is a convolution from 2 to 3 channels with a flatten and a linear layer behind it::

    conv.weight  [3, 2, 1, 2]  "c2 c1 . ."     one block; dims: c2, c1, kernel, kernel (sizes 3, 2, 1, 2)
    conv.bias    [3]           "c2"            one block; dims: c2
    fc.weight    [5, 12]       "h (c2 4)"      one block; dims: h, c2, positions (sizes 5, 3, 4)

``conv.weight`` reads ``c1`` (axis 1 of a convolution indexes its input) and writes ``c2``; ``fc.weight`` reads ``c2``
and writes ``h``. So there are two connections, ``c1 -> c2`` with ``inputs = (1,)`` and ``outputs = (0,)``, and
``c2 -> h`` with ``inputs = (1,)`` and ``outputs = (0,)``; and one unit vector, the bias of ``c2``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from math import prod

from jaxtyping import Float
from torch import Tensor, nn

from alignkit.activations.sites import find_sites, owner_of
from alignkit.graph import Block, SymmetryGraph, TensorNode

RMS_FLOOR = 1e-12
"""Root mean squares below this count as this: tensors of zeros, and their gradients, stay finite."""
ALIKE = 1e-3
"""Deviations below this share of the values themselves count as none: dividing by them would make noise a signal."""


@dataclass(frozen=True, eq=False)
class Connection:
    """A block of a tensor that leads from the units of one group to those of another.

    Attributes:
        tensor: Name of the tensor.
        block: The block.
        source: Group that is read.
        target: Group that is written.
        inputs: Positions of the source's dim in the block, behind those of its parents.
        outputs: Positions of the target's dim in the same way.
    """

    tensor: str
    block: Block
    source: str
    target: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]

    def matrix(self, weights: Mapping[str, Tensor]) -> Float[Tensor, "outputs inputs"]:
        """Sum the weights over everything else (a kernel) and scale them to root mean square ``1 / sqrt(inputs)``.

        Rows then have norm 1 on average, so that sums over all inputs keep the size of what is summed. Example:
        ``[3, 2, 1, 2]`` is summed over the kernel to ``[3, 2, 1, 1]`` and reshaped to ``[3, 2]``.
        """
        dims = self.block.dims
        view = self.block.view(weights[self.tensor])
        rest = tuple(i for i in range(len(dims)) if i not in self.inputs + self.outputs)
        summed = view.sum(rest, keepdim=True) if rest else view
        rows, columns = (prod(dims[i].size for i in side) for side in (self.outputs, self.inputs))
        matrix = summed.permute((*self.outputs, *self.inputs, *rest)).reshape(rows, columns)
        scaled: Tensor = matrix / (_rms(matrix) * columns**0.5)
        return scaled

    def unit_norms(self, weights: Mapping[str, Tensor], dims: tuple[int, ...]) -> Float[Tensor, " units"]:
        """Compute the norm of the weights of each unit relative to their root mean square, minus 1.

        Args:
            weights: By the first name of each tensor.
            dims: ``outputs`` for the norms of what writes each unit of the target, ``inputs`` for the source's readers.
        """
        squares = self.block.view(weights[self.tensor]).square()
        rest = tuple(i for i in range(len(self.block.dims)) if i not in dims)
        summed = squares.sum(rest) if rest else squares
        # A sum leaves the axes in the order of the block; parents may stand behind their children there.
        remaining = sorted(dims)
        each = summed.permute([remaining.index(at) for at in dims]).reshape(-1)
        return each.sqrt() / each.mean().sqrt().clamp(min=RMS_FLOOR) - 1


@dataclass(frozen=True, eq=False)
class UnitVector:
    """A block with one number for each unit: a bias, or the scale of a norm."""

    tensor: str
    block: Block
    group: str
    is_scale: bool

    def values(self, weights: Mapping[str, Tensor]) -> Float[Tensor, " units"]:
        """Scale the numbers to root mean square 1; scales of a norm, which are near 1, relative to their mean."""
        numbers = self.block.view(weights[self.tensor]).reshape(-1)
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
            parents = {up for dim in block.dims for up in dim.ancestors}
            leaves = [at for at, dim in enumerate(block.dims) if dim.group is not None and at not in parents]
            connections += _connect(node, block, leaves, is_read)
            chain = (*block.dims[leaves[0]].ancestors, leaves[0]) if len(leaves) == 1 else ()
            others = prod(dim.size for at, dim in enumerate(block.dims) if at not in chain)
            if chain and others == 1 and node.role == "parameter":
                is_scale = "bias" not in attribute
                vectors.append(UnitVector(node.name, block, str(block.dims[leaves[0]].group), is_scale))
    return Wiring(tuple(connections), tuple(vectors))


def _connect(node: TensorNode, block: Block, leaves: list[int], is_read: list[bool]) -> list[Connection]:
    """Connect every group that a block reads with every group that it writes.

    Args:
        node: The tensor.
        block: A block of it.
        leaves: Positions of the dims of innermost groups: a unit inside a head speaks for its head.
        is_read: For each axis of the tensor whether its module reads what it indexes.
    """
    connections = []
    for source in (at for at in leaves if is_read[block.dims[at].axis]):
        for target in (at for at in leaves if not is_read[block.dims[at].axis]):
            inputs, outputs = ((*block.dims[at].ancestors, at) for at in (source, target))
            if not set(inputs) & set(outputs):  # else both are inside the same unit: a grouped convolution
                names = (str(block.dims[source].group), str(block.dims[target].group))
                connections.append(Connection(node.name, block, *names, inputs, outputs))
    return connections


def _rms(values: Tensor) -> Tensor:
    return values.square().mean().sqrt().clamp(min=RMS_FLOOR)
