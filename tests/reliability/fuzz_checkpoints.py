"""Damage checkpoints at random and count what happens when they are opened, read and written again.

Run by name: `python tests/reliability/fuzz_checkpoints.py 2000 [SEED]`. Every damaged checkpoint has to be refused with
a `WeightsError` before anything is written, or to be read in full. Anything else (another exception, a crash, an output
of a refused checkpoint, code run from a pickle) is a failure, and the script ends with status 1.
"""

from __future__ import annotations

import collections
import json
import multiprocessing
import os
import random
import shutil
import struct
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import safetensors.torch
import torch

from alignkit.checkpoints import open_checkpoint, write_checkpoint
from alignkit.errors import WeightsError

Damage = Callable[[Path, random.Random], None]
INDEX = "model.safetensors.index.json"


def make(folder: Path) -> None:
    """A sharded folder ``hub`` with side files, and the pickles ``zip.pt`` and ``old.pt``."""
    hub = folder / "hub"
    hub.mkdir()
    generator = torch.Generator().manual_seed(0)
    weights = {f"layers.{i}.weight": torch.randn(6, 5, generator=generator).bfloat16() for i in range(6)}
    weight_map = {}
    for number, names in enumerate(
        (["layers.0.weight", "layers.1.weight"], [f"layers.{i}.weight" for i in range(2, 6)])
    ):
        file = f"model-{number + 1:05}-of-00002.safetensors"
        safetensors.torch.save_file({name: weights[name] for name in names}, hub / file, {"format": "pt"})
        weight_map |= dict.fromkeys(names, file)
    (hub / INDEX).write_text(json.dumps({"metadata": {"total_size": 360}, "weight_map": weight_map}))
    (hub / "config.json").write_text("{}")
    torch.save(weights, folder / "zip.pt")
    torch.save(weights, folder / "old.pt", _use_new_zipfile_serialization=False)


def shard(folder: Path, dice: random.Random) -> Path:
    return dice.choice(sorted((folder / "hub").glob("*.safetensors")))


def header_of(path: Path) -> tuple[dict[str, dict[str, object]], bytes]:
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def with_header(path: Path, header: str, data: bytes, length: int | None = None) -> None:
    text = header.encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)


def truncated(folder: Path, dice: random.Random) -> None:
    path = shard(folder, dice)
    os.truncate(path, dice.randrange(path.stat().st_size))


def flipped(path: Path, dice: random.Random, end: int | None = None, count: int = 1) -> None:
    content = bytearray(path.read_bytes())
    for _ in range(count):
        content[dice.randrange(min(end or len(content), len(content)))] ^= 1 << dice.randrange(8)
    path.write_bytes(content)


def wrong_dtype(folder: Path, dice: random.Random) -> None:
    path = shard(folder, dice)
    header, data = header_of(path)
    name = dice.choice([name for name in header if name != "__metadata__"])
    header[name]["dtype"] = dice.choice(["F32", "F64", "I8", "F4", "F8_E4M3", "BOOL", "", "F" * 1000, "U64"])
    with_header(path, json.dumps(header), data)


def wrong_numbers(folder: Path, dice: random.Random) -> None:
    path = shard(folder, dice)
    header, data = header_of(path)
    name = dice.choice([name for name in header if name != "__metadata__"])
    numbers = [-1, 0, 1, 7, 2**31, 2**63, 2**64, 2**70, 1.5, "6", None]
    key = dice.choice(["shape", "data_offsets"])
    header[name][key] = [dice.choice(numbers) for _ in range(dice.randrange(4))]
    with_header(path, json.dumps(header), data)


def duplicate_name(folder: Path, dice: random.Random) -> None:
    path = shard(folder, dice)
    header, data = header_of(path)
    text = json.dumps(header)
    name = dice.choice([name for name in header if name != "__metadata__"])
    with_header(path, f"{text[:-1]}, {json.dumps(name)}: {json.dumps(header[name])}}}", data)


def duplicate_tensor(folder: Path, dice: random.Random) -> None:
    first, second = sorted((folder / "hub").glob("*.safetensors"))
    shutil.copyfile(first, second)


def huge_header(folder: Path, dice: random.Random) -> None:
    path = shard(folder, dice)
    header, data = header_of(path)
    with_header(path, json.dumps(header), data, length=dice.choice([10**8 + 1, 2**31, 2**40, 2**63, 2**64 - 1]))


def path_trick(folder: Path, dice: random.Random) -> None:
    tricks = ["../secret.safetensors", "/etc/passwd", "a/../../secret.safetensors", "..", ".", "", "/dev/zero", "~/x"]
    tricks += [
        "\\\\host\\share",
        "C:\\x.safetensors",
        "nul\0byte",
        "config.json",
        "x" * 5000,
        "hub",
        "./../secret.safetensors",
    ]
    path = folder / "hub" / INDEX
    index = json.loads(path.read_text())
    index["weight_map"][dice.choice(list(index["weight_map"]))] = dice.choice(tricks)
    path.write_text(json.dumps(index))


def link(folder: Path, dice: random.Random) -> None:
    path = dice.choice([shard(folder, dice), folder / "hub" / INDEX, folder / "hub" / "config.json"])
    target = folder / f"secret{path.suffix}"
    path.rename(target)
    path.symlink_to(dice.choice([str(target), f"../{target.name}", path.name, "/dev/zero", "missing"]))


