"""Safetensors files, read and written tensor by tensor.

The header is checked here (length, names, dtypes, shapes) and by the safetensors library (offsets, sizes).
"""

from __future__ import annotations

import copy
import errno
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from alignkit.checkpoints.opening import MAX_TEXT, open_file
from alignkit.checkpoints.shard import Shard, TensorEntry, ValuesOf, memory_of
from alignkit.errors import WeightsError
from alignkit.text import first_line

_PREFIX = 8
"""Bytes that hold the length of the header, little-endian."""
RESERVED_NAME = "__metadata__"
"""The one name that a safetensors file cannot hold a tensor by."""
ENTRY = "alignkit"
"""Entry of a header that holds a document of alignkit as a JSON text: what the file is, or what made it."""
_NAMES = {
    **{f"I{bits}": f"int{bits}" for bits in (8, 16, 32, 64)},
    **{f"U{bits}": f"uint{bits}" for bits in (8, 16, 32, 64)},
    **{f"F{bits}": f"float{bits}" for bits in (16, 32, 64)},
    **{"BOOL": "bool", "BF16": "bfloat16", "C64": "complex64"},
    **{"F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "F8_E8M0": "float8_e8m0fnu"},
    **{"F8_E4M3FNUZ": "float8_e4m3fnuz", "F8_E5M2FNUZ": "float8_e5m2fnuz"},
}
DTYPES: dict[str, torch.dtype] = {key: getattr(torch, name) for key, name in _NAMES.items() if hasattr(torch, name)}
"""Dtypes by their name in the header, as far as the installed torch has them."""


class SafetensorsShard(Shard):
    """A safetensors file.

    Raises:
        WeightsError: It cannot be read, or is damaged: cut short, a header that is too long or not JSON, a name that
            comes twice, a dtype that torch does not have, or sizes that do not fit.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._header = self._read_header()
            table = json.loads(self._header[_PREFIX:], object_pairs_hook=without_duplicates)
            if not isinstance(table, dict):
                raise ValueError("the header is not a JSON object")
            with safetensors.safe_open(path, "pt"):
                pass  # The library checks that offsets, sizes and the length of the file fit each other.
            self.metadata: Mapping[str, str] = table.pop(RESERVED_NAME, None) or {}
            entries: dict[str, TensorEntry] = {}
            for name, facts in table.items():
                dtype, (begin, end) = DTYPES.get(facts["dtype"]), facts["data_offsets"]
                if dtype is None:
                    raise ValueError(f"{name!r} has dtype {facts['dtype']}, which the installed torch cannot hold")
                entries[name] = entry = TensorEntry(name, dtype, tuple(facts["shape"]), len(self._header) + begin)
                if end - begin != entry.nbytes:
                    needed = f"{facts['dtype']} {facts['shape']} needs {entry.nbytes}"
                    raise ValueError(f"{name!r} has {end - begin} bytes, {needed}")
            self.entries, self.first_names = entries, {name: name for name in entries}
        except (safetensors.SafetensorError, OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else error
            raise WeightsError(f"{path} cannot be read as safetensors: {reason}.") from error

    def _read_header(self) -> bytes:
        """Read the first bytes of the file: the length of the header, and the header."""
        with open_file(self.path) as stream:
            self._opened_as = os.fstat(stream.fileno())
            size, prefix = self._opened_as.st_size, stream.read(_PREFIX)
            if len(prefix) < _PREFIX:
                raise ValueError(f"the file has {size} bytes, which is too short for a header")
            length = int.from_bytes(prefix, "little")
            if length > MAX_TEXT:
                raise ValueError(f"the header claims {length} bytes, the maximum is {MAX_TEXT}")
            if _PREFIX + length > size:
                both = f"the header claims {length} bytes, but the file has {size} bytes in all"
                raise ValueError(f"{both}: it is cut short")
            return prefix + stream.read(length)

    def write(self, target: Path, values: ValuesOf, advance: Callable[[int], None]) -> None:
        """Write a file with the same header, byte for byte, and new values, one tensor or piece after the other."""
        with target.open("wb", buffering=0) as stream:
            _write_all(stream.fileno(), memoryview(self._header))
            for entry in sorted(self.entries.values(), key=lambda e: e.begin):
                new, written = values(entry.name), 0
                for piece in [new] if isinstance(new, Tensor) else new:
                    rows = piece.shape[0] if isinstance(piece, Tensor) and piece.ndim else 0
                    entry.check(piece, target, None if piece is new else rows)
                    memory = memory_of(piece)
                    _write_all(stream.fileno(), memory)
                    written += memory.nbytes
                    advance(memory.nbytes)
                if written != entry.nbytes:
                    sizes = f"{entry.name!r} has {entry.nbytes} bytes, the new values have {written}"
                    raise WeightsError(f"cannot write {target}: {sizes}.")

    def extended(self, copies: Mapping[str, str]) -> SafetensorsShard:
        """Return a shard to write with more tensors at its end; see `Shard.extended`."""
        other, table = copy.copy(self), json.loads(self._header[_PREFIX:])
        entries = dict(self.entries)
        end = max((entry.begin + entry.nbytes for entry in entries.values()), default=len(self._header))
        for name, like in copies.items():
            if name not in entries:
                entries[name] = replace(entries[like], name=name, begin=end)
                offsets = [end - len(self._header), end - len(self._header) + entries[name].nbytes]
                table[name] = {**table[like], "data_offsets": offsets}
                end += entries[name].nbytes
        other.entries, other.first_names = entries, {name: name for name in entries}
        other._header = _header_of(table)
        return other

    def retyped(self, dtype: torch.dtype) -> SafetensorsShard:
        """Return a shard to write with all floating-point tensors in another dtype; see `Shard.retyped`."""
        other, table, end = copy.copy(self), json.loads(self._header[_PREFIX:]), 0
        codes = {known: code for code, known in DTYPES.items()}
        other.entries = {name: entry.retyped(dtype) for name, entry in self.entries.items()}
        for name, entry in sorted(other.entries.items(), key=lambda item: item[1].begin):
            table[name] |= {"dtype": codes[entry.dtype], "data_offsets": [end, end + entry.nbytes]}
            end += entry.nbytes
        other._header = _header_of(table)
        return other

    def described(self, header: Mapping[str, str]) -> SafetensorsShard:
        """Return a shard to write with more entries in its header; see `Shard.described`."""
        kept = {key: text for key, text in self.metadata.items() if key != ENTRY}
        if not header and len(kept) == len(self.metadata):
            return self
        other, table = copy.copy(self), json.loads(self._header[_PREFIX:])
        # Without a format transformers takes no file whose header has other entries.
        other.metadata = {"format": "pt", **kept, **header}
        other._header = _header_of({**table, RESERVED_NAME: other.metadata})
        return other


def _header_of(table: Mapping[str, Any]) -> bytes:
    """Return the header of a file: its length, and the facts of its tensors."""
    text = json.dumps(table, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _PREFIX)  # values begin at a multiple of 8, as the library has it
    return len(text).to_bytes(_PREFIX, "little") + text


def save_safetensors(tensors: Mapping[str, Tensor], target: Path, metadata: Mapping[str, str] | None = None) -> None:
    """Write named tensors to a new file; those that share memory are written once for each name.

    `OSError` is raised where the disk is full or cannot be written to.
    """
    plain = {n: t.detach().cpu().clone(memory_format=torch.contiguous_format) for n, t in tensors.items()}
    # No metadata has to be None: for no tensors safetensors 0.8 writes an empty dict as broken JSON.
    try:
        safetensors.torch.save_file(plain, target, dict(metadata) if metadata else None)
    except safetensors.SafetensorError as error:  # the library's way to say so
        raise OSError(errno.EIO, first_line(error)) from error


def _write_all(handle: int, memory: memoryview) -> None:
    at = 0
    while at < len(memory):
        at += os.write(handle, memory[at:])


def without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make a dict of the pairs of a JSON object; raise `ValueError` if a name comes twice."""
    table = dict(pairs)
    if len(table) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the name {twice!r} comes twice")
    return table
