"""Files of ``torch.save``: where the bytes of every storage lie, found without torch and without running code.

Two formats are read: zip archives, and the plain stream of torch before 1.6. torch writes what it archives as it is, so
whatever is compressed, encrypted or inconsistent was written by something else, and is refused: torch itself reads some
of these files as other numbers than they hold.
"""

from __future__ import annotations

import io
import os
import struct
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from alignkit.checkpoints.opening import MAX_TEXT, open_file
from alignkit.checkpoints.outline import Storage, UnknownName, read_outline
from alignkit.errors import WeightsError
from alignkit.text import first_line, list_some, readable_bytes

SAVE_ALONE = "Save the state dict alone: torch.save(model.state_dict(), path)."
BY_KEY = "Or, if the file holds one already, say where: key='state_dict' (--key state_dict); then nothing else is read."
_SAVE_AGAIN = "Read it with torch.load(path, weights_only=True), and write it again with torch.save."
_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
"""How the plain stream begins."""
_LOCAL_HEADER = struct.Struct("<4s5H3I2H")
_LENGTHS_BEHIND, _ENCRYPTED = 1 << 3, 1 << 0 | 1 << 6 | 1 << 13
"""Flags of zip entries: lengths stand behind the data; the data or the directory are encrypted."""
_IN_ZIP64 = 0xFFFFFFFF
_CHUNK = 1 << 20


@dataclass(frozen=True)
class TorchArchive:
    """A file of ``torch.save``: the outline of its content, and the file's state when it was read.

    Attributes:
        content: What was saved, with a `StoredTensor` for each tensor.
        status: Size and time of the file.
    """

    content: Any
    status: os.stat_result


def read_archive(path: Path, *, check_sums: bool = False, whatever_else: bool = False) -> TorchArchive:
    """Read the outline of a file.

    Args:
        path: The file.
        check_sums: Whether the check sums of a zip archive are held against its bytes, all of which are read for that.
        whatever_else: Whether objects of any class may stand beside the tensors. None of them is made.

    Raises:
        WeightsError: It cannot be read, is damaged or compressed, is of another kind, or needs code to be run.
    """
    try:
        with open_file(path) as stream:
            status = os.fstat(stream.fileno())
            is_zip = stream.read(4) == b"PK\x03\x04"
            stream.seek(0)
            content = (
                _read_zip(stream, check_sums, whatever_else)
                if is_zip
                else _read_stream(stream, status.st_size, whatever_else)
            )
    except OSError as error:
        raise WeightsError(f"{path} cannot be read: {error.strerror or error}.") from error
    except UnknownName as error:
        danger = "holds more than tensors, and reading it could run code from the file, so it is refused"
        raise WeightsError(f"{path} {danger}: {first_line(error)}. {SAVE_ALONE} {BY_KEY}") from error
    except WeightsError as error:
        raise WeightsError(f"{path} {error}") from error
    except Exception as error:  # A damaged pickle can make the unpickler stumble anywhere: IndexError, TypeError.
        raise WeightsError(f"{path} cannot be read: {type(error).__name__}: {first_line(error)}.") from error
    return TorchArchive(content, status)


def _read_zip(stream: BinaryIO, check_sums: bool, whatever_else: bool) -> Any:
    records = _records(stream, check_sums)
    root = next(iter(records)).partition("/")[0]
    if f"{root}/constants.pkl" in records:
        raise WeightsError(f"is a TorchScript archive, which holds code. {SAVE_ALONE}")
    if f"{root}/data.pkl" not in records:
        raise WeightsError("is a zip archive, but not one of torch.save.")
    begin, length = records.get(f"{root}/byteorder", (0, 0))
    stream.seek(begin)
    if stream.read(length) not in (b"", b"little"):
        raise WeightsError(f"holds big-endian numbers. {_SAVE_AGAIN}")
    begin, length = records[f"{root}/data.pkl"]
    if length > MAX_TEXT:
        raise ValueError(f"its pickle has {readable_bytes(length)}, the maximum is {readable_bytes(MAX_TEXT)}")
    stream.seek(begin)
    storages: dict[str, Storage] = {}
    content = read_outline(io.BytesIO(stream.read(length)), storages, whatever_else=whatever_else)
    for key, storage in storages.items():
        storage.begin, length = records[f"{root}/data/{key}"]
        if length != storage.nbytes:
            raise ValueError(f"its storage {key} has {length} bytes, its tensors need {storage.nbytes}")
    return content


