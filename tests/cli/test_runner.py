"""What every job does alike: dry runs, reports, JSON, and files that are there already."""

from __future__ import annotations

import json
import re
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

from alignkit import write_weights
from alignkit.jobs.memory_use import MemoryReading
from helpers.command_line import run
from helpers.weight_files import GIVEN, JOBS, A, weights


@pytest.mark.parametrize("job", JOBS)
def test_a_dry_run_shows_the_plan_and_writes_nothing(job: str, folder: Path) -> None:
    call, output = JOBS[job]
    before = {path: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    said = run(*call, "--dry-run", "--report", "r.html")
    assert f"Estimate of {call[0]}: nothing was solved or written." in said
    for word in ("3 of 4 tensors move", "2.bias", "Memory: about", "Time: ", f"Would write {output}" if output else ""):
        assert word in said
    facts = json.loads(run(*call, "--dry-run", "--json"))
    assert facts["job"] == call[0]
    assert facts["groups"][0]["units"] == 6
    assert set(facts["tensors_moved"]) == {"0.weight", "0.bias", "2.weight"}
    assert {path: path.read_bytes() for path in folder.iterdir() if path.is_file()} == before


@pytest.mark.parametrize("job", JOBS)
@pytest.mark.parametrize("kind", [".html", ".md"])
def test_a_report_is_written_after_the_work(job: str, kind: str, folder: Path) -> None:
    call, output = JOBS[job]
    said = run(*call, "--report", f"r{kind}")
    assert f"Written: r{kind}" in said
    assert not output or (folder / output).exists()
    text = (folder / f"r{kind}").read_text()
    assert "Summary" in text
    if kind == ".html":
        assert "src=" not in text.replace('src="data:image/png;base64,', "")
    elif call[0] not in ("check", "canonical-form"):  # whose reports have no pictures
        assert list((folder / "r_files").glob("*.png"))


@pytest.mark.parametrize("peak", [None, 0, 5_000_000])
@pytest.mark.parametrize("job", JOBS)
def test_memory_is_told_where_a_rise_was_seen(
    job: str, peak: int | None, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("alignkit.jobs.peak_memory", lambda: nullcontext(MemoryReading(peak)))
    said = run(*JOBS[job][0], "--report", "r.md")
    for text in (said, (folder / "r.md").read_text()):
        assert re.findall(r"\d \w+ of memory", text) == (["5 MB of memory"] if peak else [])


@pytest.mark.parametrize("job", JOBS)
def test_json_is_one_object(job: str, folder: Path) -> None:
    assert isinstance(json.loads(run(*JOBS[job][0], "--json")), dict)


@pytest.mark.parametrize(
    ("report", "said"),
    [
        ("r.pdf", "end its name in .html or .md"),
        ("nowhere/r.html", "its folder is missing"),
        ("spec.json.html", "exists"),
        ("taken.md", "its pictures go to taken_files, which exists"),
    ],
)
def test_a_report_that_cannot_be_written_is_refused_before_the_work(report: str, said: str, folder: Path) -> None:
    (folder / "spec.json.html").write_text("mine")
    (folder / "taken_files").mkdir()
    assert said in run(*JOBS["merge"][0], "--report", report, code=2)
    assert not (folder / "out.safetensors").exists()


def test_a_dry_run_finds_checkpoints_that_do_not_fit(folder: Path) -> None:
    write_weights(folder / "wide.safetensors", {**weights(0), "extra": torch.zeros(2), "2.bias": torch.zeros(9)})
    said = run("merge", A, "wide.safetensors", "-o", "m.safetensors", *GIVEN, "--dry-run", code=1)
    assert "'extra' of wide.safetensors is not in the graph" in said
    assert "'2.bias' has shape (9,)" in said


@pytest.mark.parametrize(
    ("command", "output"),
    [
        (["merge", "a.safetensors", "b.safetensors", *GIVEN], "-o"),
        (["transport", "a.safetensors", "tuned.safetensors", "b.safetensors", *GIVEN], "-o"),
        (["distance", "a.safetensors", "b.safetensors", *GIVEN], "--save-alignment"),
    ],
)
def test_no_file_is_replaced_without_force(folder, command, output):
    kept = (folder / "c.safetensors").read_bytes()
    assert "--force" in run(*command, output, "c.safetensors", code=2)
    assert (folder / "c.safetensors").read_bytes() == kept
    run(*command, output, "c.safetensors", "--force")
    assert (folder / "c.safetensors").read_bytes() != kept


@pytest.mark.parametrize("command", ["merge", "compare", "distance", "transport", "canonicalize"])
def test_help_has_an_example(command):
    said = run(command, "--help")
    assert f"Example: alignkit {command}" in " ".join(said.split())
