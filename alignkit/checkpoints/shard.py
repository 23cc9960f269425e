"""What a weights file of any format offers: facts of its tensors, values on demand, a copy with new values."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from alignkit.errors import WeightsError
from alignkit.text import dtype_name

SAFETENSORS_SUFFIXES = (".safetensors",)
PICKLE_SUFFIXES = (".pt", ".pth", ".bin")
KNOWN_SUFFIXES = ", ".join((*SAFETENSORS_SUFFIXES, *PICKLE_SUFFIXES))
"""Suffixes of weights files, for messages."""

Values: TypeAlias = Tensor | Iterable[Tensor]
"""A whole tensor, or its rows from first to last in pieces."""
ValuesOf: TypeAlias = Callable[[str], Values]


@dataclass(frozen=True)
class TensorEntry:
    """A tensor in a file: its name, dtype and shape, and where its bytes start in the file (0 where that is open)."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    begin: int = 0

    @property
    def nbytes(self) -> int:
        """Bytes of its values."""
        return prod(self.shape) * self.dtype.itemsize

    def check(self, values: Tensor, path: Path, rows: int | None = None) -> None:
        """Raise `WeightsError` unless new values (or a piece of ``rows`` rows) are dense, of this dtype and shape."""
        shape = self.shape if rows is None else (rows, *self.shape[1:])
        if not isinstance(values, Tensor) or values.layout != torch.strided or values.is_meta:
            raise WeightsError(f"cannot write {path}: the new values of {self.name!r} are not a dense tensor.")
        if values.dtype != self.dtype or tuple(values.shape) != shape:
            old, new = f"{dtype_name(self.dtype)} {[*self.shape]}", f"{dtype_name(values.dtype)} {[*values.shape]}"
            raise WeightsError(f"cannot write {path}: {self.name!r} is {old}, the new values are {new}.")


def file_kind(path: Path) -> Literal["safetensors", "pickle"] | None:
    """Tell the kind of a weights file by its suffix; None for any other."""
    if path.suffix in SAFETENSORS_SUFFIXES:
        return "safetensors"
    return "pickle" if path.suffix in PICKLE_SUFFIXES else None


class Shard(ABC):
    """One weights file, opened without its values: facts of its tensors, by name, and text entries of its header."""

    path: Path
    entries: Mapping[str, TensorEntry]
    metadata: Mapping[str, str]
    _opened_as: os.stat_result

    def check_unchanged(self, now: os.stat_result) -> None:
        """Raise `WeightsError` if size, inode or time of the file are not those that it had when it was opened."""
        before = self._opened_as
        if (now.st_size, now.st_ino, now.st_mtime_ns) != (before.st_size, before.st_ino, before.st_mtime_ns):
            raise WeightsError(f"{self.path} was changed while it was being read. Start again.")

    @abstractmethod
    def read(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        """Read a tensor, or rows ``start`` to ``stop`` of it, into memory of its own."""

    @abstractmethod
    def take(self, name: str, index: Tensor) -> Tensor:
        """Read the rows of a tensor that ``index`` (int64) names, in its order, into memory of their own."""

    @abstractmethod
    def write(self, target: Path, values: ValuesOf, advance: Callable[[int], None]) -> None:
        """Write a file like this one with new values; ``advance`` is called with the bytes of each tensor."""
