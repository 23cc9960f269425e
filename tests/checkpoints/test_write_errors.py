"""Places that cannot be written to: one kind of error, nothing left behind."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import alignkit
from alignkit import Alignment, SymmetryGraph, write_weights
from alignkit.checkpoints import open_checkpoint, write_checkpoint, write_text
from alignkit.checkpoints.staging import make_folder, staged
from alignkit.errors import AlignkitError
from helpers.checkpoint_folders import hub_folder

WEIGHTS = {"0.weight": torch.randn(6, 4), "0.bias": torch.randn(6), "2.weight": torch.randn(3, 6)}
SPEC = {"0.weight": "h .", "0.bias": "h", "2.weight": ". h"}
GRAPH = SymmetryGraph.from_spec(SPEC, WEIGHTS)


def unwritable(tmp_path: Path) -> Path:
    """A folder in which nothing can be made; root may write to any folder but those of the kernel."""
    if os.geteuid() == 0:
        return Path("/sys/kernel")
    folder = tmp_path / "unwritable"
    folder.mkdir(mode=0o555)
    return folder


def loop(tmp_path: Path) -> Path:
    os.symlink(tmp_path / "loop", tmp_path / "loop")
    return tmp_path / "loop"


def loop_of_suffix(tmp_path: Path) -> Path:
    os.symlink(tmp_path / "two", tmp_path / "one")
    os.symlink(tmp_path / "one", tmp_path / "two")
    return tmp_path / "one"


def file_as_folder(tmp_path: Path) -> Path:
    (tmp_path / "file").write_text("")
    return tmp_path / "file" / "out"


PLACES: dict[str, Callable[[Path], Path]] = {
    "a link to itself": loop,
    "links in a circle": loop_of_suffix,
    "a folder that is a link to itself": lambda path: loop(path) / "out",
    "a name too long": lambda path: path / ("x" * 300),
    "a folder with a name too long": lambda path: path / ("x" * 300) / "out",
    "a path too long": lambda path: path / "/".join(["x" * 200] * 30),
    "a zero byte": lambda path: path / "a\0b",
    "half a character": lambda path: path / "a\ud800b",
    "no folder": lambda path: path / "nowhere" / "out",
    "a file as a folder": file_as_folder,
    "an unwritable folder": lambda path: unwritable(path) / "out",
}


def solution() -> alignkit.Solution:
    return alignkit.solve(GRAPH, WEIGHTS, WEIGHTS)


WRITERS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "safetensors": (".safetensors", lambda path: write_weights(path, WEIGHTS)),
    "pt": (".pt", lambda path: write_weights(path, WEIGHTS)),
    "text": (".txt", lambda path: write_text(path, "text")),
    "an alignment": (".safetensors", lambda path: Alignment.identity(GRAPH).save(path)),
    "a solution": (".safetensors", lambda path: solution().save(path)),
    "a graph's picture": (".png", lambda path: GRAPH.draw(path)),
    "a report": (".html", lambda path: alignkit.reports.write_report(solution().report(), path)),
    "a report with pictures": (".md", lambda path: alignkit.reports.write_report(solution().report(), path)),
    "rows of a comparison": (
        ".jsonl",
        lambda path: alignkit.compare(GRAPH, WEIGHTS, WEIGHTS, solvers=["identity"], path=path),
    ),
    "a set of networks": (
        "",
        lambda path: alignkit.zoo.write_set(
            path, alignkit.zoo.plan_set(alignkit.zoo.Mlp(widths=(2,)), alignkit.zoo.source("digits"), 1)
        ),
    ),
}


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("writer", WRITERS)
def test_every_writer_refuses_in_a_sentence_and_leaves_nothing(writer: str, place: str, tmp_path: Path) -> None:
    suffix, write = WRITERS[writer]
    if writer == "a set of networks":
        pytest.importorskip("sklearn", reason="needs scikit-learn's digits")
        if place == "no folder":
            pytest.skip("it makes the folders above it")
    output = PLACES[place](tmp_path)
    if "link" not in place:
        output = output.with_name(output.name + suffix)
    elif output.is_symlink():  # a name with the suffix that leads into the circle
        output = tmp_path / f"into{suffix or '.d'}"
        output.symlink_to(next(path for path in tmp_path.iterdir() if path.is_symlink()))
    before = names(tmp_path)
    with pytest.raises(AlignkitError) as refused:
        write(output)
    assert str(refused.value).count("\n") == 0
    assert names(tmp_path) == before


@pytest.mark.parametrize("place", PLACES)
def test_checkpoints_in_folders_refuse_in_a_sentence(place: str, tmp_path: Path) -> None:
    hub_folder(tmp_path / "model" / "m")
    (tmp_path / "outputs").mkdir()
    checkpoint = open_checkpoint(tmp_path / "model" / "m")
    output = PLACES[place](tmp_path / "outputs")
    before = names(tmp_path)
    with pytest.raises(AlignkitError):
        write_checkpoint(output, checkpoint, checkpoint.__getitem__, overwrite=True)
    assert names(tmp_path) == before


@pytest.mark.parametrize("place", [place for place in PLACES if place != "no folder"])
def test_folders_that_cannot_be_made(place: str, tmp_path: Path) -> None:
    output = PLACES[place](tmp_path)
    before = names(tmp_path)
    with pytest.raises(AlignkitError, match="cannot write"):
        make_folder(output)
    assert names(tmp_path) == before


def staged_text(folder: Path) -> None:
    with staged(folder / "new.txt", overwrite=False) as temporary:
        temporary.write_text("text")


def staged_folder(folder: Path) -> None:
    with staged(folder / "new", folder=True) as temporary:
        (temporary / "x").write_text("text")


CALLS: dict[str, Callable[[Path], None]] = {
    "fsync": lambda folder: write_weights(folder / "w.safetensors", WEIGHTS),
    "open": lambda folder: write_weights(folder / "w.pt", WEIGHTS),
    "replace": lambda folder: write_text(folder / "w.txt", "text"),
    "link": staged_text,
    "mkdir": staged_folder,
}


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EIO, errno.EDQUOT, errno.EACCES])
@pytest.mark.parametrize("call", CALLS)
def test_what_the_system_says_is_passed_on(
    call: str, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = getattr(os, call)

    def failing(path: object, *arguments: int, **keywords: object) -> object:
        if call == "open" and not arguments[0] & os.O_CREAT:
            return original(path, *arguments, **keywords)
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, call, failing)
    with pytest.raises(AlignkitError, match=rf"cannot write .*: {os.strerror(code)}\."):
        CALLS[call](tmp_path)
    monkeypatch.undo()
    assert names(tmp_path) == []
