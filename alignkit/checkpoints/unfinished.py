"""Unfinished outputs: hidden files and folders beside their place, locked by the run that writes them.

A run that is killed leaves only ``.NAME.xxxxxxxx.alignkit-part`` beside the output. A run holds a lock (flock(2)) on
what it is writing, and the kernel drops the lock when the run ends, however it ends; so the next run to the same output
can tell leftovers from the work of a live run.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import secrets
import shutil
import stat
import sys
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

if sys.platform != "win32":
    import fcntl

PART, RECORD, ASIDE = ".alignkit-part", ".alignkit-set", ".old"
"""What names of unfinished outputs end in, those of the records of sets, and of what was moved aside for a moment."""
TOKEN = 8
"""Characters of the random part of these names."""
_NAME_BYTES = 200
"""Bytes of the output's name that its hidden name repeats; file systems allow 255."""
_HIDDEN = re.compile(r"\..*\.[0-9a-f]{8}(\.alignkit-part|\.alignkit-part\.old|\.alignkit-set)", re.DOTALL)
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2


def is_unfinished(name: str) -> bool:
    """Tell whether a file name is that of an unfinished output, or of the record of a set."""
    return _HIDDEN.fullmatch(name) is not None


def hidden_name(output: Path, token: str, suffix: str) -> Path:
    """Return the hidden name beside an output."""
    return output.with_name(f".{_start_of_name(output)}.{token}{suffix}")


def hidden_beside(output: Path, suffix: str) -> list[Path]:
    """List what has a hidden name of an output with one suffix."""
    pattern = re.compile(re.escape(f".{_start_of_name(output)}.") + r"[0-9a-f]{8}" + re.escape(suffix))
    try:
        return sorted(output.with_name(name) for name in os.listdir(output.parent) if pattern.fullmatch(name))
    except OSError:  # of a folder that is missing or cannot be listed nothing can be said
        return []


def claim(output: Path, folder: bool) -> tuple[Path, int | None]:
    """Make a hidden file or folder and lock it, so that no other run takes it for a leftover.

    Returns:
        Its path, and the handle that holds the lock (None where there are no locks).
    """
    while True:
        path = hidden_name(output, secrets.token_hex(TOKEN // 2), PART)
        try:
            if folder:
                path.mkdir()
            else:
                os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        except FileExistsError:
            continue
        with suppress(FileNotFoundError, BlockingIOError):  # Another run saw it before it was locked: take a new name.
            handle = lock(path)
            if handle is None or os.path.samestat(os.stat(path), os.fstat(handle)):
                return path, handle
            os.close(handle)


def lock(path: Path, *, wait: bool = False) -> int | None:
    """Lock a file or folder; return the handle to close, or None where the file system or the system has no locks.

    Raises:
        BlockingIOError: Another run holds the lock, and ``wait`` is False.
        FileNotFoundError: It is not there.
    """
    if sys.platform == "win32":
        return None
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        raise
    except OSError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        os.close(handle)
        raise
    except OSError:
        os.close(handle)
        return None
    return handle


def remove_parts(output: Path) -> None:
    """Remove what killed runs to this output left behind, not what live runs are writing."""
    for suffix in (PART + ASIDE, PART):
        for leftover in hidden_beside(output, suffix):
            with suppress(OSError):
                handle = lock(leftover)
                if handle is None:  # Without locks nobody can tell whether it is a leftover.
                    continue
                if suffix == PART:
                    remove(leftover)
                else:
                    put_back(leftover.with_name(leftover.name.removesuffix(ASIDE)), output)
                os.close(handle)


def remove(path: Path) -> None:
    """Remove a file or a folder if it is there; what cannot be removed stays."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink(missing_ok=True)


def exchange(hidden: Path, output: Path) -> None:
    """Let two files or folders change names, in one step where the system has it (renameat2 of Linux)."""
    swap = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None) if sys.platform == "linux" else None
    if swap is not None:
        if swap(_AT_FDCWD, os.fsencode(hidden), _AT_FDCWD, os.fsencode(output), _RENAME_EXCHANGE) == 0:
            return
        code = ctypes.get_errno()
        if code not in (errno.EINVAL, errno.ENOSYS):
            raise OSError(code, os.strerror(code))
    aside = hidden.with_name(hidden.name + ASIDE)
    try:
        os.link(output, aside)  # so that the output is never missing
    except OSError:  # a folder, or a file system without links
        os.rename(output, aside)
    try:
        os.replace(hidden, output)
        os.rename(aside, hidden)
    except BaseException:
        put_back(hidden, output)
        raise


def put_back(hidden: Path, output: Path) -> None:
    """Undo or finish an exchange in three steps that a killed run began."""
    aside = hidden.with_name(hidden.name + ASIDE)
    if os.path.lexists(aside):
        os.rename(aside, hidden if os.path.lexists(output) else output)


def flush(path: Path, mode: int | None = None) -> None:
    """Flush a file, or a folder with all its files, to the disk; files get the mode, if one is given."""
    if mode is not None and path.is_dir() and not path.is_symlink():
        for inner in sorted(path.iterdir()):
            flush(inner, mode)
    elif mode is not None and path.is_file() and not path.is_symlink():
        path.chmod(mode)
    if sys.platform == "win32" and path.is_dir():
        return
    handle = os.open(path, os.O_RDONLY if sys.platform != "win32" else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def strangers(folder: Path, known: Collection[Path]) -> list[str]:
    """Name what a folder holds beside regular files of known names and the folders that lead to them.

    Links, pipes and devices are strangers whatever their name, and so are folders that lead nowhere.

    Raises:
        OSError: A folder cannot be listed.
    """
    wanted = set(known)
    leading = {parent for path in wanted for parent in path.parents}

    def refuse(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError):  # Another run may be replacing the folder just now.
            raise error

    names: list[str] = []
    for place, folders, files in os.walk(folder, onerror=refuse):
        inside = Path(place).relative_to(folder)
        for name in [*folders, *files]:
            with suppress(FileNotFoundError):
                mode = Path(place, name).lstat().st_mode
                if stat.S_ISDIR(mode) and inside / name not in leading:
                    folders.remove(name)
                    names.append(f"{inside / name}/")
                elif not (stat.S_ISDIR(mode) or (stat.S_ISREG(mode) and inside / name in wanted)):
                    names.append(str(inside / name))
    return sorted(names)


def _start_of_name(output: Path) -> str:
    return os.fsencode(output.name)[:_NAME_BYTES].decode(errors="ignore")
