"""`alignkit compare`."""

from __future__ import annotations

import pytest

import alignkit
from helpers.command_line import run
from helpers.weight_files import GIVEN, A, B


def test_compare_shows_a_table_and_draws_it(folder):
    said = run("compare", "a.safetensors", "b.safetensors", *GIVEN, "--solver", "weight_matching", "--picture", "t.png")
    assert "identity" in said
    assert "weight_matching" in said
    assert (folder / "t.png").read_bytes()[:4] == b"\x89PNG"
    assert "--force" in run("compare", "a.safetensors", "b.safetensors", *GIVEN, "--picture", "t.png", code=2)


@pytest.mark.slow
def test_compare_with_a_task_in_processes_resumes(folder):
    arguments = ["compare", "a.safetensors", "b.safetensors", *GIVEN, "--task", "job_nets:task", "--json"]
    arguments += ["--solver", "identity > weight_matching", "--resume", "rows.jsonl", "--points", 5]
    comparison = alignkit_comparison(run(*arguments, "--seed", 0, "--jobs", 1))
    assert comparison.solvers == ("identity", "activation_matching", "identity > weight_matching")
    assert all(row.barrier is not None for row in comparison.rows)
    rows = (folder / "rows.jsonl").read_bytes()
    more = alignkit_comparison(run(*arguments, "--seed", 0, "--seed", 1, "--jobs", 2))
    assert (folder / "rows.jsonl").read_bytes().startswith(rows)
    assert [row for row in more.rows if row.seed == 0] == list(comparison.rows)


def test_compare_measures_the_repaired_average(folder):
    arguments = ["compare", "a.safetensors", "b.safetensors", "--task", "job_nets:task", "--repair", "--json"]
    comparison = alignkit_comparison(run(*arguments, "--solver", "weight_matching", "--model", "job_nets:net"))
    assert all(row.repaired_loss is not None for row in comparison.rows)
    assert "--model" in run(*arguments, *GIVEN, code=2)


def alignkit_comparison(text):
    from alignkit.jobs.compare.comparison import Comparison

    return Comparison.from_json(text)


def test_compare_refuses_what_is_no_task(folder):
    for wrong, message, code in (("number", "not an alignkit.Task", 1), ("nothing", "names no function", 2)):
        said = run("compare", "a.safetensors", "b.safetensors", *GIVEN, "--task", f"job_nets:{wrong}", code=code)
        assert message in said
    said = run("compare", "a.safetensors", "b.safetensors", *GIVEN, "--task", "job_nets:broken", code=1)
    assert "failed: FileNotFoundError: no data here" in said
    said = run("compare", "a.safetensors", "b.safetensors", *GIVEN, "--solver", "weight_machting", code=2)
    assert "Did you mean 'weight_matching'" in said


def test_names_stay_whole_on_a_terminal_of_80_columns(folder, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    said = run("compare", A, B, "--model", "job_nets:net", "--task", "job_nets:task", "--repair")
    lines = said.splitlines()
    assert max(map(len, lines)) <= 80
    words = {line.split()[0] for line in lines if line.strip()}
    assert set(alignkit.list_solvers()) <= words
