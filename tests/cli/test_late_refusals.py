"""Outputs that cannot be written are refused before any work begins, by every command that writes."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest
from typer.testing import CliRunner

import alignkit
from alignkit.cli.program import app
from alignkit.jobs import NetworkFiles
from helpers.command_line import run
from helpers.weight_files import GIVEN, TUNED, A, B, C

MODEL = ("--model", "job_nets:net")
ALL = ("--symmetries", "all")
PAIR = "out.safetensors"
TRAINED = ("--source", "digits", "--count", "1")
CALLS: dict[str, tuple[tuple[str, ...], str]] = {
    "merge": (("merge", A, B, "-o", PAIR, *GIVEN), PAIR),
    "merge ties": (("merge", A, B, "-o", PAIR, *MODEL, *ALL, "--method", "ties"), PAIR),
    "solve": (("solve", A, B, "-o", PAIR, *GIVEN), PAIR),
    "solve, alignment": (("solve", A, B, "-o", "s.safetensors", "--save-alignment", PAIR, *GIVEN), PAIR),
    "solve, report": (("solve", A, B, "-o", "s.safetensors", "--report", "out.html", *GIVEN), "out.html"),
    "merge, rows": (("merge", A, B, "-o", "s.safetensors", "--resume", "rows.jsonl", *GIVEN), "rows.jsonl"),
    "align-many": (("align-many", A, B, C, "-o", "out", *GIVEN), "out"),
    "canonicalize": (("canonicalize", A, B, C, "-o", "out", *GIVEN), "out"),
    "canonical-form": (("canonical-form", A, "-o", PAIR, *GIVEN), PAIR),
    "transport": (("transport", A, TUNED, B, "-o", PAIR, *GIVEN), PAIR),
    "transport tensors": (("transport", A, "v.safetensors", B, "-o", PAIR, *MODEL, "--layouts", "@0"), PAIR),
    "transport optimizer": (("transport", A, "state.pt", B, "-o", "out.pt", *MODEL, "--optimizer"), "out.pt"),
    "fold": (("fold", A, "-o", PAIR, *MODEL), PAIR),
    "rotate": (("rotate", A, "-o", PAIR, *MODEL, "--residual", "random"), PAIR),
    "widen": (("widen", A, A, "-o", PAIR, *MODEL, "--narrow-model", "job_nets:net"), PAIR),
    "compare, picture": (("compare", A, B, *GIVEN, "--task", "job_nets:task", "--picture", "out.png"), "out.png"),
    "distance, report": (("distance", A, B, *GIVEN, "--report", "out.html"), "out.html"),
    "check, report": (("check", "job_nets:net", A, "--report", "out.html"), "out.html"),
    "trace, spec": (("trace", "job_nets:net", "--spec", "out.json"), "out.json"),
    "trace, picture": (("trace", "job_nets:net", "--picture", "out.png"), "out.png"),
    "demo": (("demo", "-o", "out"), "out"),
    "demo, report": (("demo", "--report", "out.html"), "out.html"),
    "zoo": (("zoo", "out", *TRAINED), "out"),
    "train-deepalign": (("train-deepalign", "set", "-o", PAIR), PAIR),
}
COPIES = ("merge", "solve", "align-many", "canonicalize", "canonical-form", "fold", "rotate", "widen")
"""Commands whose output is as large as an input."""
ON_DISK = [name for name in CALLS if CALLS[name][0][0] in ("merge", "solve", "align-many", "canonicalize", "fold")]
ON_DISK += ["transport", "transport tensors", "transport optimizer", "distance, report"]


FITS = {
    ("merge, rows", "another suffix"): "rows stand in a file of any name",
    ("merge, rows", "there already"): "a run is resumed there, and a file that is none is refused when it is read",
    ("demo", "there already"): "nothing there has the name of a result",
    ("trace, spec", "another suffix"): "text stands in a file of any name",
    **{(job, "a missing folder"): "it is made" for job in ("zoo", "demo")},
}
"""What is not refused, or not at once, and why."""


def missing(folder: Path, name: str) -> str:
    return f"absent/{name}"


def long_name(folder: Path, name: str) -> str:
    return f"{'x' * 300}{name}"


def link(folder: Path, name: str) -> str:
    (folder / name).symlink_to(folder / name)
    return name


def kernel(folder: Path, name: str) -> str:
    return f"/sys/kernel/{name}"


def other_kind(folder: Path, name: str) -> str:
    if Path(name).suffix:
        (folder / name).mkdir()
        (folder / name / "kept").write_text("kept")
    else:
        (folder / name).write_text("kept")
    return name


def other_suffix(folder: Path, name: str) -> str:
    return f"{name}.docx" if Path(name).suffix else f"{A}/{name}"


def existing(folder: Path, name: str) -> str:
    if Path(name).suffix:
        (folder / name).write_text("kept")
    else:
        for inside in (A, B, C):
            (folder / name).mkdir(exist_ok=True)
            (folder / name / inside).write_text("kept")
    return name


PLACES: dict[str, Callable[[Path, str], str]] = {
    "a missing folder": missing,
    "a name too long": long_name,
    "a link to itself": link,
    "a folder of the system": kernel,
    "another kind of place": other_kind,
    "another suffix": other_suffix,
    "there already": existing,
}


class WorkBeganError(Exception):
    """A network was read, or training began."""


@pytest.fixture
def idle(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing may be read or computed."""

    def fail(*_: Any, **__: Any) -> NoReturn:
        raise WorkBeganError

    for name in ("given", "folded", "_stored", "example"):
        monkeypatch.setattr(NetworkFiles, name, property(fail))
    for name in ("zoo.writing.train", "training.train", "training.starting_aligner", "jobs.demo.train"):
        monkeypatch.setattr(f"alignkit.{name}", fail)
    for name in ("check", "solve", "merge", "compare", "distance"):
        monkeypatch.setattr(alignkit, name, fail)


