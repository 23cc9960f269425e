"""Files of ``torch.save``, good and damaged: other compressions, headers that disagree, pickles written by hand."""

from __future__ import annotations

import io
import pickle
import struct
import zipfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch


def saved(content: object, *, legacy: bool = False) -> bytes:
    """Return the bytes that ``torch.save`` writes."""
    stream = io.BytesIO()
    torch.save(content, stream, _use_new_zipfile_serialization=not legacy)
    return stream.getvalue()


def repacked(
    whole: bytes,
    compression: int = zipfile.ZIP_STORED,
    only: Callable[[str], bool] = lambda name: True,
    replace: Mapping[str, bytes] | None = None,
    extra: Iterable[tuple[str, bytes]] = (),
    comment: bytes = b"",
) -> bytes:
    """Write the entries of a zip archive into a new one: some compressed, replaced, or added."""
    stream = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(whole)) as old, zipfile.ZipFile(stream, "w") as new:
        for name in old.namelist():
            content = (replace or {}).get(name.partition("/")[2], old.read(name))
            new.writestr(zipfile.ZipInfo(name), content, compression if only(name) else zipfile.ZIP_STORED)
        for name, content in extra:
            new.writestr(zipfile.ZipInfo(name), content)
        new.comment = comment
    return stream.getvalue()


def local_header(whole: bytes, entry: str, field: int, change: Callable[[int], int]) -> bytes:
    """Change 2 bytes at ``field`` of the header that stands before an entry, and not those in the directory."""
    damaged = bytearray(whole)
    with zipfile.ZipFile(io.BytesIO(whole)) as archive:
        at = next(info for info in archive.infolist() if info.filename.endswith(entry)).header_offset + field
    struct.pack_into("<H", damaged, at, change(struct.unpack_from("<H", damaged, at)[0]) & 0xFFFF)
    return bytes(damaged)


def directory(whole: bytes, entry: str, field: int, change: Callable[[int], int]) -> bytes:
    """Change 4 bytes at ``field`` of the line of an entry in the directory at the end."""
    damaged = bytearray(whole)
    at = whole.rindex(b"PK\x01\x02", 0, whole.rindex(entry.encode()) + 1) + field
    struct.pack_into("<I", damaged, at, change(struct.unpack_from("<I", damaged, at)[0]) & 0xFFFFFFFF)
    return bytes(damaged)


def write_pickle(path: Path, codes: bytes) -> None:
    """Write an archive whose pickle is made of codes by hand, beside one storage of four float32."""
    path.write_bytes(repacked(saved({"w": torch.arange(4.0)}), replace={"data.pkl": b"\x80\x02" + codes + b"."}))


def text(value: str) -> bytes:
    """Return the code of a text."""
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def number(value: int) -> bytes:
    """Return the code of an integer of any size."""
    return pickle.dumps(value, 2)[2:-1]


def name(module: str, attribute: str) -> bytes:
    """Return the code of a global."""
    return f"c{module}\n{attribute}\n".encode()


def storage(count: int = 4, key: str = "0", kind: str = "FloatStorage") -> bytes:
    """Return the codes of a storage."""
    return b"(" + text("storage") + name("torch", kind) + text(key) + text("cpu") + number(count) + b"tQ"


def tensor(*sizes: int, strides: Iterable[int], offset: int = 0, count: int = 4) -> bytes:
    """Return the codes of a tensor."""
    shape = b"(" + b"".join(map(number, sizes)) + b"t"
    steps = b"(" + b"".join(map(number, strides)) + b"t"
    hooks = name("collections", "OrderedDict") + b")R"
    return (
        name("torch._utils", "_rebuild_tensor_v2")
        + b"("
        + storage(count)
        + number(offset)
        + shape
        + steps
        + b"\x89"
        + hooks
        + b"tR"
    )


def loaded(path: Path) -> dict[str, Any]:
    """Read with torch itself."""
    content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return content
