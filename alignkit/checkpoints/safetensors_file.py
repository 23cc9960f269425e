"""Safetensors files, read and written tensor by tensor.

The header is checked here (length, names, dtypes) and by the safetensors library (offsets, sizes). Values are read
into memory of their own and not through a memory map, so that pages of the file never count as memory of the process,
and a file that is cut short while it is read is an error and not a crash.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from alignkit.checkpoints.shard import FileStamp, Shard, TensorEntry, Values, ValuesOf
from alignkit.errors import WeightsError

MAX_HEADER = 100_000_000
"""Maximum number of bytes of a header; the limit of the safetensors format."""
_PREFIX = 8
"""Bytes that hold the length of the header, little-endian."""
_RESERVED = "__metadata__"
_NAMES = {
    "BOOL": "bool",
    "U8": "uint8",
    "I8": "int8",
    "I16": "int16",
    "U16": "uint16",
    "I32": "int32",
    "U32": "uint32",
    "I64": "int64",
    "U64": "uint64",
    "F16": "float16",
    "BF16": "bfloat16",
    "F32": "float32",
    "F64": "float64",
    "C64": "complex64",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "F8_E8M0": "float8_e8m0fnu",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
}
DTYPES: dict[str, torch.dtype] = {key: getattr(torch, name) for key, name in _NAMES.items() if hasattr(torch, name)}
"""Dtypes by their name in the header, as far as the installed torch has them."""


class SafetensorsShard(Shard):
    """A safetensors file.

    Args:
        path: The file.

    Raises:
        WeightsError: It cannot be read, or is damaged: cut short, a header that is too long or not JSON, a name that
            comes twice, a dtype that torch does not have, or sizes that do not fit.
    """

    streams = True

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with path.open("rb") as stream:
                self._stamp = FileStamp.of(os.fstat(stream.fileno()))
                self._header = _read_header(stream.read, self._stamp.size)
            table = _parsed(self._header[_PREFIX:])
            with safetensors.safe_open(path, "pt"):
                pass  # The library checks that offsets, sizes and the length of the file fit each other.
            self.metadata: Mapping[str, str] = table.pop(_RESERVED, None) or {}
            self.entries = {name: _entry(name, facts, len(self._header)) for name, facts in table.items()}
        except (safetensors.SafetensorError, OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else error
            raise WeightsError(f"{path} cannot be read as safetensors: {reason}.") from error

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        """Read a tensor, or rows ``start`` to ``stop`` of it, into memory of its own.

        Raises:
            WeightsError: The file was changed since it was opened, or cannot be read.
        """
        entry = self.entries[name]
        if not entry.shape or (start == 0 and stop in (None, entry.shape[0])):
            rows = torch.empty(entry.shape, dtype=entry.dtype)
            spans = [(entry.begin, entry.nbytes)]
        else:
            stop = entry.shape[0] if stop is None else stop
            rows = torch.empty((stop - start, *entry.shape[1:]), dtype=entry.dtype)
            row = entry.nbytes // entry.shape[0] if entry.shape[0] else 0
            spans = [(entry.begin + start * row, (stop - start) * row)]
        self._fill(rows, spans)
        return rows

    def read_into(self, rows: Tensor, name: str, index: Tensor) -> None:
        """Read the rows that ``index`` names, in its order; rows that follow each other are read at once."""
        entry = self.entries[name]
        row = entry.nbytes // entry.shape[0]
        spans: list[tuple[int, int]] = []
        for place in index.tolist():
            begin = entry.begin + place * row
            if spans and sum(spans[-1]) == begin:
                spans[-1] = (spans[-1][0], spans[-1][1] + row)
            else:
                spans.append((begin, row))
        self._fill(rows, spans)

    def _fill(self, target: Tensor, spans: Iterable[tuple[int, int]]) -> None:
        """Read spans of bytes of the file, one after the other, into a contiguous tensor."""
        if not target.numel():
            return
        memory = _memory_of(target)
        try:
            with self.path.open("rb", buffering=0) as stream:
                self._stamp.check(os.fstat(stream.fileno()), self.path)
                at = 0
                for begin, length in spans:
                    end = at + length
                    stream.seek(begin)
                    while at < end:
                        count = stream.readinto(memory[at:end])
                        if not count:
                            raise WeightsError(f"{self.path} ends early. Start again with a whole file.")
                        at += count
        except OSError as error:
            raise WeightsError(f"{self.path} cannot be read: {error.strerror}.") from error

    def write(self, target: Path, values: ValuesOf, advance: Callable[[int], None]) -> None:
        """Write a file with the same header, byte for byte, and new values, one tensor or piece after the other."""
        with target.open("wb", buffering=0) as stream:
            _write_all(stream.fileno(), memoryview(self._header))
            for entry in sorted(self.entries.values(), key=lambda e: e.begin):
                written = 0
                for piece in _check_pieces(entry, values(entry.name), target):
                    memory = _memory_of(piece.detach().resolve_conj().resolve_neg().cpu())
                    _write_all(stream.fileno(), memory)
                    written += memory.nbytes
                    advance(memory.nbytes)
                if written != entry.nbytes:
                    raise WeightsError(
                        f"cannot write {target}: {entry.name!r} has {entry.nbytes} bytes, "
                        f"the new values have {written}."
                    )


def save_safetensors(tensors: Mapping[str, Tensor], target: Path, metadata: Mapping[str, str] | None = None) -> None:
    """Write named tensors to a new file; those that share memory are written once for each name."""
    plain = {n: t.detach().cpu().clone(memory_format=torch.contiguous_format) for n, t in tensors.items()}
    # No metadata has to be None: for no tensors safetensors 0.8 writes an empty dict as broken JSON.
    safetensors.torch.save_file(plain, target, dict(metadata) if metadata else None)


def _check_pieces(entry: TensorEntry, values: Values, target: Path) -> Iterator[Tensor]:
    """Check new values, a whole tensor or pieces of it, one by one as they come."""
    if isinstance(values, Tensor):
        entry.check(values, target)
        yield values
        return
    for piece in values:
        entry.check(piece, target, rows=piece.shape[0] if isinstance(piece, Tensor) and piece.ndim else 0)
        yield piece


def _memory_of(tensor: Tensor) -> memoryview:
    """Return the bytes of a tensor in row-major order; its own where it is contiguous."""
    array: Any = tensor.contiguous().reshape(-1).view(torch.uint8).numpy()
    return memoryview(array)


def _write_all(handle: int, memory: memoryview) -> None:
    at = 0
    while at < len(memory):
        at += os.write(handle, memory[at:])


def _read_header(read: Callable[[int], bytes], size: int) -> bytes:
    """Read the first bytes of the file: the length of the header, and the header."""
    prefix = read(_PREFIX)
    if len(prefix) < _PREFIX:
        raise ValueError(f"the file has {size} bytes, which is too short for a header")
    length = int.from_bytes(prefix, "little")
    if length > MAX_HEADER:
        raise ValueError(f"the header claims {length} bytes, the maximum is {MAX_HEADER}")
    if _PREFIX + length > size:
        raise ValueError(f"the header claims {length} bytes, but the file has {size} bytes in all: it is cut short")
    return prefix + read(length)


def _parsed(header: bytes) -> dict[str, Any]:
    table = json.loads(header, object_pairs_hook=without_duplicates)
    if not isinstance(table, dict):
        raise ValueError("the header is not a JSON object")
    return table


def without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make a dict of the pairs of a JSON object.

    Raises:
        ValueError: A name comes twice.
    """
    table = dict(pairs)
    if len(table) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the name {twice!r} comes twice")
    return table


def _entry(name: str, facts: Mapping[str, Any], data: int) -> TensorEntry:
    dtype = DTYPES.get(facts["dtype"])
    if dtype is None:
        raise ValueError(f"{name!r} has dtype {facts['dtype']}, which the installed torch cannot hold")
    begin, end = facts["data_offsets"]
    entry = TensorEntry(name, dtype, tuple(facts["shape"]), data + begin)
    if end - begin != entry.nbytes:
        raise ValueError(f"{name!r} has {end - begin} bytes, {facts['dtype']} {facts['shape']} needs {entry.nbytes}")
    return entry
