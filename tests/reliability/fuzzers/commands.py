"""Command lines: every command with switches, files and values, those that it declares and others."""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import typer
from torch import Tensor
from typer.testing import CliRunner

from alignkit import AlignkitError, Alignment, SymmetryGraph, read_weights, write_weights
from alignkit.cli import app
from fuzzers.engine import Case, Dice, expect
from fuzzers.networks import numbers
from fuzzers.values import changed_bytes
from helpers.weight_files import GIVEN, JOBS, MODULE, SPEC, shifted, weights

BASES: list[list[str]] = [
    *(arguments for arguments, _ in JOBS.values()),
    *(
        ["merge", "a.safetensors", "b.safetensors", "-o", out, *GIVEN]
        for out in ("a.safetensors", "deep/out.pt", "out")
    ),
    ["solvers"],
    ["solvers", "weight_matching"],
    ["trace", "job_nets:net"],
    ["demo", "--dry-run"],
    ["zoo", "set", "--count", "0"],
    ["train-deepalign", "set", "-o", "aligner"],
    ["--version"],
]
FILES = ("a.safetensors", "b.safetensors", "c.safetensors", "same.safetensors", "tuned.safetensors", "bad.safetensors")
VALUES = (
    *FILES,
    "spec.json",
    "bad.json",
    "job_nets:net",
    "job_nets:task",
    "job_nets:number",
    "job_nets:broken",
    "nowhere.pt",
)
WORDS = (
    *VALUES,
    "0",
    "1",
    "2",
    "-1",
    "0.5",
    "nan",
    "1e400",
    "x",
    "",
    "weight_matching",
    "identity",
    "cpu",
    "1GB",
    "9" * 30,
)
WORDS += (
    "out.html",
    "out.md",
    "out.json",
    "é",
    "a\udcff",
    "--",
    "-",
    "seed=1",
    "max_steps=2",
    "max_steps=x",
    "[]",
    "/dev/null",
)
SLOW = {"demo", "zoo", "train-deepalign"}
"""Commands that train for seconds when they are asked well: they keep what refuses them or ends them early."""


def commands() -> dict[str, list[Any]]:
    """The options that each command declares."""
    program: Any = typer.main.get_command(app)
    return {
        name: [p for p in command.params if p.opts[0].startswith("-")] for name, command in program.commands.items()
    }


OPTIONS = commands()


def fill(dice: Dice, folder: Path) -> None:
    """The files that commands work on, one of each damaged."""
    graph = SymmetryGraph.from_spec(SPEC, like=weights(0))
    files = {"a": weights(0), "tuned": shifted(weights(0), 9)}
    files |= {n: Alignment.random(graph, i).apply(shifted(weights(0), i)) for i, n in ((1, "b"), (2, "c"))}
    files["same"] = Alignment.random(graph, 5).apply(weights(0))
    for name, tensors in files.items():
        write_weights(folder / f"{name}.safetensors", tensors)
    (folder / "bad.safetensors").write_bytes(changed_bytes(dice, (folder / "a.safetensors").read_bytes()))
    (folder / "spec.json").write_text(json.dumps(SPEC))
    (folder / "bad.json").write_bytes(changed_bytes(dice, json.dumps(SPEC).encode()))
    (folder / "job_nets.py").write_text(MODULE)


def arguments_for(dice: Dice) -> list[str]:
    """A right command line with some words replaced, left out or added."""
    line = list(dice.choice(BASES))
    for at in range(1, len(line)):
        if dice.chance(0.08) and not line[at].startswith("-"):
            line[at] = dice.choice(WORDS)
    if len(line) > 1 and dice.chance(0.1):
        del line[dice.randrange(1, len(line))]
    if not line or line[0] not in OPTIONS:
        return line + [dice.choice(WORDS) for _ in range(dice.randrange(2))]
    for option in dice.sample(OPTIONS[line[0]], min(len(OPTIONS[line[0]]), dice.randrange(4))):
        line.append(dice.choice(option.opts))
        if not flag(option):
            line.append(dice.choice(WORDS))
    if dice.chance(0.1):
        line.insert(dice.randrange(len(line) + 1), dice.choice((*WORDS, "--unknown", "--sed", "-q", "--help")))
    if line[0] in SLOW and "--dry-run" not in line:
        line.append("--dry-run" if line[0] == "demo" else "--unknown")
    return line


def flag(option: Any) -> bool:
    return bool(getattr(option, "is_flag", False)) or option.bare_type is bool


@contextmanager
def importable(folder: Path) -> Iterator[None]:
    """Let the folder's module be imported, and forget it afterwards."""
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        sys.modules.pop("job_nets", None)


def make(dice: Dice, folder: Path) -> Case:
    fill(dice, folder)
    line = arguments_for(dice)
    before = {name: read_weights(folder / name) for name in FILES[:5]}

    def run() -> None:
        with importable(folder), torch.random.fork_rng(devices=[]):  # the user's own modules may draw numbers
            result = CliRunner().invoke(app, line, env={"COLUMNS": "200"})
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        if result.exit_code in (1, 2):
            raise AlignkitError(last_words(result.output))
        expect(result.exit_code == 0, f"exit code {result.exit_code}: {result.output[-600:]}")
        expect("Traceback" not in result.output, "a traceback is shown")
        switches = [option for option in OPTIONS.get(line[0], ()) if "--json" in option.opts and flag(option)]
        if switches and "--json" in line and not set(line) & {"--help", "--version"}:
            json.loads(result.stdout)
        if (
            line
            and line[0] == "solve"
            and Path("out.safetensors").exists()
            and not set(line) & {"--help", "--alignment"}
        ):
            aligned = read_weights("out.safetensors")
            expect(any(rearranged(aligned, other) for other in before.values()), "aligned B is not B in another order")

    values = [value for option, value in itertools.pairwise(line) if option.startswith("-")]
    written = (
        () if "--dry-run" in line else tuple(Path(value).parts[0] for value in values if value and Path(value).parts)
    )
    written += tuple(f"{Path(value).stem}{end}" for value in values for end in ("_files", "_pictures", "-pictures"))
    return Case("alignkit " + " ".join(map(repr, line)), run, outputs=written)


def last_words(output: str) -> str:
    """The message that ends a refused command, without the usage before it and the progress."""
    return output.rpartition("Error")[2].strip() or output.strip()


def rearranged(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    """Return whether two networks hold the same numbers, tensor by tensor, in any order."""
    if left.keys() != right.keys():
        return False
    return all(sorted(numbers(left[n]).ravel()) == sorted(numbers(right[n]).ravel()) for n in left)