def _records(stream: BinaryIO, check_sums: bool) -> Mapping[str, tuple[int, int]]:
    """Find first byte and length of each entry of a zip archive, all of which lie there uncompressed."""
    with zipfile.ZipFile(stream) as archive:
        entries, end = archive.infolist(), archive.start_dir
    if packed := [entry.filename for entry in entries if entry.compress_type != zipfile.ZIP_STORED]:
        raise WeightsError(
            f"has compressed entries ({list_some(packed, 3)}), which torch.save does not write. {_SAVE_AGAIN}"
        )
    records: dict[str, tuple[int, int]] = {}
    before = 0
    for entry in sorted(entries, key=lambda entry: entry.header_offset):
        begin = _begin(stream, entry)
        if entry.header_offset < before or (not records and entry.header_offset):
            raise ValueError(f"its entry {entry.filename!r} does not begin where another ends")
        before = begin + entry.file_size
        records[entry.filename] = begin, entry.file_size
        if check_sums and _crc(stream, begin, entry.file_size) != entry.CRC:
            raise ValueError(f"the check sum of its entry {entry.filename!r} is wrong: a bit was changed")
    if before > end:
        raise ValueError("its last entry reaches into the directory")
    if len({name.casefold() for name in records}) < len(entries):
        raise ValueError("two of its entries have the same name")
    return records


def _begin(stream: BinaryIO, entry: zipfile.ZipInfo) -> int:
    """Find where the bytes of an entry begin; raise ValueError if its own header and the directory disagree."""
    stream.seek(entry.header_offset)
    header = stream.read(_LOCAL_HEADER.size)
    signature, _, flags, method, *_, packed, size, name_length, extra_length = _LOCAL_HEADER.unpack(header)
    name = stream.read(name_length).decode("utf-8" if flags & 0x800 else "cp437")
    told = {packed, size} if not flags & _LENGTHS_BEHIND else set()
    agrees = (signature, flags, method, name) == (
        b"PK\x03\x04",
        entry.flag_bits,
        entry.compress_type,
        entry.orig_filename,
    )
    if not agrees or told - {entry.file_size, _IN_ZIP64} or entry.compress_size != entry.file_size:
        raise ValueError(f"its entry {entry.filename!r} is described in two ways that disagree")
    if flags & _ENCRYPTED:
        raise ValueError(f"its entry {entry.filename!r} is encrypted")
    begin: int = entry.header_offset + _LOCAL_HEADER.size + name_length + extra_length
    return begin


def _crc(stream: BinaryIO, begin: int, length: int) -> int:
    stream.seek(begin)
    crc = 0
    while length and (chunk := stream.read(min(length, _CHUNK))):
        crc, length = zlib.crc32(chunk, crc), length - len(chunk)
    return crc


def _read_stream(stream: BinaryIO, size: int, whatever_else: bool) -> Any:
    """Read the stream of torch before 1.6: four pickles, the keys of the storages, then each with its length."""
    storages: dict[str, Storage] = {}
    text = io.BytesIO(stream.read(MAX_TEXT))
    try:
        begins = (read_outline(text, storages), read_outline(text, storages)) == (_MAGIC, _PROTOCOL)
    except Exception as error:
        raise WeightsError("cannot be read: it is not a file of torch.save.") from error
    if not begins:
        raise WeightsError("cannot be read: it is not a file of torch.save, or of one before 0.4.")
    read_outline(text, storages)  # of the machine that wrote it
    content = read_outline(text, storages, whatever_else=whatever_else)
    keys = read_outline(text, storages)
    at = text.tell()
    for key in keys:
        storage = storages[str(key)]
        stream.seek(at)
        count = int.from_bytes(stream.read(8), "little")
        storage.begin, at = at + 8, at + 8 + storage.nbytes
        if count * storage.dtype.itemsize != storage.nbytes or at > size:
            raise ValueError(f"its storage {key} is cut short, or has another length than its tensors need")
    if missing := [key for key, storage in storages.items() if storage.begin < 0]:
        raise ValueError(f"its storages {list_some(missing)} are missing")
    return content
