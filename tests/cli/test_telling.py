"""`--quiet` and `--verbose` in every command: what is said, and where."""

from __future__ import annotations

import json
import logging
import re

import pytest
import typer
from typer.testing import CliRunner

import alignkit
from alignkit.cli import app
from alignkit.cli.telling import TellingSwitches
from helpers.weight_files import GIVEN, JOBS, A, B

CALLS = {name: call for name, (call, _) in JOBS.items()} | {
    "fold": ["fold", A, "-o", "folded.safetensors", "--model", "job_nets:net"],
    "trace": ["trace", "job_nets:net", "--spec", "written.json"],
    "zoo": ["zoo", "nets", "--widths", "4", "--source", "digits", "--count", "2", "--steps", "1"],
}
SILENT = {"solvers"}
"""Commands whose only result is what they print."""


def said(*arguments: str, code: int = 0):
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == code, result.output
    return result


@pytest.mark.parametrize("call", CALLS)
def test_quiet_says_nothing_and_does_the_same(folder, call):
    before = {path.name for path in folder.rglob("*")}
    result = said(*CALLS[call], "-q")
    assert (result.stdout, result.stderr) == ("", "")
    assert call in ("check", "compare", "distance") or {path.name for path in folder.rglob("*")} > before


@pytest.mark.parametrize("call", [call for call in CALLS if call not in ("trace", "zoo")])
def test_quiet_still_prints_the_json_that_was_asked_for(folder, call):
    result = said(*CALLS[call], "--json", "--quiet")
    assert isinstance(json.loads(result.stdout), dict)
    assert result.stderr == ""


@pytest.mark.parametrize("call", [*JOBS, "fold", "demo"])
def test_quiet_still_prints_the_estimate_that_was_asked_for(folder, call):
    told = [said(*CALLS.get(call, ["demo"]), "--dry-run", *quiet).stdout for quiet in ([], ["-q"])]
    estimates = [re.sub(r"[\d.e-]+ s\b", "", text) for text in told]  # which are measured anew
    assert estimates[0] == estimates[1] != ""


@pytest.mark.parametrize("call", [call for call in JOBS if call != "compare"])  # its table has a column of seconds
def test_a_job_that_is_repeated_says_the_same_but_for_its_last_line_of_seconds(folder, call):
    told = [said(*CALLS[call], "--force").stdout for _ in range(2)]
    first, second = (re.sub(r"(?m)^\d+\.\d\d s(, .* of memory)?\.$", "", text) for text in told)
    assert first == second
    assert not re.search(r"\d s\b|second\b", first)


@pytest.mark.parametrize("call", [call for call in JOBS if call not in ("check", "canonicalize", "canonical-form")])
def test_verbose_tells_steps_beside_the_result(folder, call):
    result = said(*CALLS[call], "-v")
    assert re.search(r"\[ +\d+\.\d\d s\] weight_matching step 1: objective ", result.stderr)
    assert f"Plan of {CALLS[call][0]}: " in result.stderr
    assert "step 1" not in result.stdout
    assert logging.getLogger("alignkit").handlers == []


@pytest.mark.parametrize("name", [command.name for command in app.registered_commands])
def test_every_command_can_be_told_to_be_quiet(name):
    options = {option for p in typer.main.get_command(app).commands[name].params for option in p.opts}
    assert name in SILENT or {"--quiet", "-q", "--verbose", "-v"} <= options


@pytest.mark.parametrize("call", CALLS)
def test_both_at_once_are_refused(folder, call):
    assert "are opposites" in said(*CALLS[call], "-q", "-v", code=2).stderr


def test_errors_are_told_in_any_case(folder):
    assert "Error: nowhere.pt" in said("merge", A, "nowhere.pt", "-o", "m.pt", *GIVEN, "-q", code=1).stderr


@pytest.mark.parametrize("large", [False, True])
def test_a_large_job_says_first_what_it_will_take(folder, large, monkeypatch):
    monkeypatch.setattr("alignkit.jobs.estimate.LONG", 0.0 if large else 1e9)
    result = said("merge", A, B, "-o", "m.safetensors", *GIVEN)
    assert ("Plan of merge: 2 networks, 1 group, 3 of 4 tensors move; about" in result.stderr) == large
    assert "Plan of" not in result.stdout


def test_passes_are_told_as_they_begin(caplog):
    reports = [
        alignkit.checkpoints.ByteProgress(done, 2, 0.1, stage) for stage in ("reading", "sweep 1") for done in (1, 2)
    ]
    with caplog.at_level(logging.INFO, "alignkit"), TellingSwitches().passes() as report:
        for progress in reports:
            report(progress)
    assert caplog.messages == ["reading", "sweep 1"]
