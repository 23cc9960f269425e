"""Kill every command that writes at random moments, fill the disk under it, and run two into one output; count.

Run by name: `python tests/reliability/kills.py --kills 200 --seed 0`. Every run is a process of its own. After a kill
(SIGKILL) the outputs have to be what they were before, nothing, or the whole new ones; inputs are as they were; the
same command succeeds then, gives what a run without a kill gives, and removes what the killed one left. Anything else
ends the script with status 1.
"""

from __future__ import annotations

import argparse
import collections
import hashlib
import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from alignkit import Alignment, SymmetryGraph, zoo
from alignkit.checkpoints import prepare_output
from alignkit.checkpoints.unfinished import is_unfinished
from alignkit.cli import app

SPEC = {"0.weight": "g .", "0.bias": "g", "2.weight": "h g", "2.bias": "h", "4.weight": ". h", "4.bias": "."}
SHAPES = {"0.weight": (200, 300), "0.bias": (200,), "2.weight": (200, 200), "2.bias": (200,), "4.weight": (10, 200)}
SHAPES |= {"4.bias": (10,)}
IN = Path("..", "inputs")
A, B, C, D, TUNED = (str(IN / f"{name}.safetensors") for name in ("a", "b", "c", "d", "tuned"))
FOLDERS = [str(IN / name) for name in ("fa", "fb", "fc")]
GIVEN = ["--spec", str(IN / "spec.json")]
TRAIN = ["--encoder", "dws", "--steps", "4", "--setting", "pairs=2", "--setting", "validation_pairs=2"]
TRAIN += ["--setting", "checkpoint_every=1", "--encoder-option", "hidden=8", "--log", "log", "--resume", "--force"]
COMPARED = ["--solver", "weight_matching", "--solver", "frank_wolfe", "--seed", "0", "--seed", "1"]
ZOO = ["--widths", "4", "--source", "digits", "--count", "6", "--shard", "2", "--steps", "20"]
Files = Mapping[str, bytes]
LIMIT = 120
"""Seconds that one command may take."""
PROCESSES = multiprocessing.get_context("forkserver")
"""A server that has computed nothing: a process forked from one that has can hang in its first product."""
PROCESSES.set_forkserver_preload(
    ["alignkit.cli", "alignkit.jobs", "alignkit.training", "alignkit.zoo", "sklearn.datasets"]
)


@dataclass(frozen=True)
class Command:
    """A command line, one that gives an older result at the same place, and what differs from run to run."""

    line: list[str]
    older: list[str]
    outputs: tuple[str, ...]
    changing: tuple[str, ...] = ()


@dataclass(frozen=True)
class Resumed:
    """A command line that goes on where a killed run was, and what of its results has to be equal then."""

    line: list[str]
    result: Callable[[Path], object]


def rows(folder: Path) -> object:
    """The rows of a comparison without times, memory, and the check sums over them."""
    read = map(json.loads, (folder / "rows.jsonl").read_text().splitlines()[1:])
    kept = [{key: v for key, v in row.items() if key not in ("seconds", "peak_memory", "digest")} for row in read]
    return sorted(kept, key=lambda row: str((row["solver"], row["seed"])))


def networks(folder: Path) -> object:
    """The weights of a set of networks, and what its manifest says of each."""
    shards = json.loads((folder / "nets" / "manifest.json").read_text())["shards"]
    return shards, {path.name: path.read_bytes() for path in (folder / "nets").glob("*.safetensors")}


def aligner(folder: Path) -> object:
    """The tensors of an aligner."""
    return {name: tensor.tolist() for name, tensor in load_file(folder / "al.safetensors").items()}


def merging(one: str, other: str, older: str, *rest: str, changing: tuple[str, ...] = ()) -> Command:
    """A merge of two networks; the older one of the first and another."""
    output, *more = rest
    outputs = (output, *(name for name in more if Path(name).suffix in (".md", ".html")))
    tail = ["-o", output, *more, *GIVEN]
    return Command(["merge", one, other, *tail], ["merge", one, older, *tail], outputs, changing)


