"""Kill merges at random moments, fill the disk under them, and run two into one output; count what is left.

Run by name: `python tests/reliability/kill_merges.py 100 [SEED]`. A merge averages two checkpoints of 24 MB in three
shards into a folder. Afterwards the output has to be whole: what was there before, or the new average, with all side
files; inputs are untouched; the next merge removes what killed ones left. Anything else ends the script with status 1.
"""

from __future__ import annotations

import collections
import json
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import safetensors.torch
import torch

from alignkit import Alignment, SymmetryGraph
from alignkit.checkpoints import ByteProgress, open_checkpoint
from alignkit.errors import WeightsError
from alignkit.jobs.from_disk import merge_checkpoints

UNITS, LAYERS = 1000, 6
GRAPH = SymmetryGraph.from_spec(
    {f"layers.{i}.weight": f"h{i} h{i + 1}" for i in range(LAYERS)},
    {f"layers.{i}.weight": (UNITS, UNITS) for i in range(LAYERS)},
)
MEMORY = "10MB"


def make(folder: Path, name: str, value: float) -> None:
    """A checkpoint in three shards whose numbers are all the same."""
    place = folder / name
    place.mkdir()
    weight_map = {}
    for number in range(3):
        file = f"model-{number + 1:05}-of-00003.safetensors"
        names = [f"layers.{i}.weight" for i in (2 * number, 2 * number + 1)]
        safetensors.torch.save_file(
            {n: torch.full((UNITS, UNITS), value) for n in names}, place / file, {"format": "pt"}
        )
        weight_map |= dict.fromkeys(names, file)
    (place / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    for side in ("config.json", "tokenizer.json"):
        (place / side).write_text(json.dumps({"side": side}))


def merge(
    folder: Path, share: float, *, overwrite: bool = True, on_progress: Callable[[ByteProgress], None] | None = None
) -> None:
    """Average A (zeros) and B (ones): every number of the output is ``share``."""
    sides = [open_checkpoint(folder / name) for name in "ab"]
    merge_checkpoints(
        folder / "out",
        sides,
        [None, Alignment.random(GRAPH, 1)],
        [1 - share, share],
        memory=MEMORY,
        overwrite=overwrite,
        on_progress=on_progress,
    )


def value_of(folder: Path) -> float | None:
    """The one number of the output, None where there is no output; raises where it is not whole."""
    if not (folder / "out").exists():
        return None
    checkpoint = open_checkpoint(folder / "out")
    assert {str(p) for p in checkpoint.side_files} == {"config.json", "tokenizer.json", "model.safetensors.index.json"}
    assert all(
        (folder / "out" / side).read_bytes() == (folder / "a" / side).read_bytes() for side in checkpoint.side_files
    )
    values = {float(v) for tensor in checkpoint.values() for v in (tensor.min(), tensor.max())}
    assert len(checkpoint) == LAYERS and len(values) == 1, f"half of one merge and half of another: {values}"
    return values.pop()


def leftovers(folder: Path) -> int:
    return sum(path.name.startswith(".") for path in folder.iterdir())


def started(work: Callable[[], None]) -> int:
    """Run work in a process of its own; its status is 0 when it ends well, 3 for a `WeightsError`, 4 for others."""
    child = os.fork()
    if child:
        return child
    try:
        work()
        os._exit(0)
    except WeightsError:
        os._exit(3)
    except BaseException:
        traceback.print_exc()
        os._exit(4)


def status(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def kills(folder: Path, count: int, dice: random.Random) -> dict[str, int]:
    """Kill merges; every second one has an output to replace."""
    begun = time.perf_counter()
    assert status(started(lambda: merge(folder, 0.25))) == 0
    length = time.perf_counter() - begun
    counts: collections.Counter[str] = collections.Counter()
    for number in range(count):
        before = value_of(folder)
        if number % 2:
            subprocess.run(["rm", "-r", str(folder / "out")], check=before is not None)
            before = None
        share = 0.5 if before != 0.5 else 0.75
        child = started(lambda share=share: merge(folder, share))
        time.sleep(dice.uniform(0, 1.1 * length))
        os.kill(child, signal.SIGKILL)
        counts["killed" if status(child) == -signal.SIGKILL else "ended before the kill"] += 1
        after = value_of(folder)
        assert after in (before, share), f"{after} is neither {before} nor {share}"
        counts["new output whole" if after == share else "old output whole" if before is not None else "no output"] += 1
        counts["left a temporary folder"] += leftovers(folder) > 0
        if dice.random() < 0.5 or after is None:
            assert status(started(lambda: merge(folder, 0.25))) == 0
            assert value_of(folder) == 0.25
            assert not leftovers(folder), "leftovers of a killed merge"
            counts["repeated, leftovers removed"] += 1
    return dict(counts)


def full_disks(folder: Path, count: int, dice: random.Random) -> dict[str, int]:
    """Merges that may write only so many bytes a file (RLIMIT_FSIZE)."""
    counts: collections.Counter[str] = collections.Counter()
    for number in range(count):
        if number % 2 and (folder / "out").exists():
            subprocess.run(["rm", "-r", str(folder / "out")], check=True)
        before = value_of(folder)
        limit = dice.randrange(9_000_000)

        def limited(limit: int = limit) -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
            merge(folder, 0.5)

        code = status(started(limited))
        assert code in (0, 3), f"status {code}"
        assert value_of(folder) == (0.5 if code == 0 else before)
        assert not leftovers(folder)
        counts[
            "written" if code == 0 else "refused, old output whole" if before is not None else "refused, no output"
        ] += 1
    return dict(counts)


def full_volume(folder: Path) -> dict[str, int]:
    """A merge onto a small volume that somebody else fills while it runs; skipped where none can be mounted."""
    volume = folder / "volume"
    volume.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=40m", "tmpfs", str(volume)], capture_output=True)
    if mounted.returncode:
        return {"skipped, mount is not permitted": 1}
    counts: collections.Counter[str] = collections.Counter()
    try:
        for part in (0.1, 0.5, 0.9):

            def fill(report: ByteProgress, part: float = part) -> None:
                if report.fraction >= part and not (volume / "filler").exists():
                    with (volume / "filler").open("wb", buffering=0) as stream:
                        try:
                            while True:
                                stream.write(b"\0" * 65536)
                        except OSError:
                            pass

            def onto_volume() -> None:
                sides = [open_checkpoint(folder / name) for name in "ab"]
                merge_checkpoints(
                    volume / "out", sides, [None, Alignment.random(GRAPH, 1)], memory=MEMORY, on_progress=fill
                )

            assert status(started(onto_volume)) == 3
            assert [path.name for path in volume.iterdir()] == ["filler"]
            counts["filled, refused, nothing left"] += 1
            assert status(started(onto_volume)) == 3  # refused at once: there is no room
            counts["full at the start, refused"] += 1
            (volume / "filler").unlink()
    finally:
        subprocess.run(["umount", str(volume)], check=True)
    return dict(counts)


def pairs(folder: Path, count: int, dice: random.Random) -> dict[str, int]:
    """Two merges at once into one output, replacing it or not."""
    counts: collections.Counter[str] = collections.Counter()
    for number in range(count):
        overwrite = bool(number % 2)
        if (folder / "out").exists() and not overwrite:
            subprocess.run(["rm", "-r", str(folder / "out")], check=True)
        first = started(lambda overwrite=overwrite: merge(folder, 0.5, overwrite=overwrite))
        time.sleep(dice.uniform(0, 0.05))
        second = started(lambda overwrite=overwrite: merge(folder, 0.75, overwrite=overwrite))
        codes = sorted((status(first), status(second)))
        assert codes == ([0, 0] if overwrite else [0, 3]), f"statuses {codes}"
        assert value_of(folder) in (0.5, 0.75)
        assert not leftovers(folder)
        counts["both replaced, one whole output" if overwrite else "one written, one refused, one whole output"] += 1
    return dict(counts)


def run(count: int, seed: int, folder: Path) -> dict[str, dict[str, int]]:
    """All of it; what came out of each part."""
    dice = random.Random(seed)
    make(folder, "a", 0.0)
    make(folder, "b", 1.0)
    inputs = {path: path.read_bytes() for name in "ab" for path in (folder / name).iterdir()}
    found = {
        "SIGKILL": kills(folder, count, dice),
        "limited files": full_disks(folder, max(2, count // 5), dice),
        "full volume": full_volume(folder),
        "two at once": pairs(folder, max(2, count // 5), dice),
    }
    assert all(path.read_bytes() == content for path, content in inputs.items()), "an input was changed"
    return found


def main() -> None:
    """Print the counts of each part."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place:
        found = run(int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0, Path(place))
    for part, counts in found.items():
        print(f"{part:<14} " + ", ".join(f"{said} {number}" for said, number in counts.items()))


if __name__ == "__main__":
    main()
