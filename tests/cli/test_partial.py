"""Checkpoints that lack tensors, by leave of the user: every command that reads networks, on disk and in memory."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
import typer

import alignkit
from alignkit import read_weights, write_weights
from alignkit.cli import app
from helpers.command_line import run
from helpers.weight_files import GIVEN, JOBS, SPEC, TUNED, A, B, C, equal

LACKED = ("0.weight", "0.bias", "2.weight", "2.bias")
READING = {name for name, (call, _) in JOBS.items() if call[0] != "check"}
PLACES = [(job, at) for job, (call, _) in JOBS.items() for at, path in enumerate(call) if str(path).endswith("tensors")]
# A spec does not say how large a tensor is that no network has, as where there is one network only.
PLACES = [(job, at) for job, at in PLACES if JOBS[job][0][at - 1] != "-o" and job != "canonical-form"]


def commands() -> dict[str, set[str]]:
    """Return the switches of every command."""
    known = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    return {name: {switch for each in command.params for switch in each.opts} for name, command in known.items()}


def without(path: str, *names: str) -> dict[str, torch.Tensor]:
    """Write a network anew without some tensors, and return what is left."""
    rest = {name: tensor for name, tensor in read_weights(path).items() if name not in names}
    write_weights(path, rest)
    return rest


def numbers_of(text: str) -> dict[str, object]:
    facts = json.loads(text)
    return {name: value for name, value in facts.items() if not re.search("second|memory|history|notes", name)}


def test_every_command_that_reads_networks_takes_the_switch() -> None:
    reads_networks = {name for name, switches in commands().items() if {"--key", "--draws"} & switches}
    assert reads_networks == {name for name, switches in commands().items() if "--allow-missing" in switches}
    assert reads_networks >= {JOBS[name][0][0] for name in JOBS}


@pytest.mark.parametrize("name", LACKED)
@pytest.mark.parametrize(("job", "at"), PLACES)
def test_it_is_refused_without_leave_and_done_with_it(folder: Path, job: str, at: int, name: str) -> None:
    call, output = JOBS[job]
    without(str(call[at]), name)
    told = run(*call, code=1)
    assert f"it lacks '{name}'" in told and f"--allow-missing '{name.partition('.')[0]}.*'" in told
    assert not output or not Path(output).exists()
    said = run(*call, "--allow-missing", name)
    assert f"lacks '{name}'" in said
    assert "-0 " not in said and "nan" not in said


@pytest.mark.parametrize(("job", "at"), [place for place in PLACES if "--memory" in commands()[JOBS[place[0]][0][0]]])
def test_on_disk_it_is_the_same_as_in_memory(folder: Path, job: str, at: int) -> None:
    call, output = JOBS[job]
    without(str(call[at]), "2.weight", "2.bias")
    call = [*call, "--allow-missing", "2.*", "--json"]
    whole = numbers_of(run(*call))
    files = sorted(Path().glob("out*/*.safetensors")) + sorted(Path().glob("out.safetensors"))
    kept = {path: read_weights(path) for path in files}
    on_disk = numbers_of(run(*call, "--memory", "1MB", "--force"))
    for number in ("objective_before", "objective_after", "before", "after"):
        assert on_disk.get(number) == pytest.approx(whole.get(number))
    assert all(torch.allclose(tensor, kept[path][name]) for path in kept for name, tensor in read_weights(path).items())
    assert bool(kept) == bool(output) and all(read_weights(path).keys() == kept[path].keys() for path in kept)


@pytest.mark.parametrize("lacking", [A, B])
def test_distance_counts_what_both_have(folder: Path, lacking: str) -> None:
    without(lacking, "2.bias")
    found = json.loads(run("distance", A, B, *GIVEN, "--allow-missing", "2.bias", "--json"))
    both = [{n: t for n, t in read_weights(path).items() if n != "2.bias"} for path in (A, B)]
    spec = {name: layout for name, layout in SPEC.items() if name != "2.bias"}
    expected = alignkit.distance(alignkit.SymmetryGraph.from_spec(spec, like=both[0]), *both).facts()
    for number in ("before", "after", "objective_before", "objective_after"):
        assert found.get(number) == pytest.approx(expected.get(number))


@pytest.mark.parametrize("lacking", [A, TUNED])
def test_what_a_fine_tune_or_its_base_lacks_is_not_carried(folder: Path, lacking: str) -> None:
    call = JOBS["transport"][0]
    run(*call)
    whole = read_weights("out.safetensors")
    without(lacking, "2.bias")
    run(*call, "--allow-missing", "2.*", "--force")
    carried = read_weights("out.safetensors")
    assert torch.equal(carried["2.bias"], read_weights(B)["2.bias"])
    assert all(torch.allclose(carried[name], whole[name]) for name in ("0.weight", "0.bias", "2.weight"))


def test_a_base_that_lacks_a_tensor_gets_the_rest(folder: Path) -> None:
    rest = without(B, "2.weight", "2.bias")
    run(*JOBS["transport"][0], "--allow-missing", "2.*")
    assert read_weights("out.safetensors").keys() == rest.keys()


@pytest.mark.parametrize("job", ["merge", "merge three", "solve", "distance", "align-many", "canonicalize", "compare"])
def test_a_network_that_is_not_whole_is_not_run_on_data(folder: Path, job: str) -> None:
    without(B, "2.weight")
    call = ["--model" if part == "--spec" else "job_nets:net" if part == "spec.json" else part for part in JOBS[job][0]]
    told = run(*call, "--allow-missing", "2.weight", "--task", "job_nets:task", code=1)
    assert f"--task job_nets:task runs the networks, and {B} lacks '2.weight': leave --task out." in told
    assert not Path("out").exists() and not Path("out.safetensors").exists()


def test_what_is_compared_by_running_it_has_to_be_whole(folder: Path) -> None:
    without(C, "0.bias")
    told = run("check", "job_nets:net", A, "--against", C, "--allow-missing", "0.bias", code=2)
    assert f"{C} lacks '0.bias'" in told


@pytest.mark.parametrize("name", LACKED)
def test_what_folds_and_balances_change_has_to_be_there(folder: Path, name: str) -> None:
    without(B, name)
    call = ["merge", A, B, "-o", "out.safetensors", "--model", "job_nets:net", "--allow-missing", name]
    balanced = name != "2.bias"  # scales move from what writes the hidden units to what reads them
    told = run(*call, "--symmetries", "all", code=int(balanced))
    assert ("something is moved into it or out of it" in told) == balanced
    if balanced:
        run(*call)
    assert not equal(read_weights("out.safetensors"), read_weights(A))


def test_one_file_of_several_is_not_the_network(folder: Path) -> None:
    Path("m").mkdir()
    rest = {name: tensor for name, tensor in read_weights(A).items() if name.startswith("0.")}
    write_weights("m/model-00001-of-00002.safetensors", rest)
    told = run("distance", "m/model-00001-of-00002.safetensors", B, *GIVEN, code=1)
    assert "is one file of several: it lacks '2.bias', '2.weight'. Name the folder m, or its index." in told
