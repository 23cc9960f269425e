"""Folders of models through the command line and back into their library: a row for each family.

    OMP_NUM_THREADS=1 python tests/coverage/round_trip.py docs/results/folders.json --jobs 2

Two networks with random weights are saved by their own library. `alignkit check`, `merge` and `transport` run on the
folders, and the library loads what was written. The loaded merge is run beside the one that `alignkit.merge` makes in
memory. Families that are in the file are left out; `--again` runs some anew. Needs timm, transformers and diffusers;
downloads nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import fnmatch
import importlib.metadata
import json
import logging
import os
import tempfile
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from torch import nn
from typer.testing import CliRunner

import alignkit
import saved_folders
import trace_zoo
from alignkit.checkpoints import ConvertedCheckpoint, open_checkpoint
from alignkit.cli import app
from alignkit.graph.proof.outputs import output_tensors
from alignkit.graph.proof.perturb import perturbed
from alignkit.jobs import NetworkFiles

COMMANDS = ["check", "a", "--json"], ["merge", "a", "b", "-o", "m"], ["transport", "a", "c", "b", "-o", "t"]
TOLERANCE = 1e-4
"""Largest difference of outputs in float32, as a share of the largest output, at which two networks are the same."""


@dataclass
class RoundTrip:
    """A row of the table of folders.

    Attributes:
        source: Library.
        name: Family, or architecture.
        model: Class of the model.
        stored: How the tensors on disk differ from those in memory: `"as in memory"`, `"renamed"`,
            `"in other pieces"`.
        groups: Number of groups of the trace.
        others: Sizes of the inputs that were changed in the verification, too.
        check: Whether `alignkit check` passed; `merge` and `transport` are the same for these commands.
        alike: Whether what merge and transport wrote has the files, names, shapes, dtypes and metadata of the input.
        reload: Whether the library loads the results and misses nothing.
        error: Difference of the outputs of the loaded merge and of the one in memory, as a share of the largest output.
        status: `"complete"`, or the first step that failed.
        reason: Why.
    """

    source: str
    name: str
    model: str = ""
    stored: str = ""
    groups: int = 0
    others: tuple[str, ...] = ()
    check: bool = False
    merge: bool = False
    transport: bool = False
    alike: bool = False
    reload: bool = False
    error: float | None = None
    status: str = "build"
    reason: str = ""

    def row(self) -> dict[str, Any]:
        """Return the fields as JSON holds them."""
        return asdict(self)


def round_trip(source: str, name: str) -> RoundTrip:
    """Save two networks, run the commands and load what they wrote; whatever happens becomes a row."""
    result = RoundTrip(source, name)
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        try:
            _save(result)
            for command in COMMANDS:
                result.status = command[0]
                _run(result, command)
            result.status = "files"
            _compare_files(result)
            result.status = "reload"
            merged = saved_folders.load(source, name, Path("m"))
            saved_folders.load(source, name, Path("t"))
            result.reload = True
            result.status = "outputs"
            _compare_outputs(result, merged)
            result.status = "complete"
        except Exception as error:  # libraries may fail in any way
            result.reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    return result


def _save(result: RoundTrip) -> None:
    """Save three networks of random weights: `a`, `b`, and `c`, which stands for a fine-tune of `a`."""
    for seed, folder in enumerate("abc"):
        model = perturbed(saved_folders.build(result.source, result.name, seed))
        saved_folders.save(result.source, model, Path(folder))
    result.model, result.status = type(model).__name__, "trace"
    files = alignkit.open_networks("a", "b")
    result.groups = len(files.graph.groups)
    held = files.checkpoints[0]
    result.stored = "as in memory"
    if isinstance(held, ConvertedCheckpoint):
        result.stored = "in other pieces" if held.whole_only else "renamed"


def _run(result: RoundTrip, command: list[str]) -> None:
    done = CliRunner().invoke(app, command)
    if done.exit_code:
        raise RuntimeError(done.output[-600:])
    if command[0] == "check":
        result.others = tuple(next(iter(json.loads(done.stdout)["checks"].values()))["others"])
    setattr(result, command[0], True)


def _compare_files(result: RoundTrip) -> None:
    for before, after in (("a", "m"), ("b", "t")):
        one, two = open_checkpoint(before), open_checkpoint(after)
        files = [sorted(str(path.relative_to(side)) for path in Path(side).rglob("*")) for side in (before, after)]
        facts = [(checkpoint.shapes, checkpoint.dtypes, dict(checkpoint.metadata)) for checkpoint in (one, two)]
        if files[0] != files[1] or facts[0] != facts[1]:
            raise RuntimeError(f"{after} has other files, names, shapes, dtypes or metadata than {before}")
    result.alike = True


def _compare_outputs(result: RoundTrip, loaded: nn.Module) -> None:
    files = alignkit.open_networks("a", "b")
    merged = alignkit.merge(files.graph, *files.weights).network
    held = files.module(0)
    held.load_state_dict(dict(merged), strict=False)
    ours, theirs = _outputs(held, files), _outputs(loaded.eval(), files)
    if len(ours) != len(theirs):
        raise RuntimeError(f"{len(theirs)} outputs, not {len(ours)}")
    pairs = list(zip(ours, theirs, strict=True))
    result.error = max(float((one - two).abs().max() / one.abs().max().clamp_min(1e-30)) for one, two in pairs)
    if not result.error < TOLERANCE:
        raise RuntimeError(f"outputs differ by {result.error:.1g}")


def _outputs(model: nn.Module, files: NetworkFiles) -> list[torch.Tensor]:
    assert files.example is not None
    _, args, kwargs = files.example
    torch.manual_seed(0)  # some models draw in their forward
    with torch.no_grad():
        return [t for t in output_tensors(model(*args, **kwargs)) if t.is_floating_point() and t.numel()]


def main() -> None:
    """Run what is missing in the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    parser.add_argument("--only", nargs="+", default=["*"], help="patterns of names")
    parser.add_argument("--again", nargs="+", default=[], help="patterns of names or statuses that are run anew")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--limit", type=float, default=120, help="processor seconds for a family")
    options = parser.parse_args()
    kept = json.loads(options.results.read_text())["families"] if options.results.exists() else []
    rows = {
        (row["source"], row["name"]): row
        for row in kept
        if not any(fnmatch.fnmatch(row[key], pattern) for key in ("name", "status") for pattern in options.again)
    }
    wanted = [(source, name) for source, names in saved_folders.FAMILIES.items() for name in names]
    todo = [
        key for key in wanted if key not in rows and any(fnmatch.fnmatch(key[1], pattern) for pattern in options.only)
    ]
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    round_trip("transformers", "bert")  # the processes share what is imported
    for number, row in enumerate(trace_zoo.run(todo, options.jobs, options.limit, 12, round_trip), 1):
        rows[row["source"], row["name"]] = row
        print(f"{number}/{len(todo)} {row['source']}:{row['name']} {row['status']} {row['reason'][:200]}", flush=True)
        libraries = ("torch", *saved_folders.FAMILIES)
        content = {
            "command": "python tests/coverage/round_trip.py docs/results/folders.json",
            "versions": {library: importlib.metadata.version(library).partition("+")[0] for library in libraries},
            "families": [rows[key] for key in wanted if key in rows],
        }
        options.results.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
