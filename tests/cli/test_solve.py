"""`alignkit solve`: what is printed, which files appear, and how it ends."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

import alignkit
from alignkit import Alignment, Outcome, Problem, Solver, SolverOptions, SymmetryGraph, read_weights, write_weights
from alignkit.plugins.plugin_registry import registry
from alignkit.solver import Report
from helpers.command_line import run
from helpers.weight_files import MODULE

SPEC = {"0.weight": "h .", "0.bias": "h", "2.weight": ". h", "2.bias": "."}


def weights(seed: int, hidden: int = 6) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"0.weight": (hidden, 4), "0.bias": (hidden,), "2.weight": (3, hidden), "2.bias": (3,)}
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with model a, b = a with its units reordered (safetensors and .pt), and the spec."""
    graph = SymmetryGraph.from_spec(SPEC, like=weights(0))
    shuffled = Alignment.random(graph, seed=3).apply(weights(0))
    write_weights(tmp_path / "a.safetensors", weights(0))
    write_weights(tmp_path / "b.safetensors", shuffled)
    write_weights(tmp_path / "b.pt", shuffled)
    (tmp_path / "spec.json").write_text(json.dumps(SPEC))
    return tmp_path


def solve(folder: Path, *more: object, code: int = 0, a: str = "a.safetensors", b: str = "b.safetensors") -> str:
    output = [] if "-o" in more else ["-o", folder / "out.safetensors"]
    spec = [] if "--spec" in more else ["--spec", folder / "spec.json"]
    return run("solve", folder / a, folder / b, *spec, *output, *more, code=code)


# ---------------------------------------------------------------------- solve


@pytest.mark.parametrize("b", ["b.safetensors", "b.pt"])
@pytest.mark.parametrize("output", ["out.safetensors", "out.pt"])
def test_solve_recovers_a_permuted_copy_from_files(folder: Path, b: str, output: str) -> None:
    printed = solve(folder, "-o", folder / output, b=b)
    aligned = read_weights(folder / output)
    assert all(torch.equal(aligned[name], tensor) for name, tensor in weights(0).items())
    assert "weight_matching: squared distance" in printed
    assert str(folder / output) in printed


FACTORY = """
import torch
from torch import nn

def build():
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)), torch.randn(2, 4)
"""


def test_solve_traces_the_model_where_there_is_no_spec(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "made_for_this_test.py").write_text(FACTORY)
    monkeypatch.chdir(folder)
    run("solve", "a.safetensors", "b.safetensors", "--model", "made_for_this_test:build", "-o", "out.safetensors")
    aligned = read_weights(folder / "out.safetensors")
    assert all(torch.equal(aligned[name], tensor) for name, tensor in weights(0).items())


class Keep(Solver[SolverOptions]):
    """Return the start."""

    name = "keep"
    seen: ClassVar[list[Problem]] = []

    def solve(self, problem: Problem, report: Report) -> Outcome:
        self.seen.append(problem)
        return Outcome(problem.start)


class Plugin:
    @alignkit.hookimpl
    def alignkit_register_solvers(self) -> list[type[Keep]]:
        return [Keep]


@pytest.fixture
def keep() -> Iterator[str]:
    name = registry().register(Plugin(), name="keep")
    yield Keep.name
    registry().unregister(name)


def test_a_saved_alignment_is_a_start_for_the_next_solver(folder: Path, keep: str) -> None:
    found = folder / "found.safetensors"
    solve(folder, "--save-alignment", found)
    assert "Nothing moved" in solve(folder, "-o", folder / "unaligned.pt", "--solver", keep)
    assert "-> 0 " in solve(folder, "-o", folder / "aligned.pt", "--solver", keep, "--init", found)
    assert torch.equal(read_weights(folder / "aligned.pt")["0.weight"], weights(0)["0.weight"])


@pytest.mark.parametrize("solver", ["sinkhorn", "weight_matching"])
def test_a_saved_solution_is_a_start_with_its_soft_alignment(folder: Path, keep: str, solver: str) -> None:
    graph, found = SymmetryGraph.from_spec(SPEC, like=weights(0)), folder / "found.safetensors"
    solution = alignkit.solve(graph, weights(0), weights(1), solver=solver)
    solution.save(found)
    solve(folder, "--solver", keep, "--init", found)
    problem = Keep.seen[-1]
    assert problem.init == solution.alignment
    assert (problem.soft_init is None) == (solution.soft is None)
    if solution.soft is not None:
        torch.testing.assert_close(problem.soft_init.matrices["h"], solution.soft.matrices["h"])


def test_options_and_seed_reach_the_solver(folder: Path) -> None:
    printed = solve(folder, "--option", "restarts=zero", code=2)
    assert "restarts='zero'" in printed
    assert "there is no option 'restart'. Did you mean 'restarts'?" in solve(folder, "--option", "restart=2", code=2)
    assert not (folder / "out.safetensors").exists()
    solve(folder, "--option", "restarts=2", "--option", "max_steps=50", "--seed", 4)


def test_a_chain_of_solvers(folder: Path) -> None:
    assert "identity > weight_matching" in solve(folder, "--solver", "identity > weight_matching")


