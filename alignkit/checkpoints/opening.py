"""Opening what is read: regular files only, so that nothing waits for a writer or reads a device without an end."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO

from alignkit.text import readable_bytes

MAX_TEXT = 100_000_000
"""Maximum number of bytes of a header, an index or another text; the limit that the safetensors format has."""
_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def open_file(path: str | Path) -> BinaryIO:
    """Open a regular file for reading. Links are followed.

    Raises:
        OSError: It is missing or cannot be read, its name is impossible, or it is a folder, a pipe, a socket or a
            device. Its ``strerror`` says which.
    """
    try:
        _refuse_special(os.stat(path))
        # Should a pipe take the place of the file now, opening it does not wait.
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except ValueError as error:  # a null character, or one that is no Unicode
        raise OSError(errno.EINVAL, "no file can have this name") from error
    stream = os.fdopen(handle, "rb")
    try:
        _refuse_special(os.fstat(handle))
    except OSError:
        stream.close()
        raise
    return stream


def read_file(path: str | Path, most: int = MAX_TEXT) -> bytes:
    """Read a regular file that has at most ``most`` bytes; raise `OSError` as `open_file` does, or if it has more."""
    with open_file(path) as stream:
        content = stream.read(most + 1)
    if len(content) > most:
        raise OSError(errno.EFBIG, f"it has more than {readable_bytes(most)}, the maximum for such a file")
    return content


def is_folder(path: str | Path) -> bool:
    """Tell a folder from anything else that exists; raise `OSError` where nothing is there or it cannot be told."""
    try:
        return stat.S_ISDIR(os.stat(path).st_mode)
    except ValueError as error:
        raise OSError(errno.EINVAL, "no file can have this name") from error


def _refuse_special(status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        kind = _KINDS.get(stat.S_IFMT(status.st_mode), "something else")
        raise OSError(errno.EINVAL, f"it is {kind}, not a file")