PT = [str(IN / f"{name}.pt") for name in "abc"]
SOLVE = ["-o", "s.safetensors", "--save-alignment", "al.safetensors", *GIVEN]
COMMANDS: dict[str, Command | Resumed] = {
    "merge file": merging(A, B, C, "m.safetensors"),
    "merge .pt": merging(*PT, "m.pt"),
    "merge folder": merging(*FOLDERS, "m"),
    "merge --memory": merging(*FOLDERS, "m", "--memory", "20MB"),
    "merge --report": merging(A, B, C, "m.safetensors", "--report", "r.md", changing=("r.md",)),
    "solve": Command(["solve", A, B, *SOLVE], ["solve", A, C, *SOLVE], ("s.safetensors", "al.safetensors")),
    "transport": Command(
        ["transport", A, TUNED, B, *SOLVE],
        ["transport", A, TUNED, C, *SOLVE],
        ("s.safetensors", "al.safetensors"),
    ),
    "align-many": Command(
        ["align-many", A, B, C, "-o", "set", *GIVEN],
        ["align-many", A, B, C, "-o", "set", *GIVEN, "--reference", "1"],
        ("set",),
    ),
    "align-many here": Command(  # a folder that others write to as well
        ["align-many", A, B, C, "-o", ".", *GIVEN],
        ["align-many", A, B, C, "-o", ".", *GIVEN, "--reference", "1"],
        ("a.safetensors", "b.safetensors", "c.safetensors"),
    ),
    "canonicalize": Command(
        ["canonicalize", A, B, C, "-o", "set", *GIVEN], ["canonicalize", D, B, C, "-o", "set", *GIVEN], ("set",)
    ),
    "compare --resume": Resumed(
        ["compare", A, B, *GIVEN, "--seed", "0", "--seed", "1", "--resume", "rows.jsonl"], rows
    ),
    "zoo": Resumed(["zoo", "nets", *ZOO], networks),
    "train-deepalign": Resumed(["train-deepalign", str(IN / "nets"), "-o", "al.safetensors", *TRAIN], aligner),
}


def make_inputs(folder: Path) -> None:
    """Four networks as files and folders, a spec, and a set of networks to train on."""
    folder.mkdir()

    def draw(seed: int, scale: float) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        return {name: scale * torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}

    def moved(base: Mapping[str, Tensor], seed: int) -> dict[str, Tensor]:
        return {
            name: tensor + noise for (name, tensor), noise in zip(base.items(), draw(seed, 0.3).values(), strict=True)
        }

    a = draw(0, 1.0)
    graph = SymmetryGraph.from_spec(SPEC, a)
    b, c, d = (Alignment.random(graph, seed).apply(moved(a, seed)) for seed in (1, 2, 3))
    for name, weights in {"a": a, "b": b, "c": c, "d": d, "tuned": moved(a, 9)}.items():
        save_file(weights, folder / f"{name}.safetensors")
        torch.save(weights, folder / f"{name}.pt")
        place = folder / f"f{name}"
        place.mkdir()
        table = {}
        for number, names in enumerate((list(weights)[::2], list(weights)[1::2]), 1):
            file = f"model-0000{number}-of-00002.safetensors"
            save_file({n: weights[n] for n in names}, place / file, {"format": "pt"})
            table |= dict.fromkeys(names, file)
        (place / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": table}))
        (place / "tokenizer.json").write_text("{}")
    (folder / "spec.json").write_text(json.dumps(SPEC))
    recipe = zoo.Recipe(epochs=1)
    zoo.write_set(
        folder / "nets",
        zoo.plan_set(zoo.Mlp(widths=(4,)), zoo.source("digits"), 10, recipe=recipe, shares=(0.6, 0.4, 0.0)),
    )


def files_in(folder: Path) -> Files:
    """All files that are not hidden, by their place."""
    paths = [path.relative_to(folder) for path in folder.rglob("*") if path.is_file()]
    return {str(p): (folder / p).read_bytes() for p in paths if not any(part.startswith(".") for part in p.parts)}


def digest(folder: Path) -> str:
    """A digest of all files of a folder."""
    files = sorted((str(path), path.read_bytes()) for path in folder.rglob("*") if path.is_file())
    return hashlib.sha256(repr(files).encode()).hexdigest()


def leftovers(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob("*") if is_unfinished(path.name)]


def run_line(line: list[str], folder: Path, file_size: int | None) -> None:
    """Run a command line in a folder and exit with its code; files may get so many bytes."""
    torch.set_num_threads(1)
    if file_size is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_size, file_size))
    os.chdir(folder)
    said = os.open(os.devnull if file_size is not None else folder.parent / "said.txt", os.O_CREAT | os.O_WRONLY)
    os.dup2(said, 1)
    os.dup2(said, 2)
    try:
        app(line)
    except SystemExit as error:
        sys.exit(error.code if isinstance(error.code, int) else 98)
    except BaseException:
        traceback.print_exc()
        sys.exit(99)


