"""Paths that are not files: pipes, sockets, devices, folders, circles, impossible names. All are refused at once."""

from __future__ import annotations

import json
import os
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

import alignkit
from alignkit import Alignment, Solution, SymmetryGraph, read_weights
from alignkit.checkpoints import open_checkpoint
from alignkit.checkpoints.opening import MAX_TEXT, open_file, read_file
from alignkit.deepalign.aligner_file import load_aligner, read_card
from alignkit.errors import AlignkitError, WeightsError
from alignkit.jobs import read_spec
from alignkit.jobs.compare.comparison import ComparisonRow
from alignkit.jobs.compare.job import ROWS
from alignkit.jobs.row_file import RowFile
from alignkit.models.building import read_config
from alignkit.solvers.deepalign import DeepAlign
from alignkit.training import read_metrics
from alignkit.training.records import TrainingCheckpoint
from alignkit.zoo import NetworkSet
from helpers.command_line import run

pytestmark = pytest.mark.skipif(os.name == "nt", reason="Windows has no such files")

GRAPH = SymmetryGraph.from_spec({"w": "h .", "v": ". h"}, {"w": (3, 2), "v": (2, 3)})


def listening(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))


def circle(path: Path) -> None:
    path.with_suffix(".other").symlink_to(path)
    path.symlink_to(path.with_suffix(".other"))


MAKE: dict[str, Callable[[Path], object]] = {
    "a pipe": os.mkfifo,
    "a link to a pipe": lambda path: (os.mkfifo(path.with_suffix(".pipe")), path.symlink_to(path.with_suffix(".pipe"))),
    "a socket": listening,
    "a device": lambda path: path.symlink_to("/dev/zero"),
    "a folder": Path.mkdir,
    "a circle of links": circle,
    "a link to nothing": lambda path: path.symlink_to("nothing"),
    "nothing": lambda path: None,
}
NAMES = {"a long name": "x" * 300, "a null": "a\0b", "a lone surrogate": "a\ud800b", "too many folders": "x/" * 5000}
WEIGHTS = {"w": torch.ones(3, 2), "v": torch.ones(2, 3)}


def solve_with(path: Any) -> object:
    return alignkit.solve(GRAPH, WEIGHTS, WEIGHTS, solver=DeepAlign(encoder="learned", checkpoint=str(path)))


READERS: dict[str, tuple[str, Callable[[Any], object]]] = {
    "read_weights": (".pt", read_weights),
    "read_weights of safetensors": (".safetensors", read_weights),
    "open_checkpoint": (".bin", open_checkpoint),
    "an index": (".safetensors.index.json", open_checkpoint),
    "bind": (".safetensors", lambda path: GRAPH.bind(path, path)),
    "Solution.load": (".safetensors", lambda path: Solution.load(path, GRAPH)),
    "Alignment.load": (".safetensors", lambda path: Alignment.load(path, GRAPH)),
    "load_aligner": (".safetensors", load_aligner),
    "read_card": (".safetensors", read_card),
    "a checkpoint of a solver": (".safetensors", solve_with),
    "a spec": (".json", read_spec),
    "NetworkSet.open": ("", NetworkSet.open),
    "a configuration": (".json", lambda path: read_config(Path(path))),
    "read_metrics": (".csv", lambda path: read_metrics(Path(path))),
    "rows to resume": (".jsonl", lambda path: RowFile(path, ROWS, {"of": 1}, ComparisonRow.from_dict)),
    "a training checkpoint": ("/checkpoint.pt", lambda path: TrainingCheckpoint.load(Path(path).parent, {})),
}


@contextmanager
def alarm() -> Iterator[None]:
    """Fail where something waits for a writer that never comes."""

    def ring(*_: object) -> None:
        raise TimeoutError("it waits")

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(20)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("kind", MAKE)
def test_what_is_not_a_file_is_refused_at_once(kind: str, reader: str, tmp_path: Path) -> None:
    suffix, read = READERS[reader]
    path = tmp_path / f"x{suffix}"
    path.parent.mkdir(exist_ok=True)
    MAKE[kind](path)
    if "nothing" in kind and reader in ("rows to resume", "a training checkpoint"):
        return  # they begin there
    with alarm(), pytest.raises(AlignkitError) as caught:
        read(path)
    assert str(path.parent if reader == "NetworkSet.open" else path) in str(caught.value)


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("name", NAMES)
def test_names_that_no_file_has_are_refused(name: str, reader: str, tmp_path: Path) -> None:
    suffix, read = READERS[reader]
    with alarm(), pytest.raises(AlignkitError):
        read(tmp_path / f"{NAMES[name]}{suffix}")


COMMANDS = {
    "merge": "merge {x}.safetensors {a} --spec {spec} -o {out}",
    "solve": "solve {a} {x}.pt --spec {spec} -o {out}",
    "a spec": "solve {a} {a} --spec {x}.json -o {out}",
    "distance": "distance {a} {x}.bin --spec {spec}",
    "an alignment": "transport {a} {a} {a} --spec {spec} -o {out} --alignment {x}.safetensors",
    "check": "check transformers:{x}.json",
    "a folder of networks": "train-deepalign {x} -o {out}",
}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("kind", [*MAKE, *NAMES])
def test_commands_end_in_a_sentence(kind: str, command: str, tmp_path: Path) -> None:
    alignkit.write_weights(tmp_path / "a.safetensors", WEIGHTS)
    (tmp_path / "spec.json").write_text(json.dumps({"w": "h .", "v": ". h"}))
    name = NAMES.get(kind, "x")
    words = COMMANDS[command].split()
    given = {"a": tmp_path / "a.safetensors", "spec": tmp_path / "spec.json", "out": tmp_path / "out.safetensors"}
    for word in words:
        if "{x}" in word and kind in MAKE:
            MAKE[kind](tmp_path / word.rpartition(":")[2].format(x=name))
    with alarm():
        said = run(*(word.format(x=tmp_path / name, **given) for word in words), code=None)
    assert "Error:" in said or "Usage:" in said
    assert "Unexpected" not in said
    assert not (tmp_path / "out.safetensors").exists()


def test_files_may_be_links_and_have_odd_names(tmp_path: Path) -> None:
    real = tmp_path / os.fsdecode(b"n\xffme.pt")
    torch.save(WEIGHTS, real)
    (tmp_path / "link.pt").symlink_to(real)
    assert read_weights(tmp_path / "link.pt").keys() == read_weights(real).keys() == WEIGHTS.keys()


def test_files_without_permission_name_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save(WEIGHTS, tmp_path / "w.pt")

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)  # the tests may run as root, whom nothing is refused
    with pytest.raises(WeightsError, match=r"w\.pt cannot be read: Permission denied"):
        read_weights(tmp_path / "w.pt")


def test_texts_have_a_maximum(tmp_path: Path) -> None:
    with (tmp_path / "large.json").open("wb") as stream:
        stream.truncate(MAX_TEXT + 1)
    with pytest.raises(OSError, match="more than 100 MB"):
        read_file(tmp_path / "large.json")
    with pytest.raises(AlignkitError, match="more than 100 MB"):
        read_spec(tmp_path / "large.json")
    with open_file(tmp_path / "large.json") as stream:
        assert stream.read(1) == b"\0"
