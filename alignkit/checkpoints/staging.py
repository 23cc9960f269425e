"""Outputs that appear whole or not at all: written beside their place, flushed to the disk, then renamed.

A run that is killed leaves only a hidden file or folder ``.NAME.xxxxxxxx.part`` beside the output. A run holds a lock
(flock(2)) on what it is writing, and the kernel drops the lock when the run ends, however it ends; so the next run to
the same output can tell leftovers from the work of a live run, and removes them.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import secrets
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from alignkit.errors import WeightsError

if sys.platform != "win32":
    import fcntl

_NAME_LENGTH = 120
"""Characters of the output's name that its temporary name repeats; file systems allow 255."""
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2
_EXISTS = "cannot write {}: it exists. Choose another name, or ask for it to be replaced."


@contextmanager
def staged(output: Path, *, folder: bool = False, overwrite: bool = True) -> Iterator[Path]:
    """Give a temporary path beside ``output`` that takes its place when the block ends well, and disappears otherwise.

    Args:
        output: Where the result belongs.
        folder: Whether it is a folder. The temporary folder or the empty temporary file exists already.
        overwrite: Whether an output that exists is replaced. A folder is exchanged in one step where the system can.

    Raises:
        WeightsError: The output's folder is missing or cannot be written to, the disk is full, or the output exists
            and ``overwrite`` is False.
    """
    if output.is_symlink():
        output = output.resolve()
    parent = output.parent
    check_output(output, folder, overwrite)
    temporary: Path | None = None
    lock: int | None = None
    try:
        remove_stale(output)
        temporary, lock = _claim(output, folder)
        mode = temporary.stat().st_mode & 0o666
        yield temporary
        _flush(temporary, mode)
        _publish(temporary, output, folder, overwrite)
        _sync(parent)
    except OSError as error:
        if not overwrite and error.errno in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR) and _taken(output):
            raise WeightsError(_EXISTS.format(output)) from error
        raise WeightsError(f"cannot write {output}: {error.strerror or error}.") from error
    finally:
        if temporary is not None:
            remove(temporary)
        if lock is not None:
            os.close(lock)


def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8; either the whole file appears, or nothing changes and `WeightsError` is raised."""
    with staged(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def check_output(output: Path, folder: bool, overwrite: bool) -> None:
    """Raise `WeightsError` if the output has no folder to be in, is one and should not be, or is not to be replaced."""
    if not output.parent.is_dir():
        raise WeightsError(f"cannot write {output}: the folder {output.parent} does not exist. Create it first.")
    if not folder and output.is_dir():
        raise WeightsError(f"cannot write {output}: it is a folder.")
    if not overwrite and _taken(output):
        raise WeightsError(_EXISTS.format(output))


def remove_stale(output: Path) -> int:
    """Remove what killed runs to this output left behind, not what live runs are writing; return how many it was."""
    if sys.platform == "win32":
        return 0
    pattern = re.compile(re.escape(f".{output.name[:_NAME_LENGTH]}.") + r"[0-9a-f]{8}\.part")
    removed = 0
    for leftover in [entry for entry in os.scandir(output.parent) if pattern.fullmatch(entry.name)]:
        with suppress(OSError):
            handle = os.open(leftover.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                remove(Path(leftover.path))
                removed += 1
            finally:
                os.close(handle)
    return removed


def remove(path: Path) -> None:
    """Remove a file or a folder if it is there; what cannot be removed stays."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink(missing_ok=True)


def _taken(output: Path) -> bool:
    """Whether something is there; an empty folder counts as free."""
    return output.exists() and not (output.is_dir() and not any(output.iterdir()))


def _claim(output: Path, folder: bool) -> tuple[Path, int | None]:
    """Make a temporary file or folder and lock it, so that no other run takes it for a leftover."""
    while True:
        path = output.with_name(f".{output.name[:_NAME_LENGTH]}.{secrets.token_hex(4)}.part")
        try:
            if folder:
                path.mkdir()
            else:
                os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        except FileExistsError:
            continue
        if sys.platform == "win32":
            return path, None
        with suppress(FileNotFoundError, BlockingIOError):  # Another run saw it before it was locked: take a new name.
            handle = os.open(path, os.O_RDONLY)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.path.samestat(os.stat(path), os.fstat(handle)):
                    return path, handle
            except FileNotFoundError:
                pass
            except BlockingIOError:
                os.close(handle)
                raise
            except OSError:  # This file system has no locks; leftovers on it are never removed.
                return path, handle
            os.close(handle)


def _flush(path: Path, mode: int) -> None:
    """Flush a file, or a folder with all its files, to the disk; files get the mode that new ones have here."""
    if path.is_dir() and not path.is_symlink():
        for inner in sorted(path.iterdir()):
            _flush(inner, mode)
    elif path.is_file() and not path.is_symlink():
        path.chmod(mode)  # safetensors makes files that only their owner can read
    _sync(path)


def _sync(path: Path) -> None:
    if sys.platform == "win32" and path.is_dir():
        return
    handle = os.open(path, os.O_RDONLY if sys.platform != "win32" else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _publish(temporary: Path, output: Path, folder: bool, overwrite: bool) -> None:
    """Rename to the output; swap two folders in one step where the system has it (renameat2 of Linux)."""
    if not folder and not overwrite:
        try:
            os.link(temporary, output)  # Fails where another run was first.
            return
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.ENOTSUP):
                raise
        # No hard links here; the check at the start has to do.
    if not (folder and overwrite and _taken(output)):
        os.replace(temporary, output)
        return
    swap = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None) if sys.platform == "linux" else None
    if swap is not None:
        if swap(_AT_FDCWD, os.fsencode(temporary), _AT_FDCWD, os.fsencode(output), _RENAME_EXCHANGE) == 0:
            return
        code = ctypes.get_errno()
        if code not in (errno.EINVAL, errno.ENOSYS):
            raise OSError(code, os.strerror(code))
    old = output.with_name(f".{output.name[:_NAME_LENGTH]}.{secrets.token_hex(4)}.old")
    os.rename(output, old)
    try:
        os.rename(temporary, output)
    except OSError:
        os.rename(old, output)
        raise
    remove(old)
