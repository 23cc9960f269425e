"""Networks that stay on disk: tensors by the first names of a graph, a few rows at a time.

Example: an AlignedNetwork of a CheckpointNetwork is the checkpoint under an alignment. Asked for row 0 of a tensor it
reads the row that the alignment brings there, and reorders its columns. Nothing is computed before it is asked for.
"""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from math import prod
from typing import Self

import torch
from torch import Tensor

from alignkit.checkpoints import Checkpoint
from alignkit.checkpoints.dtypes import as_bits
from alignkit.checkpoints.shard import Values
from alignkit.errors import GraphError
from alignkit.graph.bind import LazyWeights
from alignkit.graph.elements.action import act_on_blocks, change_signs
from alignkit.graph.kinds import KINDS
from alignkit.graph.layout import Axis, Block, Fixed, Segment, layout_blocks
from alignkit.graph.nodes import TensorNode
from alignkit.graph.parts import Places, ordered_part, orders_of
from alignkit.graph.rewrites import under_both_names
from alignkit.graph.stored.budget import Budget, release_freed
from alignkit.graph.structure import GraphStructure

_NARROW = 4096
"""Rows of fewer bytes than this are not worth a read each."""


class StoredNetwork(LazyWeights):
    """A network by the first names of a graph, whose tensors are read when they are asked for.

    It is the `alignkit.graph.parts.Tensors` of a network that is larger than memory. Parts and pieces have about
    ``budget.piece`` bytes in float64; a tensor that is asked for by its name is read whole.
    """

    in_memory = False

    def __init__(self, graph: GraphStructure, budget: Budget) -> None:
        self.graph, self.budget = graph, budget
        self.on_read: Callable[[int], None] | None = None
        """Called with the bytes of each read, where tensors come from files."""

    @property
    def piece(self) -> int:
        """Bytes of a part in float64, about."""
        return self.budget.piece

    @property
    def device(self) -> torch.device:
        """Files are read to the CPU."""
        return torch.device("cpu")

    def within(self, budget: Budget) -> Self:
        """Return the same network within another budget."""
        other = copy.copy(self)
        other.budget = budget
        return other

    def under(self, elements: Mapping[str, Tensor]) -> AlignedNetwork:
        """Return the same network under an alignment, given by its elements; nothing is read."""
        return AlignedNetwork(self, elements)

    @abstractmethod
    def dtype(self, name: str) -> torch.dtype:
        """Return the dtype of a tensor."""

    @abstractmethod
    def rows(self, name: str, places: Places) -> Tensor:
        """Read some rows of a tensor; of one without axes all of it."""

    def cut(self, block: Block, among: frozenset[int]) -> int:
        """Return the first dim: it is the outermost factor of axis 0, so that its units are ranges of whole rows."""
        return 0

    def part(self, name: str, block: Block, at: int, places: Places) -> Tensor:
        """Read some units of the first dim of a block."""
        assert at == 0, "files are cut by rows"
        if not block.dims:
            return self.rows(name, slice(None))
        first, offset = block.dims[0], block.offsets[0]
        index = torch.arange(first.size)[places] if isinstance(places, slice) else places
        # Rows that one unit spans.
        span = 1 + sum((dim.size - 1) * dim.stride for dim in block.dims[1:] if dim.axis == 0)
        if span == first.stride and len(index) and bool((index.diff() == 1).all()):
            low = offset + int(index[0]) * first.stride
            rows = self.rows(name, slice(low, low + len(index) * first.stride))
        else:
            rows = self.rows(name, (offset + index[:, None] * first.stride + torch.arange(span)).reshape(-1))
        # The block is cut down to the rows that were read.
        dims = (replace(first, size=len(index), stride=span), *block.dims[1:])
        return Block((0, *block.offsets[1:]), dims).view(rows)

    def spans(self, name: str) -> list[slice]:
        """Cut the rows of a tensor into pieces; one of all for a tensor without numbers or axes."""
        shape = self.graph.tensors[name].shape
        if not shape or not prod(shape):
            return [slice(None)]
        step = max(1, self.piece // (8 * prod(shape[1:])))
        return [slice(low, min(low + step, shape[0])) for low in range(0, shape[0], step)]

    def pieces(self, name: str) -> Values:
        """Return a tensor, by any of its names, as `alignkit.checkpoints.write_checkpoint` takes it."""
        name = self.graph.first_names[name]
        spans = self.spans(name)
        return (self.rows(name, span) for span in spans) if len(spans) > 1 else self[name]

    def release(self) -> None:
        """Give the memory of parts back to the system."""
        release_freed()

    def __getitem__(self, name: str) -> Tensor:
        return self.rows(name, slice(None))

    def __iter__(self) -> Iterator[str]:
        return iter(self.graph.tensors)

    def __len__(self) -> int:
        return len(self.graph.tensors)


class CheckpointNetwork(StoredNetwork):
    """The tensors of a checkpoint, which has each tensor of the graph under one of its names at least.

    A head that the folds of the graph untie from an embedding may be stored under the name of the embedding alone.
    """

    def __init__(self, graph: GraphStructure, checkpoint: Checkpoint, budget: Budget) -> None:
        super().__init__(graph, budget)
        self.checkpoint = checkpoint
        nodes = graph.tensors.values()
        stored = under_both_names({name: name for name in checkpoint}, graph.folds)
        self.names = {node.name: next(stored[name] for name in node.names if name in stored) for node in nodes}

    def dtype(self, name: str) -> torch.dtype:
        """Return the dtype of a tensor."""
        return self.checkpoint.entry(self.names[name]).dtype

    def rows(self, name: str, places: Places) -> Tensor:
        """Read some rows of a tensor; of one without axes all of it."""
        rows = self.read(self.names[name], places)
        if self.on_read is not None:
            self.on_read(rows.nbytes)
        return rows

    def read(self, stored: str, places: Places) -> Tensor:
        """Read some rows of a tensor by its name in the checkpoint."""
        return read_rows(self.checkpoint, stored, places)


def read_rows(checkpoint: Checkpoint, name: str, places: Places) -> Tensor:
    """Read some rows of a tensor of a checkpoint; of one without axes all of it."""
    if isinstance(places, slice):
        return checkpoint[name] if places == slice(None) else checkpoint.rows(name, places.start, places.stop)
    entry = checkpoint.entry(name)
    if not len(places) or entry.nbytes >= _NARROW * entry.shape[0]:
        return checkpoint.take(name, places)
    low = int(places.min())
    near = checkpoint.rows(name, low, int(places.max()) + 1)
    return as_bits(near).index_select(0, places - low).view(entry.dtype)


class PatchedNetwork(StoredNetwork):
    """Another stored network with some tensors of others, by first names; those of None are zero."""

    def __init__(self, source: StoredNetwork, others: Mapping[str, StoredNetwork | None]) -> None:
        super().__init__(source.graph, source.budget)
        self.source, self.others = source, dict(others)

    def within(self, budget: Budget) -> Self:
        """Return the same network within another budget."""
        other = super().within(budget)
        other.source = self.source.within(budget)
        return other

    def dtype(self, name: str) -> torch.dtype:
        """Return the dtype of a tensor."""
        return (self.others.get(name) or self.source).dtype(name)

    def rows(self, name: str, places: Places) -> Tensor:
        """Read some rows of a tensor; of one without axes all of it."""
        if (other := self.others.get(name, self.source)) is not None:
            return other.rows(name, places)
        return torch.zeros((), dtype=self.dtype(name)).expand(self.graph.tensors[name].shape)[places].contiguous()


class AlignedNetwork(StoredNetwork):
    """Another stored network under an alignment; ``elements`` are those of `Alignment`."""

    def __init__(self, source: StoredNetwork, elements: Mapping[str, Tensor]) -> None:
        super().__init__(source.graph, source.budget)
        self.source, self.elements = source, dict(elements)

    def dtype(self, name: str) -> torch.dtype:
        """Return the dtype of a tensor."""
        return self.source.dtype(name)

    def part(self, name: str, block: Block, at: int, places: Places) -> Tensor:
        """Read some units of the first dim of a block."""
        if any(KINDS[dim.kind].rotates for dim in block.dims):
            return super().part(name, block, at, places)
        return ordered_part(self.source, name, block, at, places, orders_of(block, self.elements))

    def rows(self, name: str, places: Places) -> Tensor:
        """Read some rows of a tensor; of one without axes all of it."""
        node = self.graph.tensors[name]
        if not node.groups:
            return self.source.rows(name, places)
        if not _splits(node):
            return act_on_blocks(node.blocks, self.source[name], self.elements)[places]
        first, *others = node.layout
        flips = None
        if not first.is_fixed:
            # Numbers from 1 on, which change their sign as the rows do.
            sources = torch.arange(1, node.shape[0] + 1, dtype=torch.float64)
            moved = act_on_blocks(layout_blocks((first,), name), sources, self.elements)[places]
            flips, places = moved < 0, moved.abs().long() - 1
        rows = self.source.rows(name, places)
        if flips is not None and bool(flips.any()):
            rows = change_signs(rows, flips.reshape(-1, *[1] * (rows.ndim - 1)))
        if all(axis.is_fixed for axis in others):
            return rows
        return act_on_blocks(_blocks_of_rows(node, len(rows)), rows, self.elements)


def _splits(node: TensorNode) -> bool:
    """Tell whether rows of a tensor under an alignment can be had alone.

    No group on a later axis depends on the row, and every row is a row of the tensor as it was, up to its sign: none is
    mixed with others.
    """
    first = node.layout[0] if node.layout else Axis(())
    if any(KINDS[units.kind].rotates for units in first.units()):
        return False
    try:
        return bool(node.shape) and node.shape[0] > 0 and bool(_blocks_of_rows(node, 1))
    except GraphError:
        return False


def _blocks_of_rows(node: TensorNode, rows: int) -> tuple[Block, ...]:
    return layout_blocks((Axis((Segment((Fixed(rows),)),)), *node.layout[1:]), node.name)
