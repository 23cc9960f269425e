"""The commands on weights: merge, compare, distance, transport and canonicalize."""

from __future__ import annotations

import json
import sys

import pytest
import torch
from typer.testing import CliRunner

import alignkit
from alignkit import Alignment, SymmetryGraph, read_weights, write_weights
from alignkit.cli import app
from alignkit.jobs.average import average
from alignkit.jobs.transport import transport
from helpers.weight_files import MODULE, SPEC, equal, shifted, weights


def run(*arguments, code=0):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "160"})
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    return result.stdout if code == 0 else result.output


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with a; b and c, which are a reordered with a little noise; tuned a; a spec; and a module."""
    graph = SymmetryGraph.from_spec(SPEC, like=weights(0))
    write_weights(tmp_path / "a.safetensors", weights(0))
    write_weights(tmp_path / "tuned.safetensors", shifted(weights(0), 9))
    for seed, name in ((1, "b"), (2, "c")):
        write_weights(tmp_path / f"{name}.safetensors", Alignment.random(graph, seed).apply(shifted(weights(0), seed)))
    write_weights(tmp_path / "same.safetensors", Alignment.random(graph, 5).apply(weights(0)))
    (tmp_path / "spec.json").write_text(json.dumps(SPEC))
    name = f"small_nets_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    return tmp_path


@pytest.fixture
def module(folder):
    return f"small_nets_{folder.name}"


def solved(folder, b="b.safetensors"):
    a, b = (read_weights(folder / name) for name in ("a.safetensors", b))
    return alignkit.solve(SymmetryGraph.from_spec(SPEC, like=a), a, b)


GIVEN = ("--spec", "spec.json")


# ---------------------------------------------------------------------- merge


def test_merge_writes_the_average_of_aligned_models(folder):
    said = run("merge", "a.safetensors", "b.safetensors", "-o", "m.safetensors", *GIVEN)
    a, b = read_weights("a.safetensors"), read_weights("b.safetensors")
    assert equal(read_weights("m.safetensors"), average([a, solved(folder).apply(b)]))
    for word in ("units moved", "unaligned", "aligned", "Function check: not done", "Written: m.safetensors"):
        assert word in said


def test_merge_with_a_model_checks_its_function(folder, module):
    said = run("merge", "a.safetensors", "b.safetensors", "-o", "m.safetensors", "--model", f"{module}:net")
    assert "3 random reorderings change the outputs by at most" in said
    assert equal(
        read_weights("m.safetensors"),
        average([read_weights("a.safetensors"), solved(folder).apply(read_weights("b.safetensors"))]),
    )


def test_merge_takes_shares_methods_and_no_alignment(folder):
    a, b = read_weights("a.safetensors"), read_weights("b.safetensors")
    run("merge", "a.safetensors", "b.safetensors", "-o", "m.pt", *GIVEN, "--weight", 3, "--weight", 1, "--no-align")
    assert equal(read_weights("m.pt"), average([a, b], [3, 1]))
    run("merge", "a.safetensors", "b.safetensors", "-o", "s.pt", *GIVEN, "--method", "slerp")
    assert equal(read_weights("s.pt"), average([a, solved(folder).apply(b)], method="slerp"))


def test_merge_of_three_models(folder):
    names = [f"{name}.safetensors" for name in "abc"]
    facts = json.loads(run("merge", *names, "-o", "m.safetensors", *GIVEN, "--json"))
    assert facts["after"] < 0.1 * facts["before"]
    a, merged = read_weights("a.safetensors"), read_weights("m.safetensors")
    assert all(torch.allclose(a[name], merged[name], atol=0.05) for name in a)


def test_a_wrong_model_is_refused_before_anything_is_written(folder, module):
    write_weights(folder / "wide.safetensors", {**weights(0), "extra": torch.zeros(2)})
    for wrong in ("wide.safetensors", "missing.safetensors"):
        run("merge", "a.safetensors", wrong, "-o", "m.safetensors", *GIVEN, code=1)
    run("merge", "a.safetensors", "b.safetensors", "-o", "m.safetensors", code=2)
    run("merge", "a.safetensors", "b.safetensors", "-o", "m.safetensors", *GIVEN, "--model", "x:y", code=2)
    run("merge", "a.safetensors", "-o", "m.safetensors", *GIVEN, code=2)
    run("merge", "a.safetensors", "b.safetensors", "-o", "m.safetensors", *GIVEN, "--method", "cubic", code=2)
    run("merge", "a.safetensors", "b.safetensors", "-o", "m.safetensors", *GIVEN, "--weight", 1, code=1)
    assert not (folder / "m.safetensors").exists()


# ---------------------------------------------------------------------- distance


def test_distance_says_whether_networks_are_the_same_and_saves_the_proof(folder):
    said = run("distance", "a.safetensors", "same.safetensors", *GIVEN, "--save-alignment", "p.safetensors", "--same")
    assert "the same up to permutation" in said
    a, b = read_weights("a.safetensors"), read_weights("same.safetensors")
    proof = Alignment.load("p.safetensors", SymmetryGraph.from_spec(SPEC, like=a))
    assert equal(proof.apply(b), a)


def test_distance_of_different_networks(folder):
    facts = json.loads(run("distance", "a.safetensors", "b.safetensors", *GIVEN, "--json"))
    assert not facts["same"]
    assert facts["squared_distance_after"] == pytest.approx(solved(folder).objective_after)
    assert set(facts["tensors"]) == set(SPEC)
    said = run("distance", "a.safetensors", "b.safetensors", *GIVEN, "--same", code=1)
    assert "not the same" in said
    run("distance", "a.safetensors", "b.safetensors", *GIVEN, "--same", "--tolerance", 0.5)


# ---------------------------------------------------------------------- transport


def test_transport_moves_the_task_vector(folder):
    names = ["a.safetensors", "tuned.safetensors", "b.safetensors"]
    said = run("transport", *names, "-o", "t.safetensors", *GIVEN, "--save-alignment", "p.safetensors")
    assert "Task vector of length" in said
    a, tuned, b = map(read_weights, names)
    graph = SymmetryGraph.from_spec(SPEC, like=a)
    expected = transport(graph, a, b, tuned=tuned).network
    assert equal(read_weights("t.safetensors"), expected)
    run("transport", *names, "-o", "again.safetensors", *GIVEN, "--alignment", "p.safetensors")
    assert equal(read_weights("again.safetensors"), expected)
    facts = json.loads(run("transport", *names, "-o", "half.safetensors", *GIVEN, "--scale", "-0.5", "--json"))
    assert facts["scale"] == -0.5
    assert equal(read_weights("half.safetensors"), transport(graph, a, b, tuned=tuned, scale=-0.5).network)
    run("transport", *names, "-o", "x.pt", *GIVEN, "--alignment", "p.safetensors", "--option", "restarts=2", code=2)


# ---------------------------------------------------------------------- canonicalize


def test_canonicalize_brings_every_network_to_the_reference(folder):
    said = run("canonicalize", "a.safetensors", "b.safetensors", "same.safetensors", "-o", "canonical", *GIVEN)
    assert "networks a second" in said
    assert equal(read_weights("canonical/same.safetensors"), read_weights("a.safetensors"))
    assert equal(read_weights("canonical/b.safetensors"), solved(folder).apply(read_weights("b.safetensors")))
    facts = json.loads(run("canonicalize", "a.safetensors", "c.safetensors", "-o", "canonical", *GIVEN, "--json"))
    assert facts["networks"][0]["after"] < facts["networks"][0]["before"]


def test_canonicalize_replaces_nothing_and_mixes_up_nothing(folder):
    (folder / "other").mkdir()
    write_weights(folder / "other" / "b.safetensors", weights(3))
    said = run("canonicalize", "a.safetensors", "b.safetensors", "other/b.safetensors", "-o", "out", *GIVEN, code=2)
    assert "several networks are called b.safetensors" in said
    assert not (folder / "out").exists()
    kept = (folder / "b.safetensors").read_bytes()
    assert "--force" in run("canonicalize", "a.safetensors", "b.safetensors", "-o", ".", *GIVEN, code=2)
    assert (folder / "b.safetensors").read_bytes() == kept
    run("canonicalize", "a.safetensors", "b.safetensors", "-o", ".", *GIVEN, "--force")
    assert (folder / "b.safetensors").read_bytes() != kept


# ---------------------------------------------------------------------- compare


def test_compare_shows_a_table_and_draws_it(folder):
    said = run("compare", "a.safetensors", "b.safetensors", *GIVEN, "--solver", "weight_matching", "--picture", "t.png")
    assert "identity" in said
    assert "weight_matching" in said
    assert (folder / "t.png").read_bytes()[:4] == b"\x89PNG"
    assert "--force" in run("compare", "a.safetensors", "b.safetensors", *GIVEN, "--picture", "t.png", code=2)


@pytest.mark.slow
def test_compare_with_a_task_in_processes_resumes(folder, module):
    arguments = ["compare", "a.safetensors", "b.safetensors", *GIVEN, "--task", f"{module}:task", "--json"]
    arguments += ["--solver", "identity > weight_matching", "--resume", "rows.jsonl", "--points", 5]
    found = alignkit_comparison(run(*arguments, "--seed", 0, "--jobs", 1))
    assert found.solvers == ("identity", "activation_matching", "identity > weight_matching")
    assert all(row.barrier is not None for row in found.rows)
    rows = (folder / "rows.jsonl").read_bytes()
    more = alignkit_comparison(run(*arguments, "--seed", 0, "--seed", 1, "--jobs", 2))
    assert (folder / "rows.jsonl").read_bytes().startswith(rows)
    assert [row for row in more.rows if row.seed == 0] == list(found.rows)


def test_compare_measures_the_repaired_average(folder, module):
    arguments = ["compare", "a.safetensors", "b.safetensors", "--task", f"{module}:task", "--repair", "--json"]
    found = alignkit_comparison(run(*arguments, "--solver", "weight_matching", "--model", f"{module}:net"))
    assert all(row.repaired_loss is not None for row in found.rows)
    assert "--model" in run(*arguments, *GIVEN, code=2)


def alignkit_comparison(text):
    from alignkit.jobs.compare.comparison import Comparison

    return Comparison.from_json(text)


def test_compare_refuses_what_is_no_task(folder, module):
    for wrong, message in (("number", "not an alignkit.Task"), ("nothing", "names no function")):
        said = run("compare", "a.safetensors", "b.safetensors", *GIVEN, "--task", f"{module}:{wrong}", code=1)
        assert message in said
    said = run("compare", "a.safetensors", "b.safetensors", *GIVEN, "--task", f"{module}:broken", code=1)
    assert "failed: FileNotFoundError: no data here" in said
    said = run("compare", "a.safetensors", "b.safetensors", *GIVEN, "--solver", "weight_machting", code=1)
    assert "Did you mean 'weight_matching'" in said


# ---------------------------------------------------------------------- all


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
