"""Building a model from a configuration runs nothing and opens nothing that the configuration points at."""

from __future__ import annotations

import json
import os
import pickle
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from alignkit.errors import AlignkitError, ModelSourceError
from alignkit.models import load_model
from alignkit.models.building import build_alone
from alignkit.models.outside import nothing_outside
from helpers.hostile_configurations import CANARY, POINTING

seen: list[str] | None = None


def listen(event: str, arguments: tuple[Any, ...]) -> None:
    """Keep what got past the guard: audit hooks are asked in the order in which they were added."""
    if seen is not None and event in ("open", "import", "socket.connect", "socket.getaddrinfo", "subprocess.Popen"):
        seen.append(f"{event} {arguments[0]}")


@pytest.fixture
def passed() -> Iterator[list[str]]:
    """What Python opened, imported, connected to and started since."""
    global seen
    with nothing_outside():  # adds the guard before the first listener
        pass
    if not getattr(sys, "_alignkit_test_listens", False):
        sys.addaudithook(listen)
        sys._alignkit_test_listens = True  # type: ignore[attr-defined]
    seen = []
    yield seen
    seen = None


class Runs:
    """A pickle that runs code when it is read."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.target),)


CASES = [
    pytest.param(library, content, id=f"{library}-{number}", marks=pytest.mark.models(library))
    for library, contents in POINTING.items()
    for number, content in enumerate(contents)
]


@pytest.mark.parametrize(("library", "content"), CASES)
def test_nothing_that_a_configuration_points_at_is_opened_or_run(
    library: str, content: dict[str, Any], tmp_path: Path, passed: list[str]
) -> None:
    canary = tmp_path / "canary.pkl"
    canary.write_bytes(pickle.dumps(Runs(tmp_path / "ran")))
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(content).replace(CANARY, str(canary)))
    passed.clear()
    with suppress(AlignkitError):
        load_model(f"{library}:{folder}")
    assert not (tmp_path / "ran").exists()
    outside = [f for f in passed if str(tmp_path) in f and f != f"open {folder / 'config.json'}"]
    network = [f for f in passed if f.startswith("socket")]
    foreign = [f for f in passed if f.split(".")[0] in ("import kernels", "import bitsandbytes", "import code")]
    assert outside + network + foreign == []


def connect() -> None:
    socket.create_connection(("127.0.0.1", 9), timeout=1)


def import_from(folder: Path) -> object:
    (folder / "importable_here.py").write_text("import tempfile\ntempfile.TemporaryFile().close()\n")
    return __import__("importable_here")


ATTEMPTS: dict[str, Callable[[Path], object]] = {
    "read": lambda folder: (folder / "there").read_text(),
    "write": lambda folder: (folder / "new").write_text(""),
    "remove": lambda folder: (folder / "there").unlink(),
    "connect": lambda folder: connect(),
    "look up": lambda folder: socket.getaddrinfo("localhost", 80),
    "start": lambda folder: subprocess.run(["true"], check=True),
    "shell": lambda folder: os.system("true"),
}


@pytest.mark.parametrize("attempt", ATTEMPTS)
def test_a_builder_cannot_leave_its_library(attempt: str, tmp_path: Path) -> None:
    (tmp_path / "there").write_text("")
    with pytest.raises(ModelSourceError, match=r"mine could not be built.* asked for .*Nothing outside the library"):
        build_alone("mine", lambda: ATTEMPTS[attempt](tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["there"]
    ATTEMPTS[attempt](tmp_path) if attempt != "connect" else None  # outside of the guard all is as it was


def test_imports_of_a_builder_may_do_as_they_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "importable_here.py").write_text("import tempfile\ntempfile.TemporaryFile().close()\n")
    assert build_alone("mine", lambda: __import__("importable_here")).__name__ == "importable_here"
    sys.modules.pop("importable_here")


def test_a_builder_that_goes_on_without_it_is_fine(tmp_path: Path) -> None:
    def build() -> int:
        try:
            return len((tmp_path / "cache").read_text())
        except OSError:
            return 5

    (tmp_path / "cache").write_text("")
    assert build_alone("mine", build) == 5
