"""A guard around libraries that build models: nothing outside them is opened, asked for or run.

What a configuration points at (files, names on a hub, kernels, pretrained parts) is a matter of hundreds of fields in
hundreds of classes, and of the next version of a library. So the guard does not look at fields. While a model is built
it listens to what Python reports about itself (`sys.addaudithook`), and refuses what is not the library's own.
"""

from __future__ import annotations

import os
import sys
import sysconfig
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import FrameType
from typing import Any

SYSTEM = ("/proc/", "/sys/", "/dev/null", "/dev/urandom")
"""What libraries ask the system about the machine."""
NETWORK = frozenset(("socket", "urllib", "ftplib", "http", "webbrowser"))
PROGRAMS = frozenset(("subprocess", "pty"))
EVENTS = frozenset(
    (
        *("os.system", "os.exec", "os.fork", "os.forkpty", "os.posix_spawn", "os.spawn", "os.startfile"),
        *("os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.truncate"),
    )
)
"""Events of Python that start a program or change files."""

_state = threading.local()


@contextmanager
def nothing_outside() -> Iterator[list[str]]:
    """Refuse, in this thread and inside the block, to open files outside libraries, sockets and other programs.

    What is refused raises a `PermissionError` where it is tried, and libraries may go on without it. A module that is
    imported inside the block, installed code as it is, may do anything but use the network.

    Yields:
        What was refused so far, in words.
    """
    _install()
    before = getattr(_state, "guard", None)
    refused: list[str] = []
    _state.guard = refused, sys._getframe(2)  # the frame of the with statement
    try:
        yield refused
    finally:
        _state.guard = before


@cache
def _install() -> None:
    """Add the hook, once; Python has no way to take one away."""
    sys.addaudithook(_hook)


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    guard = getattr(_state, "guard", None)
    if guard is None:
        return
    refused, guarded = guard
    kind = event.partition(".")[0]
    if event == "open":
        path = arguments[0]
        if (
            not isinstance(path, str | bytes | os.PathLike)
            or _is_of_a_library(os.fsdecode(path))
            or _is_importing(guarded)
        ):
            return
        what = f"the file {os.fsdecode(path)}"
    elif kind in NETWORK or ((kind in PROGRAMS or event in EVENTS) and not _is_importing(guarded)):
        what = " ".join(str(part) for part in (event, *arguments[:2]))
    else:
        return
    refused.append(what)
    raise PermissionError(f"{what} is outside the library")


def _is_of_a_library(path: str) -> bool:
    real = os.path.realpath(path)
    if path.startswith(SYSTEM) or any(real.startswith(folder) for folder in _library_folders()):
        return True
    # Errors and warnings show lines of the source of what runs.
    return any(getattr(module, "__file__", None) == path for module in list(sys.modules.values()))


@cache
def _library_folders() -> tuple[str, ...]:
    """List the folders of Python and of installed packages."""
    known = [sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    installed = [entry for entry in sys.path if Path(entry).name in ("site-packages", "dist-packages")]
    return tuple({os.path.join(os.path.realpath(folder), "") for folder in (*known, *installed)})


def _is_importing(guarded: FrameType) -> bool:
    """Tell whether an import runs at the moment that began inside the guarded frame."""
    frame: FrameType | None = sys._getframe(2)
    while frame is not None and frame is not guarded:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>" and frame.f_code.co_name == "_find_and_load":
            return True
        frame = frame.f_back
    return False
