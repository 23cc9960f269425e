"""The data of a task: batches of inputs and targets that can be read again and again."""

from __future__ import annotations

import operator
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from alignkit.errors import AlignkitError, TaskError
from alignkit.process_state import FILTERS, SWITCHES, free_to_draw, watched_state
from alignkit.text import describe_error, dtype_name, readable_bytes, with_article

DEFAULT_ROWS = 1024
"""Samples in one forward call when the data comes as two whole tensors and no chunk is given: fast and small enough for
networks of images on a laptop."""
MAX_UNCOUNTED = 100_000
"""Batches that are read of a loader that does not say how many it has; it is taken to be endless then."""
BATCH_OVERHEAD = 1000
"""Bytes that a batch takes beside its values: the objects of two tensors and their pair."""
CONTAINER_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
UNKNOWN_MEMORY = 16_000_000_000
"""Bytes of memory that a machine is taken to have where it does not say."""


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
    def label(self) -> str:
        """How messages call this batch, with dtypes and shapes."""
        shapes = ", ".join(f"{dtype_name(tensor.dtype)}{list(tensor.shape)}" for tensor in self.tensors)
        return f"{self.name} ({shapes})"

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

    @contextmanager
    def named_in_errors(self) -> Iterator[None]:
        """Turn what fails inside the block into a `TaskError` that names this batch; out of memory stays what it is."""
        try:
            yield
        except (AlignkitError, MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as error:  # models and losses are the user's: anything can happen on a batch
            raise TaskError(f"the model fails on {self.label}: {describe_error(error)}") from error


class Batches:
    """Batches in a fixed order, read when they are first needed and the same at every later reading.

    A sequence (list, tuple, or your own class with ``__len__`` and ``__getitem__``) is indexed and never copied, so a
    lazy sequence may be larger than memory. Every other iterable (a DataLoader, a generator) is read once, as far as
    batches are asked for, and kept: a loader that shuffles or augments then gives the same samples to every weights
    that are compared, and a generator that can be read only once works like a list.

    Args:
        source: Two tensors ``(inputs [n, ...], targets [n, ...])``, or an iterable of such pairs, or of dicts with
            ``"labels"``, which are inputs and targets at once.
        chunk: Maximum number of samples in one batch; larger ones are cut. None keeps the pairs of an iterable as they
            are and cuts two whole tensors into pieces of ``DEFAULT_ROWS``.
        is_whole: Whether the source is two whole tensors; None: it is if its second entry is a tensor.
    """

    def __init__(self, source: Any, chunk: int | None = None, *, is_whole: bool | None = None) -> None:
        if chunk is not None and chunk < 1:
            raise TaskError(f"chunk is {chunk}: give a positive number of samples, or None.")
        if isinstance(source, Dataset):
            raise TaskError("batches is a Dataset of single samples: wrap it in a torch.utils.data.DataLoader.")
        is_sequence = hasattr(source, "__len__") and hasattr(source, "__getitem__")
        if isinstance(source, (Tensor, Mapping)) or not (isinstance(source, Iterable) or is_sequence):
            what = with_article(type(source).__name__)
            raise TaskError(f"batches is {what}: give (inputs, targets), a list of such pairs or a DataLoader.")
        # One pair (inputs, targets) and not a list of pairs: its second entry is a tensor.
        is_pair = isinstance(source, (tuple, list)) and len(source) == 2 and isinstance(source[1], Tensor)
        self._whole = is_pair if is_whole is None else is_whole
        self._chunk = (chunk or DEFAULT_ROWS) if self._whole else chunk
        self._pairs: Iterable[Any] = [source] if self._whole else _Indexed(source) if is_sequence else _Kept(source)

    def __iter__(self) -> Iterator[Batch]:
        """Yield the batches, none larger than the chunk.

        Raises:
            TaskError: There is no batch; the source fails or finds no end; a batch is empty, on the meta device, or
                not a pair of inputs and targets.
        """
        index = -1
        for index, pair in enumerate(self._pairs):
            name = "the data" if self._whole else f"batch {index}"
            batch = Batch(*self.read(pair, name), name)
            if any(tensor.is_nested for tensor in batch.tensors):
                raise TaskError(f"{name} holds a nested tensor: pad its samples, or give them in batches of one shape.")
            if odd := [tensor for tensor in batch.tensors if tensor.layout != torch.strided]:
                raise TaskError(f"{name} holds a tensor of layout {dtype_name(odd[0].layout)}: use to_dense().")
            if batch.size == 0:
                raise TaskError(f"{name} is empty: it holds 0 samples.")
            if any(tensor.is_meta for tensor in batch.tensors):
                raise TaskError(f"{name} is on the meta device and has no values.")
            sides = batch.inputs, batch.targets
            counts = [len(side) if side.ndim else 0 for side in sides if isinstance(side, Tensor)]
            if len(set(counts)) > 1:
                raise TaskError(f"{name} has {counts[0]} inputs but {counts[1]} targets.")
            yield from batch.pieces(self._chunk or batch.size)
        if index < 0:
            raise TaskError("there are no batches: the list or loader is empty.")

    def read(self, pair: Any, name: str) -> tuple[Any, Any]:
        """Return inputs and targets of one entry of the source; raise `TaskError` where it has not got both."""
        if isinstance(pair, Mapping):
            if "labels" not in pair:
                raise TaskError(f'{name} is a dict without "labels". Give pairs (inputs, targets).')
            return pair, pair["labels"]
        if not isinstance(pair, (tuple, list)) or len(pair) != 2:
            what = f"{len(pair)} entries" if isinstance(pair, (tuple, list)) else with_article(type(pair).__name__)
            raise TaskError(f"{name} is not a pair (inputs, targets) but {what}.")
        return pair[0], pair[1]


class _Indexed:
    """The pairs of a sequence, each read when it is its turn, at every pass."""

    def __init__(self, source: Any) -> None:
        self._source = source

    def __iter__(self) -> Iterator[Any]:
        index = 0
        try:
            while index < len(self._source):
                with _reading_data():
                    pair = self._source[index]
                yield pair
                index += 1
        except Exception as error:
            raise _cannot_be_read(index, error) from error


class _Kept:
    """The pairs of an iterable, read once, as far as they were asked for, and kept."""

    def __init__(self, source: Iterable[Any]) -> None:
        self._source = source
        self._failure = ""
        self._start()

    def _start(self) -> None:
        self._reading: Iterator[Any] | None = None
        self._pairs: list[Any] = []
        self._bytes, self._complete = 0, False

    def __iter__(self) -> Iterator[Any]:
        index = 0
        while index < len(self._pairs) or self._read_one():
            yield self._pairs[index]
            index += 1

    def __getstate__(self) -> dict[str, Any]:
        """Read the rest where a part was read: an iterator can be neither copied nor pickled."""
        while self._reading is not None and self._read_one():
            pass
        return self.__dict__.copy()

    def _read_one(self) -> bool:
        """Read one more pair; False if there is none."""
        if self._complete:
            return False
        if self._failure:
            raise TaskError(self._failure)
        try:
            with _reading_data():
                if self._reading is None:
                    self._reading, self._room = iter(self._source), usable_memory() // 2
                self._pairs.append(next(self._reading))
            self._refuse_endless()
        except StopIteration:
            self._complete, self._reading, self._source = True, None, ()
            return False
        except BaseException as error:  # also Ctrl-C: what was read so far is not all that there is
            failure = error if isinstance(error, AlignkitError) else _cannot_be_read(len(self._pairs), error)
            if self._reading is self._source:  # it cannot be read a second time, and would seem to end here
                self._failure = str(failure)
            self._start()
            if isinstance(error, Exception) and failure is not error:
                raise failure from error
            raise
        return True

    def _refuse_endless(self) -> None:
        """Refuse a source that goes on and on, before it fills the memory."""
        count, promised = len(self._pairs), operator.length_hint(self._source)
        self._bytes += BATCH_OVERHEAD + sum(tensor.nbytes for tensor in tensors_in(self._pairs[-1]))
        if count > promised and (count > MAX_UNCOUNTED or self._bytes > self._room):
            raise TaskError(
                f"the loader gave {count} batches ({readable_bytes(self._bytes)}, all kept in memory) and no end. If "
                "it is endless, give a part of it: list(itertools.islice(loader, 100)). If it ends, give a list, or a "
                "class with __len__ and __getitem__, which is read batch by batch and not kept."
            )


@contextmanager
def _reading_data() -> Iterator[None]:
    """Let a loader draw random numbers, and keep the other state of the process from it."""
    with free_to_draw(), watched_state("the loader of a task", (*SWITCHES, *FILTERS)):
        yield


def _cannot_be_read(index: int, error: BaseException) -> TaskError:
    return TaskError(f"batch {index} cannot be read: {describe_error(error)}")


def usable_memory() -> int:
    """Return the bytes of memory that this process may use: those of the machine, or of its container."""
    limits = []
    with suppress(AttributeError, ValueError, OSError):  # Windows has no sysconf
        limits.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    for file in CONTAINER_LIMITS:
        with suppress(ValueError, OSError):  # "max" is not a number: no limit
            limits.append(int(Path(file).read_text()))
    return min(limits, default=UNKNOWN_MEMORY)


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