def test_nothing_is_overwritten_without_force(folder: Path) -> None:
    out = folder / "out.safetensors"
    out.write_bytes(b"precious")
    assert "exists. Choose another name, or pass --force" in solve(folder, code=2)
    assert out.read_bytes() == b"precious"
    solve(folder, "--force")
    assert set(read_weights(out)) == set(SPEC)


def write(text: str, name: str) -> Callable[[Path], Any]:
    return lambda folder: (folder / name).write_text(text)


class Code:
    """Something that a pickle may hold and a state dict may not."""


BAD_CALLS: dict[str, tuple[Callable[[Path], Any], list[str], int, str]] = {
    "a does not exist": (lambda f: (f / "a.safetensors").unlink(), [], 1, "does not exist"),
    "a is damaged": (write("no tensors", "a.safetensors"), [], 1, "cannot be read as safetensors"),
    "b runs code": (lambda f: torch.save({"x": Code()}, f / "b.safetensors.pt"), ["B=b.safetensors.pt"], 1, "refused"),
    "b has another width": (lambda f: write_weights(f / "b.safetensors", weights(0, 7)), [], 1, "0.weight"),
    "b is not finite": (
        lambda f: write_weights(f / "b.safetensors", {**weights(0), "2.bias": torch.full((3,), torch.nan)}),
        [],
        1,
        "2.bias",
    ),
    "spec is no json": (write("{", "spec.json"), [], 1, "is not JSON"),
    "spec is a list": (write("[1]", "spec.json"), [], 1, "from names of tensors to layouts"),
    "spec has numbers": (write('{"0.weight": 1}', "spec.json"), [], 1, "from names of tensors to layouts"),
    "spec is missing": (lambda f: (f / "spec.json").unlink(), [], 1, "cannot be read"),
    "spec is wrong": (write(json.dumps({**SPEC, "2.weight": "h h"}), "spec.json"), [], 1, "2.weight"),
    "spec names other tensors": (write('{"fc.weight": "h ."}', "spec.json"), [], 1, "fc.weight"),
    "unknown solver": (lambda f: None, ["--solver", "weight_matchin"], 2, "Did you mean 'weight_matching'?"),
    "solver needs data": (lambda f: None, ["--solver", "activation_matching"], 2, "activation_matching"),
    "unknown device": (lambda f: None, ["--device", "abacus"], 2, "abacus"),
    "init is missing": (lambda f: None, ["--init", "nowhere.safetensors"], 1, "nowhere.safetensors"),
    "init is no alignment": (lambda f: None, ["--init", "A"], 1, "is not an alignment"),
    "init is a text": (lambda f: None, ["--init", "spec.json"], 1, "cannot be read as an alignment"),
    "option without value": (lambda f: None, ["--option", "restarts"], 2, "write KEY=VALUE"),
    "option twice": (lambda f: None, ["--option", "restarts=1", "--option", "restarts=2"], 2, "given twice"),
    "option that is a switch": (lambda f: None, ["--option", "seed=1"], 2, "use --seed instead"),
    "option that is none": (lambda f: None, ["--option", "throw=false"], 2, "not an option of a solver"),
    "output of unknown kind": (lambda f: None, ["-o", "out.txt"], 2, "end its name in"),
    "output in no folder": (lambda f: None, ["-o", "nowhere/out.pt"], 2, "its folder is missing"),
    "one file for both": (lambda f: None, ["--save-alignment", "out.safetensors"], 2, "name the same file"),
    "alignment of unknown kind": (lambda f: None, ["--save-alignment", "found.pt"], 2, "end its name in .safetensors"),
    "unknown switch": (lambda f: None, ["--sovler", "x"], 2, "No such option"),
    "negative seed": (lambda f: None, ["--seed", "-1"], 2, "--seed"),
}


@pytest.mark.parametrize("case", sorted(BAD_CALLS))
def test_a_bad_call_says_why_and_leaves_no_file_behind(
    case: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    prepare, more, code, message = BAD_CALLS[case]
    prepare(folder)
    b = next((word.removeprefix("B=") for word in more if word.startswith("B=")), "b.safetensors")
    more = ["a.safetensors" if word == "A" else word for word in more if not word.startswith("B=")]
    before = {path: path.read_bytes() for path in folder.iterdir()}
    assert message in " ".join(solve(Path(), *more, b=b, code=code).replace("│", " ").split())
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def test_an_unexpected_error_is_told_apart(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("a fault")

    monkeypatch.setattr(alignkit, "solve", broken)
    printed = solve(folder, code=3)
    assert "Unexpected error: ZeroDivisionError: a fault" in printed
    assert "--debug" in printed


@pytest.mark.parametrize("solver", ["activation_matching", "sinkhorn", "straight_through"])
@pytest.mark.parametrize("command", ["solve", "distance"])
def test_solvers_that_work_with_data_take_a_task(
    command: str, solver: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    (folder / "data_of_solve.py").write_text(MODULE)
    steps = [] if solver == "activation_matching" else ["--option", "max_steps=3"]
    line = [command, "a.safetensors", "b.safetensors", "--spec", "spec.json", "--solver", solver, *steps]
    line += ["-o", "out.safetensors"] if command == "solve" else []
    if solver == "activation_matching":
        assert "--task package.module:function" in run(*line, code=2)
    both = run(*line, "--task", "data_of_solve:task", "--memory", "1GB", code=None)
    assert "--memory does not go with --task" in both
    assert solver in run(*line, "--task", "data_of_solve:task")
