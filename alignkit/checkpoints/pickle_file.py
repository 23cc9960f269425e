"""Files of ``torch.save``: read with ``weights_only=True`` and nothing else, as a memory map where that is possible.

A file is written whole from memory, one shard at a time.
"""

from __future__ import annotations

import errno
import pickle
import warnings
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from alignkit.checkpoints.dtypes import as_bits
from alignkit.checkpoints.fit import first_names
from alignkit.checkpoints.shard import Shard, TensorEntry, ValuesOf
from alignkit.errors import WeightsError
from alignkit.text import first_line

NESTED = "state_dict"
"""Key of the tensors in training checkpoints that hold more."""
_SAVE_ALONE = "Save the state dict alone: torch.save(model.state_dict(), path)."
_REMAP = 1 << 26
"""Bytes read through one memory map before it is dropped, so that its pages do not pile up in memory."""


class PickleShard(Shard):
    """A state dict written by ``torch.save``, or a dict that has one under ``"state_dict"``.

    Raises:
        WeightsError: It cannot be read, holds more than tensors, or needs code from the file to be run.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.metadata: Mapping[str, str] = {}
        self._opened_as = path.stat()
        self._mapped: dict[str, Tensor] | None = None
        self._is_mapped, self._read = False, 0
        tensors = self._tensors()
        for name, tensor in tensors.items():
            if tensor.layout != torch.strided or tensor.is_meta:
                raise WeightsError(f"{path}: {name!r} is {tensor.layout} on {tensor.device}; dense tensors are needed.")
        self.entries = {name: TensorEntry(name, t.dtype, tuple(t.shape)) for name, t in tensors.items()}
        self._first_names = first_names(tensors)
        self._mapped = None

    def _tensors(self) -> dict[str, Tensor]:
        """Return the named tensors of the file, mapped into memory anew from time to time."""
        if self._mapped is None or (self._is_mapped and self._read > _REMAP):
            self.check_unchanged(self.path.stat())
            loaded = load_pickle(self.path)
            self._is_mapped = _is_zip(self.path)
            nested = loaded.get(NESTED)
            self._nested = isinstance(nested, Mapping)
            state = nested if isinstance(nested, Mapping) else loaded
            for name, value in state.items():
                if not isinstance(value, Tensor):
                    entry = f"entry {name!r} is a {type(value).__name__}, not a tensor"
                    raise WeightsError(f"{self.path}: {entry}. {_SAVE_ALONE}")
            self._module_versions: Any = getattr(state, "_metadata", None)  # as nn.Module.state_dict has them
            self._mapped, self._read = {str(name): tensor.detach() for name, tensor in state.items()}, 0
        return self._mapped

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        """Read a tensor, or rows ``start`` to ``stop`` of it, into memory of its own."""
        tensor = self._tensors()[name]
        part = tensor if start == 0 and stop is None else tensor[start:stop]
        self._read += part.nbytes
        return part.clone(memory_format=torch.contiguous_format)

    def take(self, name: str, index: Tensor) -> Tensor:
        """Read the rows that ``index`` names, in its order."""
        source = self._tensors()[name]
        rows = as_bits(source).index_select(0, index).view(source.dtype)
        self._read += rows.nbytes
        return rows

    def write(self, target: Path, values: ValuesOf, advance: Callable[[int], None]) -> None:
        """Write a file of the same form; tensors that share memory here share it there. Other entries are left out."""
        state: Any = OrderedDict()
        for name, entry in self.entries.items():
            first = self._first_names[name]
            if first == name:
                new = values(name)
                tensor = new if isinstance(new, Tensor) else torch.cat(list(new))
                entry.check(tensor, target)
                state[name] = tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
            else:
                state[name] = state[first]
            advance(entry.nbytes)
        if self._module_versions is None:
            state = dict(state)
        else:
            state._metadata = self._module_versions
        save_pickle({NESTED: state} if self._nested else state, target)


def save_pickle(values: Mapping[str, Any], target: Path) -> None:
    """Write with ``torch.save``; raise `OSError` where the disk is full or cannot be written to.

    The bytes depend on the values alone: given a path, torch would put its name inside.
    """
    try:
        with target.open("wb") as stream:
            torch.save(values, stream)
    except RuntimeError as error:  # torch's way to say so
        if isinstance(error.__context__, OSError):
            raise error.__context__ from error
        raise OSError(errno.EIO, first_line(error)) from error


def load_pickle(path: Path) -> Mapping[str, Any]:
    """Read a file of ``torch.save`` without running code from it, its values as a memory map where possible.

    Raises:
        WeightsError: The file is damaged, is not a mapping, or reading it could run code.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Of a file that is damaged or old; the outcome is checked below.
            loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=_is_zip(path))
    except pickle.UnpicklingError as error:
        danger = "holds more than tensors, and reading it could run code from the file, so it is refused"
        raise WeightsError(f"{path} {danger}. {_SAVE_ALONE}") from error
    except Exception as error:
        # A damaged pickle can make the unpickler stumble anywhere: IndexError, TypeError, and more.
        raise WeightsError(f"{path} cannot be read: {type(error).__name__}: {first_line(error)}.") from error
    if not isinstance(loaded, Mapping):
        raise WeightsError(f"{path} holds a {type(loaded).__name__}, not a state dict of named tensors.")
    return loaded


def _is_zip(path: Path) -> bool:
    with path.open("rb") as stream:
        return stream.read(4) == b"PK\x03\x04"