def refused(call: list[str]) -> str:
    """Run a command that is refused before it works, and return what it says."""
    result = CliRunner().invoke(app, call)
    assert not isinstance(result.exception, WorkBeganError), "the work began"
    assert result.exit_code in (1, 2), result.output
    assert "Traceback" not in result.output and "a fault in alignkit" not in result.output, result.output
    return result.output


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("memory", [False, True], ids=["in memory", "on disk"])
@pytest.mark.parametrize("name", CALLS)
@pytest.mark.usefixtures("idle")
def test_an_output_that_cannot_be_is_refused_first(
    name: str, memory: bool, place: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    call, output = CALLS[name]
    if memory and name not in ON_DISK:
        pytest.skip("it has no --memory")
    if reason := FITS.get((name, place)):
        pytest.skip(reason)
    if call[0] == "trace":
        monkeypatch.setattr("alignkit.jobs.network_opening.trace", None)
    where = PLACES[place](folder, output)
    refused([where if part == output else part for part in call] + ["--memory", "1MB"] * memory)


@pytest.mark.parametrize("memory", [False, True], ids=["in memory", "on disk"])
@pytest.mark.parametrize("name", [n for n in CALLS if CALLS[n][1] in (PAIR, "out") and CALLS[n][0][0] in COPIES])
@pytest.mark.usefixtures("idle")
def test_a_full_disk_is_told_first(name: str, memory: bool, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(100, 99, 1))
    if memory and name not in ON_DISK:
        pytest.skip("it has no --memory")
    assert "its disk has 1" in refused([*CALLS[name][0], *("--memory", "1MB") * memory])


def test_what_was_folded_on_the_way_leaves_no_trace(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither where the job ends well, nor where it fails in the middle."""
    call = ["solve", A, B, "-o", PAIR, *MODEL, *ALL, "--memory", "20MB"]
    before = {path.name for path in folder.iterdir()}
    held: list[set[str]] = []
    solve = alignkit.solve

    def look(*args: Any, **kwargs: Any) -> Any:
        held.append({path.name for path in folder.iterdir()} - before)
        return solve(*args, **kwargs)

    monkeypatch.setattr(alignkit, "solve", look)
    run(*call)
    assert any("scratch" in name for name in held[0])
    assert {path.name for path in folder.iterdir()} - before - {"__pycache__"} == {PAIR}
    monkeypatch.setattr(alignkit, "solve", lambda *_, **__: 1 / 0)
    run(*call, "--force", code=3)
    assert {path.name for path in folder.iterdir()} - before - {"__pycache__"} == {PAIR}


def test_another_kind_of_file_is_refused_first_where_networks_stay_on_disk(folder: Path) -> None:
    """In memory it is written: the suffix says the kind."""
    call = ["fold", A, "-o", "out.pt", *MODEL]
    run(*call)
    (folder / "out.pt").unlink()
    (folder / "out.pt.alignkit.json").unlink()
    assert "end the name in .safetensors" in run(*call, "--memory", "1MB", code=1)