def started(line: list[str], folder: Path, file_size: int | None = None) -> BaseProcess:
    """Run a command line in a process of its own."""
    process = PROCESSES.Process(target=run_line, args=(line, folder, file_size))
    process.start()
    return process


def ended(process: BaseProcess) -> int:
    """Wait for a process to end; return its exit code, negative where a signal ended it."""
    process.join(LIMIT)
    if process.exitcode is None:
        process.kill()
        raise AssertionError(f"a command did not end in {LIMIT} s")
    return process.exitcode


class Trial:
    """Runs of one command in a fresh folder each, beside what a run without a kill gives."""

    def __init__(self, name: str, place: Path) -> None:
        self.name, self.place, self.command = name, place, COMMANDS[name]
        self.folder = self.fresh()
        begun = time.perf_counter()
        self.run(self.command.line)
        self.length = time.perf_counter() - begun
        self.new = files_in(self.folder)
        self.expected = self.command.result(self.folder) if isinstance(self.command, Resumed) else None
        self.old: Files = {}
        if isinstance(self.command, Command):
            self.run(self.command.older, into=self.fresh())
            self.old = files_in(self.folder)
            assert self.old.keys() == self.new.keys(), (self.old.keys(), self.new.keys())
            assert self.old != self.new, f"{name}: both lines give one result"

    def fresh(self, files: Files = {}) -> Path:  # noqa: B006  never written to
        """Make the folder new, with some files."""
        self.folder = self.place / "work"
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir()
        for name, content in files.items():
            (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
            (self.folder / name).write_bytes(content)
        return self.folder

    def run(self, line: list[str], into: Path | None = None) -> None:
        """Run to the end, which has to be a good one."""
        code = ended(started(line, into or self.folder))
        assert code == 0, f"{self.name}: exit code {code}\n{(self.place / 'said.txt').read_text(errors='replace')}"

    def state(self) -> str:
        """Whether the outputs are "none", "old", "new" or "mixed"."""
        assert isinstance(self.command, Command)
        files, changing = files_in(self.folder), self.command.changing
        if not files:
            return "none"

        def plain(some: Files) -> Files:
            return {name: content for name, content in some.items() if name not in changing}

        if files == self.old:
            return "old"
        is_new = plain(files) == plain(self.new) and files.keys() == self.new.keys()
        return "new" if is_new and all(files[name] != self.old[name] for name in changing) else "mixed"

    def look(self) -> None:
        """Let the next run clean up at every output, without running it."""
        assert isinstance(self.command, Command)
        for output in self.command.outputs:
            prepare_output(self.folder / output)


def kill(trial: Trial, replacing: bool, dice: random.Random, counts: collections.Counter[str]) -> None:
    """Kill one run, look at what is there, and run again."""
    command = trial.command
    if isinstance(command, Resumed):
        folder = trial.fresh()
        died = killed(started(command.line, folder), dice.uniform(0, 1.1 * trial.length))
        trial.run(command.line)
        assert command.result(folder) == trial.expected, f"{trial.name}: resumed to another result"
        counts["died"] += died
        counts["resumed to the same result"] += 1
    else:
        before, force = ("old", ["--force"]) if replacing else ("none", [])
        folder = trial.fresh(trial.old if replacing else {})
        child = started([*command.line, *force], folder)
        if dice.random() < 0.7:  # most of a run computes: wait until it writes, so that the kill meets that
            while not leftovers(folder) and child.is_alive():
                time.sleep(0.001)
            died = killed(child, dice.uniform(0, 0.02))
        else:
            died = killed(child, dice.uniform(0, 1.1 * trial.length))
        counts["died"] += died
        after = trial.state()
        if after == "mixed":
            counts["put back by the next run"] += 1
            trial.look()
            after = trial.state()
        assert after in (before, "new"), f"{trial.name}: {after} after {before}"
        counts[f"{after} after {before}"] += died
        counts["leftovers"] += bool(leftovers(folder))
        trial.run([*command.line, *(["--force"] if after != "none" else [])])
        assert trial.state() == "new", f"{trial.name}: {trial.state()} after the next run"
    assert not leftovers(folder), f"{trial.name}: {leftovers(folder)} are left"


def killed(child: BaseProcess, after: float) -> bool:
    """Kill a process after some seconds; whether it died of that."""
    time.sleep(after)
    child.kill()
    return ended(child) == -signal.SIGKILL


def fill_disk(trial: Trial, replacing: bool, dice: random.Random, counts: collections.Counter[str]) -> None:
    """Run with a limit on the size of files: either everything is written, or everything is as it was."""
    command = trial.command
    if isinstance(command, Resumed):
        folder = trial.fresh()
        code = ended(started(command.line, folder, dice.randrange(2_000)))
        trial.run(command.line)
        assert command.result(folder) == trial.expected, f"{trial.name}: resumed to another result"
    else:
        folder, before = trial.fresh(trial.old if replacing else {}), "old" if replacing else "none"
        largest = max(map(len, trial.new.values()))
        line = [*command.line, *(["--force"] if replacing else [])]
        code = ended(started(line, folder, dice.randrange(largest)))
        assert trial.state() == before, f"{trial.name}: {trial.state()} on a full disk"
    assert code in (0, 1), f"{trial.name}: exit code {code} on a full disk"
    assert not leftovers(folder), f"{trial.name}: {leftovers(folder)} are left"
    counts["refused, all as it was" if code else "written"] += 1


def two_at_once(trial: Trial, replacing: bool, dice: random.Random, counts: collections.Counter[str]) -> None:
    """Run the newer and the older command into one place: one of the two results has to be there, whole."""
    command = trial.command
    if isinstance(command, Resumed):
        return
    folder, force = trial.fresh(trial.old if replacing else {}), ["--force"] if replacing else []
    first = started([*command.line, *force], folder)
    time.sleep(dice.uniform(0, 0.3 * trial.length))
    second = started([*(command.older if not command.changing else command.line), *force], folder)
    codes = sorted((ended(first), ended(second)))
    assert codes[0] == 0, f"{trial.name}: exit codes {codes}"
    assert codes[1] in (0, 1, 2), f"{trial.name}: exit codes {codes}"
    assert trial.state() in ("old", "new"), f"{trial.name}: {trial.state()} after two at once"
    assert not leftovers(folder), f"{trial.name}: {leftovers(folder)} are left"
    counts["both written, one whole result" if codes == [0, 0] else "one written, one refused"] += 1


def run(kills: int, seed: int, place: Path, others: int | None = None) -> dict[str, dict[str, int]]:
    """Do all of it, every command in turn; return what came out of each part."""
    dice = random.Random(seed)
    make_inputs(place / "inputs")
    before = digest(place / "inputs")
    trials = [Trial(name, place) for name in COMMANDS]
    others = kills // 5 if others is None else others
    parts = {"SIGKILL": (kill, kills), "full disk": (fill_disk, others), "two at once": (two_at_once, others)}
    found: dict[str, dict[str, int]] = {}
    for part, (work, count) in parts.items():
        all_counts: dict[str, collections.Counter[str]] = {name: collections.Counter() for name in COMMANDS}
        for number in range(3 * count):
            deaths = sum(counts["died"] for counts in all_counts.values())
            if (deaths if work is kill else number) >= count:  # a run that had ended before does not count
                break
            turn, at = divmod(number, len(trials))
            work(trials[at], bool(turn % 2), dice, all_counts[trials[at].name])
            assert digest(place / "inputs") == before, f"{trials[at].name}: an input was changed"
        for name, counts in all_counts.items():
            if counts:
                found[f"{part}, {name}"] = {said: number for said, number in counts.items() if number}
        found[f"{part}, all"] = dict(sum(all_counts.values(), collections.Counter()))
    return found


def main() -> None:
    """Print the counts of each part and command."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        found = run(asked.kills, asked.seed, Path(place))
    for part, counts in found.items():
        print(f"{part:<32} " + ", ".join(f"{said} {number}" for said, number in counts.items()))


if __name__ == "__main__":
    sys.exit(main())
