"""Outputs that cannot be written: exit code 1 and a sentence, and everything is as it was."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from helpers.command_line import run
from helpers.weight_files import GIVEN, JOBS, A, B


def unwritable(folder: Path) -> Path:
    """A folder in which nothing can be made; root may write to any folder but those of the kernel."""
    if os.geteuid() == 0:
        return Path("/sys/kernel")
    (folder / "unwritable").mkdir(mode=0o555)
    return folder / "unwritable"


def link_to_itself(folder: Path, name: str) -> Path:
    (folder / name).symlink_to(folder / name)
    return folder / name


def pipe(folder: Path, name: str) -> Path:
    os.mkfifo(folder / name)
    return folder / name


PLACES: dict[str, Callable[[Path, str], Path]] = {
    "a link to itself": link_to_itself,
    "a name too long": lambda folder, name: folder / f"{'x' * 300}{name}",
    "an unwritable folder": lambda folder, name: unwritable(folder) / name,
    "a pipe": pipe,
}


def entries(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("job", [job for job in JOBS if JOBS[job][1]])
def test_an_output_that_cannot_be_is_refused(job: str, place: str, folder: Path) -> None:
    call, output = JOBS[job]
    where = PLACES[place](folder, output)
    before = entries(folder)
    said = run(*[where if part == output else part for part in call], "--force", code=1)
    assert said.startswith("Error: cannot write")
    assert entries(folder) == before


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(
    ("switch", "name"), [("--report", "r.html"), ("--report", "r.md"), ("--save-alignment", "l.safetensors")]
)
def test_one_output_of_several_that_cannot_be_takes_all_with_it(
    switch: str, name: str, place: str, folder: Path
) -> None:
    where = PLACES[place](folder, name)
    before = entries(folder)
    run("solve", A, B, "-o", "out.safetensors", switch, where, *GIVEN, "--force", code=1)
    assert entries(folder) == before


@pytest.mark.parametrize("command", ["align-many", "canonicalize"])
def test_other_files_of_a_folder_stay(command: str, folder: Path) -> None:
    call = JOBS[command][0]
    run(*call)
    (folder / "out" / "mine.safetensors").write_text("mine")
    (folder / "out" / "mine").mkdir()
    assert "--force" in run(*call, code=2)
    run(*call, "--force")
    assert (folder / "out" / "mine.safetensors").read_text() == "mine"
    assert (folder / "out" / "mine").is_dir()


def test_merging_in_place_keeps_what_belongs_to_training(folder: Path) -> None:
    for name, weights in (("fa", A), ("fb", B)):
        (folder / name).mkdir()
        shutil.copy(folder / weights, folder / name / "model.safetensors")
    for name in ("optimizer.pt", "training_args.bin", "model.onnx", "other.safetensors"):
        (folder / "fa" / name).write_text("mine")
    before = {path: path.read_bytes() for path in (folder / "fa").iterdir()}
    said = run("merge", "fa", "fb", "-o", "fa", "--force", *GIVEN, code=1)
    assert "it holds model.onnx, optimizer.pt, other.safetensors, training_args.bin, which would be lost" in said
    assert {path: path.read_bytes() for path in (folder / "fa").iterdir()} == before