def broken_index(folder: Path, dice: random.Random) -> None:
    path = folder / "hub" / INDEX
    if dice.random() < 0.5:
        flipped(path, dice, count=dice.randrange(1, 4))
    else:
        os.truncate(path, dice.randrange(path.stat().st_size))


def missing_shard(folder: Path, dice: random.Random) -> None:
    shard(folder, dice).unlink()


def swapped_shards(folder: Path, dice: random.Random) -> None:
    first, second = sorted((folder / "hub").glob("*.safetensors"))
    first.rename(folder / "hub" / "x")
    second.rename(first)
    (folder / "hub" / "x").rename(second)


def exploit(folder: Path, dice: random.Random) -> None:
    code = f"touch {folder / 'ran'}".encode()
    evil = b"cposix\nsystem\n(X" + struct.pack("<I", len(code)) + code + b"tR."
    (folder / dice.choice(["zip.pt", "old.pt"])).write_bytes(b"\x80\x02" + evil)


DAMAGES: dict[str, tuple[str, Damage]] = {
    "truncated shard": ("hub", truncated),
    "bit flipped in a shard": ("hub", lambda folder, dice: flipped(shard(folder, dice), dice)),
    "bits flipped in a header": (
        "hub",
        lambda folder, dice: flipped(shard(folder, dice), dice, 250, 1 + dice.randrange(3)),
    ),
    "wrong dtype": ("hub", wrong_dtype),
    "wrong sizes and offsets": ("hub", wrong_numbers),
    "name twice in a header": ("hub", duplicate_name),
    "tensor in two shards": ("hub", duplicate_tensor),
    "huge header": ("hub", huge_header),
    "path trick in the index": ("hub", path_trick),
    "link": ("hub", link),
    "broken index": ("hub", broken_index),
    "missing shard": ("hub", missing_shard),
    "swapped shards": ("hub", swapped_shards),
    "pickle with code": ("any pickle", exploit),
    "truncated pickle": (
        "zip.pt",
        lambda f, dice: os.truncate(f / "zip.pt", dice.randrange((f / "zip.pt").stat().st_size)),
    ),
    "bit flipped in a pickle": (
        "zip.pt",
        lambda folder, dice: flipped(folder / "zip.pt", dice, count=1 + dice.randrange(3)),
    ),
    "bit flipped in an old pickle": (
        "old.pt",
        lambda folder, dice: flipped(folder / "old.pt", dice, count=1 + dice.randrange(3)),
    ),
}


def outcome(folder: Path, target: str) -> str:
    """What opening, reading and writing does; raises what no user should see."""
    names = ["zip.pt", "old.pt"] if target == "any pickle" else [target]
    said = "read in full"
    for name in names:
        out = folder / ("out.pt" if name.endswith(".pt") else "out")
        if out.is_file():
            out.unlink()
        try:
            checkpoint = open_checkpoint(folder / name)
            tensors = dict(checkpoint)
            assert {n: tuple(t.shape) for n, t in tensors.items()} == checkpoint.shapes
            write_checkpoint(out, checkpoint, tensors.__getitem__, overwrite=True)
            assert open_checkpoint(out).shapes == checkpoint.shapes
        except WeightsError:
            said = "refused"
            assert not out.exists(), "an output of a refused checkpoint"
        assert not (folder / "ran").exists(), "code from a pickle was run"
        assert not list(folder.rglob("*.alignkit-*")), "leftovers"
    return said


def trials(kind: str, numbers: range, seed: int, place: str) -> dict[str, int]:
    """Outcomes of some trials, in their own process: a crash there is counted here."""
    target, damage = DAMAGES[kind]
    counts: collections.Counter[str] = collections.Counter()
    for number in numbers:
        folder = Path(tempfile.mkdtemp(dir=place))
        make(folder)
        damage(folder, random.Random(f"{seed} {kind} {number}"))
        try:
            counts[outcome(folder, target)] += 1
        except Exception as error:
            counts[f"FAILED {type(error).__name__}: {error}"[:120]] += 1
        shutil.rmtree(folder)
    return dict(counts)


def run(count: int, seed: int, place: str) -> dict[str, dict[str, int]]:
    """``count`` trials, shared out among the kinds of damage."""
    found = {}
    each = -(-count // len(DAMAGES))
    for kind in DAMAGES:
        with multiprocessing.get_context("forkserver").Pool(1) as pool:
            result = pool.apply_async(trials, (kind, range(each), seed, place))
            try:
                found[kind] = result.get(timeout=60 + each)
            except multiprocessing.TimeoutError:
                found[kind] = {"FAILED crashed or hung": each}
    return found


def main() -> None:
    """Print one line for each kind of damage."""
    count, seed = int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place:
        found = run(count, seed, place)
    for kind, counts in found.items():
        print(f"{kind:<30} " + ", ".join(f"{said} {number}" for said, number in sorted(counts.items())))
    everything: collections.Counter[str] = collections.Counter()
    for counts in found.values():
        for said, number in counts.items():
            everything["failed" if said.startswith("FAILED") else said] += number
    print(f"{sum(everything.values())} damaged checkpoints: " + ", ".join(f"{s} {n}" for s, n in everything.items()))
    sys.exit(1 if everything["failed"] else 0)


if __name__ == "__main__":
    main()
