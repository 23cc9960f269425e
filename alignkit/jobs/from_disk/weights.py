"""Weights that stay on disk, by the names of a graph; and tensors reordered a few rows at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import cached_property
from math import prod
from typing import TypeAlias

import torch
from torch import Tensor

from alignkit.checkpoints import Checkpoint, TensorEntry
from alignkit.checkpoints.dtypes import as_bits
from alignkit.errors import GraphError
from alignkit.graph.elements.action import act_on_blocks
from alignkit.graph.layout import Axis, Block, Fixed, Segment, layout_blocks
from alignkit.graph.nodes import TensorNode
from alignkit.graph.structure import GraphStructure
from alignkit.jobs.from_disk.budget import release_freed
from alignkit.matching.parts import Places

_NARROW = 4096
"""Rows of fewer bytes than this are not worth a read each."""


Span: TypeAlias = tuple[int, int] | None
"""Rows of a tensor, from the first to the one before the second; None is the whole tensor."""


class WeightsOnDisk(Mapping[str, Tensor]):
    """Tensors of a checkpoint by the first names of a graph, read when they are asked for.

    The checkpoint has every tensor of the graph under one of its names at least. Parts have ``piece`` bytes in float64,
    about. It is the `alignkit.matching.parts.Tensors` of a network that is larger than memory.
    """

    def __init__(self, graph: GraphStructure, checkpoint: Checkpoint, piece: int) -> None:
        self.graph, self.checkpoint, self.piece, self.in_memory = graph, checkpoint, piece, False
        nodes = graph.tensors.values()
        self.names = {node.name: next(name for name in node.names if name in checkpoint) for node in nodes}
        self.on_read: Callable[[int], None] | None = None
        """Called with the bytes of each read."""

    def entry(self, name: str) -> TensorEntry:
        """Return dtype, shape and size of a tensor."""
        return self.checkpoint.entry(self.names[name])

    def take(self, name: str, index: Tensor) -> Tensor:
        """Read the rows that ``index`` names, in its order."""
        entry = self.entry(name)
        if entry.nbytes < _NARROW * entry.shape[0]:
            low = int(index.min())
            near = self.checkpoint.rows(self.names[name], low, int(index.max()) + 1)
            return self._count(as_bits(near).index_select(0, index - low).view(entry.dtype))
        return self._count(self.checkpoint.take(self.names[name], index))

    def piece_of(self, name: str, span: Span) -> Tensor:
        """Read some rows of a tensor, or all of it."""
        return self._count(read_piece(self.checkpoint, self.names[name], span))

    def dtype(self, name: str) -> torch.dtype:
        """Return the dtype of a tensor."""
        return self.entry(name).dtype

    def cut(self, block: Block, among: frozenset[int]) -> int:
        """Return the first dim: it is the outermost factor of axis 0, so that its units are ranges of whole rows."""
        return 0

    def part(self, name: str, block: Block, at: int, places: Places) -> Tensor:
        """Read some units of the first dim of a block."""
        assert at == 0, "files are cut by rows"
        if not block.dims:
            return self.piece_of(name, None)
        first, offset = block.dims[0], block.offsets[0]
        index = torch.arange(first.size)[places] if isinstance(places, slice) else places
        # Rows that one unit spans.
        span = 1 + sum((dim.size - 1) * dim.stride for dim in block.dims[1:] if dim.axis == 0)
        if span == first.stride and len(index) and bool((index.diff() == 1).all()):
            low = offset + int(index[0]) * first.stride
            rows = self.piece_of(name, (low, low + len(index) * first.stride))
        else:
            rows = self.take(name, (offset + index[:, None] * first.stride + torch.arange(span)).reshape(-1))
        # The block is cut down to the rows that were read.
        dims = (replace(first, size=len(index), stride=span), *block.dims[1:])
        return Block((0, *block.offsets[1:]), dims).view(rows)

    def release(self) -> None:
        """Give the memory of parts back to the system."""
        release_freed()

    def _count(self, tensor: Tensor) -> Tensor:
        if self.on_read is not None:
            self.on_read(tensor.nbytes)
        return tensor

    def __getitem__(self, name: str) -> Tensor:
        return self.piece_of(name, None)

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


def read_piece(checkpoint: Checkpoint, name: str, span: Span) -> Tensor:
    """Read some rows of a tensor of a checkpoint, or all of it."""
    return checkpoint[name] if span is None else checkpoint.rows(name, *span)


class Reordered:
    """A tensor under an alignment, a few rows at a time; ``elements`` are indices for each group that acts on it."""

    def __init__(self, node: TensorNode, elements: Mapping[str, Tensor]) -> None:
        self.node, self.elements = node, elements

    @cached_property
    def sources(self) -> Tensor | None:
        """Row that each row comes from; None where rows stay."""
        axis = self.node.layout[0]
        if axis.is_fixed:
            return None
        return act_on_blocks(layout_blocks((axis,), self.node.name), torch.arange(self.node.shape[0]), self.elements)

    @cached_property
    def splits(self) -> bool:
        """Whether rows can be had alone: no group on a later axis depends on the row."""
        try:
            return bool(self.node.shape) and self.node.shape[0] > 0 and bool(self._blocks(1))
        except GraphError:
            return False

    def _blocks(self, rows: int) -> tuple[Block, ...]:
        return layout_blocks((Axis((Segment((Fixed(rows),)),)), *self.node.layout[1:]), self.node.name)

    def at(self, weights: WeightsOnDisk, span: Span) -> Tensor:
        """Read the piece of the reordered tensor that `pieces` named."""
        name = self.node.name
        if span is None:
            stored, blocks = weights.piece_of(name, None), self.node.blocks if self.node.groups else ()
        else:
            start, stop = span
            sources = self.sources
            stored = weights.piece_of(name, span) if sources is None else weights.take(name, sources[start:stop])
            blocks = () if all(axis.is_fixed for axis in self.node.layout[1:]) else self._blocks(stop - start)
        return act_on_blocks(blocks, stored, self.elements) if blocks else stored

    def pieces(self, size: int) -> Iterator[Span]:
        """Yield spans of rows of about ``size`` bytes in float64; None for a tensor that cannot be split."""
        if not self.splits:
            yield None
            return
        rows = self.node.shape[0]
        step = max(1, size // max(1, 8 * prod(self.node.shape[1:])))
        for start in range(0, rows, step):
            yield start, min(start + step, rows)
