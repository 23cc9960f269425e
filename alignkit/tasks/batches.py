"""The data of a task: batches of inputs and targets that can be read again and again."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from alignkit.errors import TaskError

DEFAULT_ROWS = 1024
"""Samples in one forward call when the data comes as two whole tensors and no chunk is given: fast and small enough for
networks of images on a laptop."""


@dataclass(frozen=True)
class Batch:
    """Some samples: what the model is called with, and what the loss compares its outputs with.

    Attributes:
        inputs: A tensor ``[n, ...]``, a tuple or list (positional arguments) or a dict (keyword arguments) of them.
        targets: Usually a tensor ``[n, ...]``; any tree of tensors that the loss understands.
        name: How messages call this batch.
    """

    inputs: Any
    targets: Any
    name: str

    @property
    def tensors(self) -> list[Tensor]:
        """Every tensor of the inputs, then of the targets."""
        return [*tensors_in(self.inputs), *tensors_in(self.targets)]

    @property
    def size(self) -> int:
        """Number of samples: the first axis of the targets, or of the inputs where the targets have none."""
        for tensor in (*tensors_in(self.targets), *tensors_in(self.inputs)):
            if tensor.ndim:
                return int(tensor.shape[0])
        raise TaskError(
            f"{self.name} holds no tensor with an axis of samples. Give (inputs, targets) with tensors [n, ...]."
        )

    @property
    def splittable(self) -> bool:
        """Whether axis 0 of every tensor counts the samples, so that the batch can be cut into smaller ones."""
        return all(tensor.ndim > 0 and tensor.shape[0] == self.size for tensor in self.tensors)

    def map(self, change: Callable[[Tensor], Tensor]) -> Batch:
        """Change every tensor of the inputs and the targets."""
        return Batch(map_tensors(change, self.inputs), map_tensors(change, self.targets), self.name)

    def rows(self, start: int, stop: int) -> Batch:
        """Cut out the samples ``start`` to ``stop`` (views, no copies)."""
        return self if start == 0 and stop == self.size else self.map(lambda tensor: tensor[start:stop])

    def head(self, count: int) -> Batch:
        """Cut out the first ``count`` samples; a batch that is smaller or cannot be cut stays whole."""
        return self.rows(0, min(self.size, count)) if self.splittable else self

    def pieces(self, rows: int) -> Iterator[Batch]:
        """Cut the batch into pieces of at most ``rows`` samples; one that cannot be cut stays whole."""
        if self.size <= rows or not self.splittable:
            yield self
            return
        for start in range(0, self.size, rows):
            stop = min(start + rows, self.size)
            yield replace(self.rows(start, stop), name=f"{self.name} (samples {start} to {stop - 1})")

    def pick(self, rows: Tensor) -> Batch:
        """Copy the samples with these numbers."""
        return self.map(lambda tensor: tensor[rows.to(tensor.device)])

    def to(self, device: torch.device) -> Batch:
        """Move all tensors to a device."""
        return self.map(lambda tensor: tensor.to(device, non_blocking=True))


class Batches:
    """Batches in a fixed order, read when they are first needed and the same at every later reading.

    A sequence (list, tuple, or your own class with ``__len__`` and ``__getitem__``) is indexed and never copied, so a
    lazy sequence may be larger than memory. Every other iterable (a DataLoader, a generator) is read once and kept:
    a loader that shuffles or augments then gives the same samples to every weights that are compared, and a
    generator that can be read only once works like a list.

    Args:
        source: Two tensors ``(inputs [n, ...], targets [n, ...])``, or an iterable of such pairs.
        chunk: Maximum number of samples in one batch; larger ones are cut. None keeps the pairs of an iterable as they
            are and cuts two whole tensors into pieces of ``DEFAULT_ROWS``.
    """

    def __init__(self, source: Any, chunk: int | None = None) -> None:
        if chunk is not None and chunk < 1:
            raise TaskError(f"chunk is {chunk}: give a positive number of samples, or None.")
        if isinstance(source, Dataset):
            raise TaskError("batches is a Dataset of single samples: wrap it in a torch.utils.data.DataLoader.")
        self._is_sequence = hasattr(source, "__len__") and hasattr(source, "__getitem__")
        if isinstance(source, (Tensor, Mapping)) or not (isinstance(source, Iterable) or self._is_sequence):
            raise TaskError(
                f"batches is a {type(source).__name__}: give (inputs, targets), a list of such pairs or a DataLoader."
            )
        # One pair (inputs, targets) and not a list of pairs: its second entry is a tensor.
        self._whole = isinstance(source, (tuple, list)) and len(source) == 2 and isinstance(source[1], Tensor)
        self._chunk = (chunk or DEFAULT_ROWS) if self._whole else chunk
        self._source = source

    def __iter__(self) -> Iterator[Batch]:
        """Yield the batches, none larger than the chunk.

        Raises:
            TaskError: There is no batch, a batch is empty, or one is not a pair of inputs and targets.
        """
        if not self._is_sequence:
            self._source, self._is_sequence = list(self._source), True
        count = 1 if self._whole else len(self._source)
        for index in range(count):
            name = "the data" if self._whole else f"batch {index}"
            pair = self._source if self._whole else self._source[index]
            if not isinstance(pair, (tuple, list)) or len(pair) != 2:
                what = f"{len(pair)} entries" if isinstance(pair, (tuple, list)) else f"a {type(pair).__name__}"
                raise TaskError(f"{name} is not a pair (inputs, targets) but {what}.")
            batch = Batch(pair[0], pair[1], name)
            if batch.size == 0:
                raise TaskError(f"{name} is empty: it holds 0 samples.")
            if isinstance(pair[0], Tensor) and isinstance(pair[1], Tensor) and len(pair[0]) != len(pair[1]):
                raise TaskError(f"{name} has {len(pair[0])} inputs but {len(pair[1])} targets.")
            yield from batch.pieces(self._chunk or batch.size)
        if not count:
            raise TaskError("there are no batches: the list or loader is empty.")


def tensors_in(tree: Any) -> list[Tensor]:
    """List every tensor of nested tuples, lists and mappings, in order."""
    if isinstance(tree, Tensor):
        return [tree]
    if isinstance(tree, Mapping):
        tree = tree.values()
    elif not isinstance(tree, (tuple, list)):
        return []
    return [tensor for part in tree for tensor in tensors_in(part)]


def map_tensors(change: Callable[[Tensor], Tensor], tree: Any) -> Any:
    """Change every tensor of nested tuples, lists and mappings; other leaves stay, mappings become dicts."""
    if isinstance(tree, Tensor):
        return change(tree)
    if isinstance(tree, Mapping):
        return {key: map_tensors(change, value) for key, value in tree.items()}
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return type(tree)(*(map_tensors(change, value) for value in tree))
    if isinstance(tree, (tuple, list)):
        return type(tree)(map_tensors(change, value) for value in tree)
    return tree
