"""Which groups feed which: the weight matrices between the units of two groups, read off a graph and its modules.

A tensor that one group indexes where its module reads, and another where it writes, is a matrix of connections. Axes of
the graph have no direction of their own; the table of modules in `alignkit.activations.sites` gives it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from math import prod

from jaxtyping import Float
from torch import Tensor, nn

from alignkit.activations.sites import owner_of, place_of
from alignkit.graph.layout import Block
from alignkit.graph.nodes import TensorNode
from alignkit.graph.symmetry_graph import SymmetryGraph

RMS_FLOOR = 1e-12
ALIKE = 1e-3
"""Deviations below this share of the values themselves count as none."""


@dataclass(frozen=True, eq=False)
class Connection:
    """A block of a tensor that leads from the units of one group to those of another.

    Attributes:
        tensor: Name of the tensor.
        block: The block.
        source: Group that is read.
        target: Group that is written.
        inputs: Positions of the source's dims in the block, with its parents.
        outputs: Positions of the target's dims.
    """

    tensor: str
    block: Block
    source: str
    target: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]

    def matrix(self, weights: Mapping[str, Tensor]) -> Float[Tensor, "outputs inputs"]:
        """Weights summed over everything else (a kernel), of root mean square ``1 / sqrt(inputs)``."""
        view = self.block.view(weights[self.tensor])
        rest = tuple(i for i in range(len(self.block.dims)) if i not in self.inputs + self.outputs)
        summed = view.sum(rest, keepdim=True) if rest else view
        rows, columns = (prod(self.block.dims[i].size for i in dims) for dims in (self.outputs, self.inputs))
        matrix = summed.permute((*self.outputs, *self.inputs, *rest)).reshape(rows, columns)
        scaled: Tensor = matrix / (_rms(matrix) * columns**0.5)
        return scaled

    def unit_norms(self, weights: Mapping[str, Tensor], dims: tuple[int, ...]) -> Float[Tensor, " units"]:
        """Norm of the weights of each unit relative to the mean square one, minus 1."""
        squares = self.block.view(weights[self.tensor]).square()
        rest = tuple(i for i in range(len(self.block.dims)) if i not in dims)
        summed = squares.sum(rest) if rest else squares
        each = summed.permute(_order(dims)).reshape(-1)
        return each.sqrt() / each.mean().sqrt().clamp(min=RMS_FLOOR) - 1


@dataclass(frozen=True, eq=False)
class UnitVector:
    """A block with one number for each unit: a bias, or the scale of a norm."""

    tensor: str
    block: Block
    group: str
    is_scale: bool

    def values(self, weights: Mapping[str, Tensor]) -> Float[Tensor, " units"]:
        """The numbers of root mean square 1; scales relative to their mean."""
        found = self.block.view(weights[self.tensor]).reshape(-1)
        size = _rms(found)
        found = found - found.mean() if self.is_scale else found
        # Scales that are all alike say nothing, and their rounding must not be blown up.
        return found / _rms(found).clamp(min=float(ALIKE * size.detach()))


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
    for node in graph.tensors.values():
        for block in node.blocks if node.groups else ():
            connections += _connections(model, node, block)
            vectors += _vectors(model, node, block)
    return Wiring(tuple(connections), tuple(vectors))


def _connections(model: nn.Module, node: TensorNode, block: Block) -> list[Connection]:
    leaves = _leaves(block)
    read = [at for at in leaves if _is_read(model, node, block.dims[at].axis)]
    found = []
    for source in read:
        for target in leaves:
            if target in read:
                continue
            inputs, outputs = ((*block.dims[at].ancestors, at) for at in (source, target))
            if set(inputs) & set(outputs):
                continue  # Both are inside the same unit: a grouped convolution.
            names = (str(block.dims[source].group), str(block.dims[target].group))
            found.append(Connection(node.name, block, *names, inputs, outputs))
    return found


def _vectors(model: nn.Module, node: TensorNode, block: Block) -> list[UnitVector]:
    leaves = _leaves(block)
    if len(leaves) != 1:
        return []
    chain = (*block.dims[leaves[0]].ancestors, leaves[0])
    others = prod(dim.size for at, dim in enumerate(block.dims) if at not in chain)
    attribute = owner_of(model, node.name)[1]
    if others != 1 or node.role != "parameter":
        return []
    is_scale = "bias" not in attribute
    return [UnitVector(node.name, block, str(block.dims[leaves[0]].group), is_scale)]


def _leaves(block: Block) -> list[int]:
    parents = {up for dim in block.dims for up in dim.ancestors}
    return [at for at, dim in enumerate(block.dims) if dim.group is not None and at not in parents]


def _is_read(model: nn.Module, node: TensorNode, axis: int) -> bool:
    """Whether the module reads what this axis indexes; it writes it otherwise."""
    path, attribute = owner_of(model, node.name)
    place = place_of(model.get_submodule(path), attribute, axis)
    return place is not None and place.when != "pre"


def _order(dims: tuple[int, ...]) -> tuple[int, ...]:
    """Axes of what is left of a block after a sum over all but ``dims``, in the order of ``dims``."""
    kept = sorted(dims)
    return tuple(kept.index(at) for at in dims)


def _rms(values: Tensor) -> Tensor:
    return values.square().mean().sqrt().clamp(min=RMS_FLOOR)
