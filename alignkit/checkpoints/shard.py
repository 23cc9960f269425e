"""What a weights file of any format offers: facts of its tensors, values on demand, a copy with new values."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from alignkit.arguments import check_arguments
from alignkit.checkpoints.dense import check_name, check_shape, why_no_values
from alignkit.checkpoints.dtypes import as_bits
from alignkit.checkpoints.opening import open_file
from alignkit.errors import WeightsError
from alignkit.text import dtype_name

SAFETENSORS_SUFFIXES = (".safetensors",)
PICKLE_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt", ".pth.tar")
KNOWN_SUFFIXES = ", ".join((*SAFETENSORS_SUFFIXES, *PICKLE_SUFFIXES))
"""Suffixes of weights files, for messages."""

Values: TypeAlias = Tensor | Iterable[Tensor]
"""A whole tensor, or its rows from first to last in pieces."""
ValuesOf: TypeAlias = Callable[[str], Values]


def as_whole(values: Values) -> Tensor:
    """Return values as one tensor."""
    return values if isinstance(values, Tensor) else torch.cat(list(values))


@dataclass(frozen=True)
class TensorEntry:
    """A tensor in a file: its name, dtype and shape, and where its bytes start in the file.

    ``stride`` counts elements from one to the next along each dimension; None where they lie in row-major order.
    """

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    begin: int = 0
    stride: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        """Raise `ValueError` for a name, a dtype or a shape that no tensor has."""
        check_name(self.name)
        check_shape(self.shape, self.dtype)

    def retyped(self, dtype: torch.dtype) -> TensorEntry:
        """Return the entry with another floating-point dtype, if it has one."""
        return replace(self, dtype=dtype) if self.dtype.is_floating_point else self

    @property
    def nbytes(self) -> int:
        """Bytes of its values."""
        return prod(self.shape) * self.dtype.itemsize

    def check(self, values: Tensor, path: Path, rows: int | None = None) -> None:
        """Raise `WeightsError` unless new values (or a piece of ``rows`` rows) are dense, of this dtype and shape."""
        shape = self.shape if rows is None else (rows, *self.shape[1:])
        if (kind := why_no_values(values)) is not None:
            raise WeightsError(f"cannot write {path}: the new values of {self.name!r} are not a dense tensor: {kind}.")
        if values.dtype != self.dtype or tuple(values.shape) != shape:
            old, new = f"{dtype_name(self.dtype)} {[*self.shape]}", f"{dtype_name(values.dtype)} {[*values.shape]}"
            raise WeightsError(f"cannot write {path}: {self.name!r} is {old}, the new values are {new}.")


@check_arguments
def file_kind(path: Path) -> Literal["safetensors", "pickle"] | None:
    """Tell the kind of a weights file by its suffix; None for any other."""
    if path.name.endswith(SAFETENSORS_SUFFIXES):
        return "safetensors"
    return "pickle" if path.name.endswith(PICKLE_SUFFIXES) else None


class Shard(ABC):
    """One weights file, opened without its values.

    Values are read into memory of their own and not through a memory map, so that pages of the file never count as
    memory of the process, and a file that is cut short while it is read is an error and not a crash.

    Attributes:
        path: The file.
        entries: Facts of its tensors, by name.
        metadata: Text entries of its header.
        first_names: The first name of each tensor by every name that it has; only names of tied tensors differ.
        note: What was read of a file that holds more, as a part of a sentence; "" where that is all.
    """

    note: str = ""
    path: Path
    entries: Mapping[str, TensorEntry]
    metadata: Mapping[str, str]
    first_names: Mapping[str, str]
    _opened_as: os.stat_result

    def check_unchanged(self, now: os.stat_result) -> None:
        """Raise `WeightsError` if size, inode or time of the file are not those that it had when it was opened."""
        before = self._opened_as
        if (now.st_size, now.st_ino, now.st_mtime_ns) != (before.st_size, before.st_ino, before.st_mtime_ns):
            raise WeightsError(f"{self.path} was changed while it was being read. Start again.")

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        """Read a tensor, or rows ``start`` to ``stop`` of it, into memory of its own.

        Raises:
            WeightsError: The file was changed since it was opened, or cannot be read.
        """
        entry = self.entries[name]
        if not entry.shape:
            return self._read_spans(entry.dtype, (), [(entry.begin, entry.nbytes)])
        stop = entry.shape[0] if stop is None else stop
        if not 0 <= start <= stop <= entry.shape[0]:
            raise WeightsError(f"{self.path}: {name!r} has {entry.shape[0]} rows, not the rows {start} to {stop}.")
        shape = (stop - start, *entry.shape[1:])
        if entry.stride is not None:
            return self._read_strided(entry, start, shape)
        row = entry.nbytes // entry.shape[0] if entry.shape[0] else 0
        return self._read_spans(entry.dtype, shape, [(entry.begin + start * row, shape[0] * row)])

    def take(self, name: str, index: Tensor) -> Tensor:
        """Read the rows of a tensor that ``index`` (int64) names, in its order; those side by side are read at once."""
        entry = self.entries[name]
        if entry.stride is not None:
            return as_bits(self.read(name)).index_select(0, index).view(entry.dtype)
        row = entry.nbytes // entry.shape[0]
        spans: list[tuple[int, int]] = []
        for place in index.tolist():
            begin = entry.begin + place * row
            if spans and sum(spans[-1]) == begin:
                spans[-1] = (spans[-1][0], spans[-1][1] + row)
            else:
                spans.append((begin, row))
        return self._read_spans(entry.dtype, (len(index), *entry.shape[1:]), spans)

    def _read_strided(self, entry: TensorEntry, start: int, shape: tuple[int, ...]) -> Tensor:
        """Read rows of a tensor that does not lie in row-major order: first all from its first element to its last."""
        stride = entry.stride or ()
        if 0 in shape:
            return torch.empty(shape, dtype=entry.dtype)
        count = sum((size - 1) * step for size, step in zip(shape, stride, strict=True)) + 1
        size = entry.dtype.itemsize
        memory = self._read_spans(entry.dtype, (count,), [(entry.begin + start * stride[0] * size, count * size)])
        return memory.as_strided(shape, stride).clone(memory_format=torch.contiguous_format)

    def _read_spans(self, dtype: torch.dtype, shape: tuple[int, ...], spans: Iterable[tuple[int, int]]) -> Tensor:
        """Read spans of bytes of the file, first byte and length, one after the other into a new tensor."""
        rows = torch.empty(shape, dtype=dtype)
        if not rows.numel():
            return rows
        memory = memory_of(rows)
        try:
            with open_file(self.path) as stream:
                self.check_unchanged(os.fstat(stream.fileno()))
                at = 0
                for begin, length in spans:
                    end = at + length
                    stream.seek(begin)
                    while at < end:
                        count = stream.readinto(memory[at:end])  # type: ignore[attr-defined]
                        if not count:
                            raise WeightsError(f"{self.path} ends early. Start again with a whole file.")
                        at += count
        except OSError as error:
            raise WeightsError(f"{self.path} cannot be read: {error.strerror}.") from error
        return rows

    @abstractmethod
    def write(self, target: Path, values: ValuesOf, advance: Callable[[int], None]) -> None:
        """Write a file like this one with new values; ``advance`` is called with the bytes of each tensor."""

    @abstractmethod
    def retyped(self, dtype: torch.dtype) -> Shard:
        """Return a shard to write with all floating-point tensors in another dtype; values cannot be read from it."""

    def described(self, header: Mapping[str, str]) -> Shard:
        """Return a shard to write with more entries in its header, where files of its kind have one.

        What an earlier run of alignkit says there about itself is left out: it is not about what is written.
        """
        return self

    @abstractmethod
    def extended(self, copies: Mapping[str, str]) -> Shard:
        """Return a shard to write with more tensors, each of the dtype and shape of one that is there.

        Args:
            copies: Names of the new tensors, and of those that they are like. A name that is there already stays, and
                is no longer tied to others.
        """


def memory_of(tensor: Tensor) -> memoryview:
    """Return the bytes of a tensor in row-major order, on the CPU; its own where it is contiguous there."""
    plain = tensor.detach().resolve_conj().resolve_neg().cpu().contiguous()
    # Not reshape: it keeps the stride of one element, whatever that is, and view needs it to be 1.
    array: Any = plain.as_strided((plain.numel(),), (1,)).view(torch.uint8).numpy()
    return memoryview(array)
