"""Weights that stay on disk, by the names of a graph; and tensors reordered a few rows at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from math import prod

import torch
from torch import Tensor

from alignkit.checkpoints import Checkpoint, TensorEntry
from alignkit.errors import GraphError
from alignkit.graph.elements.action import act_on_block
from alignkit.graph.layout import Axis, Block, Fixed, Segment, layout_blocks
from alignkit.graph.nodes import TensorNode
from alignkit.graph.structure import GraphStructure

_NARROW = 4096
"""Rows of fewer bytes than this are not worth a read each."""


class WeightsOnDisk(Mapping[str, Tensor]):
    """Tensors of a checkpoint by the first names of a graph, read when they are asked for.

    Args:
        graph: The graph.
        checkpoint: Has every tensor of the graph under one of its names at least.
        on_read: Is told the bytes of each read.
    """

    def __init__(
        self, graph: GraphStructure, checkpoint: Checkpoint, on_read: Callable[[int], None] | None = None
    ) -> None:
        self.checkpoint = checkpoint
        self.names = {
            node.name: next(name for name in node.names if name in checkpoint) for node in graph.tensors.values()
        }
        self.on_read = on_read

    def entry(self, name: str) -> TensorEntry:
        """Dtype, shape and size of a tensor."""
        return self.checkpoint.entry(self.names[name])

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        """Rows ``start`` to ``stop`` of a tensor."""
        return self._told(self.checkpoint.rows(self.names[name], start, stop))

    def take(self, name: str, index: Tensor) -> Tensor:
        """The rows that ``index`` names, in its order."""
        entry = self.entry(name)
        if entry.nbytes < _NARROW * entry.shape[0]:
            low, high = int(index.min()), int(index.max()) + 1
            near = self.checkpoint.rows(self.names[name], low, high)
            return self._told(bits(near).index_select(0, index - low).view(entry.dtype))
        return self._told(self.checkpoint.take(self.names[name], index))

    def __getitem__(self, name: str) -> Tensor:
        return self._told(self.checkpoint[self.names[name]])

    def _told(self, tensor: Tensor) -> Tensor:
        if self.on_read is not None:
            self.on_read(tensor.nbytes)
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


def bits(tensor: Tensor) -> Tensor:
    """A tensor of one byte an element as whole numbers: torch cannot index all of the small floats."""
    return tensor.view(torch.uint8) if tensor.dtype.itemsize == 1 and tensor.dtype != torch.bool else tensor


class Reordered:
    """A tensor under an alignment, a few rows at a time.

    Args:
        node: The tensor.
        elements: Indices for each group that acts on it.
    """

    def __init__(self, node: TensorNode, elements: Mapping[str, Tensor]) -> None:
        self.node, self.elements = node, elements

    @cached_property
    def sources(self) -> Tensor | None:
        """Row that each row comes from; None where rows stay."""
        axis = self.node.layout[0]
        if axis.is_fixed:
            return None
        rows = torch.arange(self.node.shape[0])
        moved = torch.empty_like(rows)
        for block in layout_blocks((axis,), self.node.name):
            block.view(moved).copy_(act_on_block(block, block.view(rows), self.elements))
        return moved

    @cached_property
    def splits(self) -> bool:
        """Whether rows can be had alone: no group on a later axis depends on the row."""
        try:
            return bool(self.node.shape) and self.node.shape[0] > 0 and bool(self._blocks(1))
        except GraphError:
            return False

    def _blocks(self, rows: int) -> tuple[Block, ...]:
        return layout_blocks((Axis((Segment((Fixed(rows),)),)), *self.node.layout[1:]), self.node.name)

    def read(self, weights: WeightsOnDisk, start: int, stop: int) -> Tensor:
        """Rows ``start`` to ``stop`` of the reordered tensor."""
        name = self.node.name
        sources = self.sources
        found = weights.rows(name, start, stop) if sources is None else weights.take(name, sources[start:stop])
        if all(axis.is_fixed for axis in self.node.layout[1:]):
            return found
        return self._acted(found, self._blocks(stop - start))

    def whole(self, weights: WeightsOnDisk) -> Tensor:
        """The whole reordered tensor."""
        found = weights[self.node.name]
        return self._acted(found, self.node.blocks) if self.node.groups else found

    def _acted(self, tensor: Tensor, blocks: tuple[Block, ...]) -> Tensor:
        source = bits(tensor)
        result = torch.empty_like(source)
        for block in blocks:
            block.view(result).copy_(act_on_block(block, block.view(source), self.elements))
        return result.view(tensor.dtype)

    def pieces(self, size: int) -> Iterator[tuple[int, int] | None]:
        """Spans of rows of about ``size`` bytes in float64; None for the whole tensor, where it cannot be split."""
        if not self.splits:
            yield None
            return
        rows = self.node.shape[0]
        step = max(1, size // max(1, 8 * prod(self.node.shape[1:])))
        for start in range(0, rows, step):
            yield start, min(start + step, rows)

    def at(self, weights: WeightsOnDisk, span: tuple[int, int] | None) -> Tensor:
        """The piece of the reordered tensor that `pieces` named."""
        return self.whole(weights) if span is None else self.read(weights, *span)


def plain(weights: WeightsOnDisk, name: str, span: tuple[int, int] | None) -> Tensor:
    """The same piece of a tensor that is not reordered."""
    return weights[name] if span is None else weights.rows(name, *span)
