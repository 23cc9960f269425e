"""Files: checkpoints and documents with bytes, structures and links changed, pickles of any kind, odd paths."""

from __future__ import annotations

import json
import os
import pickle
import struct
import tempfile
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

import alignkit
from alignkit import AlignkitError, Alignment, Comparison, Solution, SymmetryGraph, read_weights, write_weights
from alignkit.checkpoints import open_checkpoint
from alignkit.zoo import NetworkSet
from fuzz_checkpoints import DAMAGES, INDEX
from fuzz_checkpoints import make as make_checkpoints
from fuzzers.engine import Case, Dice, expect
from fuzzers.networks import NETS, random_alignment, same, weights_for
from fuzzers.state_dicts import plain
from fuzzers.values import DTYPES, ODD, anything, changed_bytes, changed_json, filled


def by_library(path: Path) -> dict[str, Tensor]:
    """What the libraries that the formats come from read; of a directory that torch refuses, what was there before."""
    if path.suffix == ".safetensors":
        return safetensors.torch.load_file(path)
    try:
        return torch.load(path, weights_only=True, map_location="cpu")
    except RuntimeError:
        with tempfile.TemporaryDirectory() as whole:
            make_checkpoints(Path(whole))
            return torch.load(Path(whole, path.name), weights_only=True)


def read_like_library(path: Path) -> None:
    """Read a checkpoint; names, dtypes and numbers have to be those that its library reads."""
    read = read_weights(path)
    if path.is_dir():
        shards = sorted(set(json.loads((path / INDEX).read_text())["weight_map"].values()))
        expected = {name: tensor for shard in shards for name, tensor in by_library(path / shard).items()}
    else:
        expected = by_library(path)
    expect(same(read, plain(expected)), "other weights are read than the library reads")
    checkpoint = open_checkpoint(path)
    expect(checkpoint.shapes == {n: tuple(t.shape) for n, t in read.items()}, "shapes differ from what is read")


def checkpoint(dice: Dice, folder: Path) -> Case:
    """A checkpoint that was damaged in a way that has a name."""
    make_checkpoints(folder)
    kind = dice.choice(sorted(DAMAGES))
    target, damage = DAMAGES[kind]
    damage(folder, dice)
    name = dice.choice(("zip.pt", "old.pt")) if target == "any pickle" else target

    def run() -> None:
        read_like_library(folder / name)
        expect(not (folder / "ran").exists(), "code from a pickle was run")

    return Case(f"{name}: {kind}", run, names=(name.split(".")[0], "secret"))


def safetensors_file(dice: Dice, folder: Path) -> Case:
    """A safetensors file whose header or bytes were changed: what its library reads, or refused."""
    weights = {f"w{i}": filled(dice, (dice.randint(1, 3), 2), dice.choice(DTYPES[:12])) for i in range(2)}
    path = folder / "w.safetensors"
    safetensors.torch.save_file(weights, path, {"format": "pt"})
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    if dice.chance(0.5):
        for _ in range(dice.randint(1, 2)):
            header = changed_json(dice, header)
        text = json.dumps(header).encode()
        data = struct.pack("<Q", len(text) if dice.chance(0.9) else dice.getrandbits(64)) + text + data[8 + length :]
    else:
        data = changed_bytes(dice, data)
    path.write_bytes(data)

    def run() -> None:
        # Where the library refuses a file, so does alignkit.
        try:
            by_library(path)
        except Exception as error:
            refused = error
        else:
            read_like_library(path)
            return
        read_weights(path)
        expect(False, f"read, though the library says {refused}")

    return Case(f"safetensors with changes: {header}", run, ("w.safetensors",))


class Runs:
    """Would run code if its pickle were trusted."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("ran",)


PICKLED: dict[str, Callable[[Dice, dict[Any, Any]], Any]] = {
    "as it is": lambda dice, w: w,
    "ordered": lambda dice, w: OrderedDict(w),
    "keys that are no texts": lambda dice, w: {dice.pick(5, None, ("a", 1), b"x", 1.5): t for t in w.values()} | w,
    "a number and its text": lambda dice, w: {5: w["w0"], "5": w["w1"]},
    "expanded": lambda dice, w: {**w, "w0": torch.zeros(1).expand(dice.pick(3, 10**5, 10**9, 10**13))},
    "shared storage": lambda dice, w: {**w, "w2": w["w0"][:1], "w3": w["w0"].T},
    "nested": lambda dice, w: {"state_dict": w},
    "nested with more": lambda dice, w: {"model": w, "epoch": 3},
    "list": lambda dice, w: list(w.values()),
    "tensor": lambda dice, w: w["w0"],
    "number": lambda dice, w: {**w, "epoch": 3},
    "anything": lambda dice, w: {**w, "w0": anything(dice)},
    "odd": lambda dice, w: {**w, "w0": ODD[dice.choice(sorted(ODD))](w["w0"])},
    "code": lambda dice, w: {**w, "w0": Runs()},
    "recursive": lambda dice, w: w | {"w2": w},
    "cyclic": lambda dice, w: (w.update(w=w), w)[1],
    "deep": lambda dice, w: __import__("functools").reduce(lambda inner, _: [inner], range(300), w),
    "other names": lambda dice, w: {
        dice.pick("", ".", "a\0b", "\ud800", "x" * 5000, "__metadata__"): t for t in w.values()
    },
}
"""What stands in a pickle."""


def pickled(dice: Dice, folder: Path) -> Case:
    """A pickle of any content, in any container: what torch reads, or refused; code is never run."""
    weights = {f"w{i}": filled(dice, (2, dice.randint(1, 3)), dice.choice(DTYPES)) for i in range(2)}
    kind, path = dice.choice(sorted(PICKLED)), folder / dice.pick("w.pt", "w.bin", "w.pth", "w.safetensors")
    container = dice.choice(
        ("zip", "zip", "old", "plain pickle", "deflated", "stored again", "comment", "bytes", "tar")
    )
    try:
        value = PICKLED[kind](dice, weights)
        if container == "plain pickle":
            path.write_bytes(pickle.dumps(value))
        else:
            torch.save(value, path, _use_new_zipfile_serialization=container not in ("old", "tar"))
    except Exception:  # what cannot be saved cannot be read
        kind, value = "as it is", weights
        torch.save(weights, path, _use_new_zipfile_serialization=container not in ("old", "tar"))
    if container in ("deflated", "stored again", "comment"):
        rezip(path, container, dice)
    elif container == "bytes":
        path.write_bytes(changed_bytes(dice, path.read_bytes()))

    def run() -> None:
        try:
            read = read_weights(path)
        finally:
            expect(not Path("ran").exists(), "code from a pickle was run")
        try:
            library: dict[str, Any] = by_library(path)
        except Exception:  # torch.load stumbles over some dtypes in old files
            library = value
        inside = (library[key] for key in ("state_dict", "model") if isinstance(library.get(key), Mapping))
        expected = next(inside, library)
        expect(same(read, plain(expected)), "other weights are read than torch reads")

    return Case(f"{path.name}: {kind} as {container}", run, (path.name,))


def rezip(path: Path, way: str, dice: Dice) -> None:
    """Write the entries of a zip again, compressed, stored, or with a comment; some are left out or doubled."""
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    if dice.chance(0.2):
        del entries[dice.choice(sorted(entries))]
    method = {"deflated": dice.pick(zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2)}.get(way, zipfile.ZIP_STORED)
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in entries.items():
            archive.writestr(name, data, method if dice.chance(0.8) else zipfile.ZIP_STORED)
        archive.comment = b"x" * dice.randrange(300) if way == "comment" else b""


def document(dice: Dice, folder: Path) -> Case:
    """An alignment or a solution whose header, tensors or bytes were changed."""
    name = dice.choice(sorted(NETS))
    graph = NETS[name]
    path = folder / "document.safetensors"
    solution = dice.chance(0.6)
    if solution:
        weights = [weights_for(dice, graph) for _ in range(2)]
        alignkit.solve(
            graph, *weights, solver=dice.pick("weight_matching", "identity", "identity > weight_matching")
        ).save(path)
    else:
        random_alignment(dice, graph).save(path)
    with safetensors.safe_open(path, "pt") as file:
        metadata, tensors = dict(file.metadata()), {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    way = dice.choice(("header", "header", "header", "tensors", "bytes", "no header", "text"))
    if way == "bytes":
        path.write_bytes(changed_bytes(dice, path.read_bytes()))
    else:
        if way == "header":
            metadata["alignkit"] = json.dumps(changed_json(dice, json.loads(metadata["alignkit"])))
        elif way == "text":
            metadata["alignkit"] = dice.pick("", "null", "1", "[", "[" * 100_000, "{}", '"x"', "true", "\ufeff{}")
        elif way == "tensors":
            key = dice.choice(sorted(tensors))
            tensors[key] = dice.pick(
                tensors[key] * 0, tensors[key].float(), tensors[key][None].clone(), tensors[key] + 1
            )
        else:
            metadata = {}
        safetensors.torch.save_file(tensors, path, metadata)
    kind: Any = Solution if solution else Alignment

    def run() -> None:
        loaded = kind.load(path, graph)
        alignment = loaded.alignment if solution else loaded
        Alignment(graph, dict(alignment.elements))
        if solution:  # what was taken can be used
            loaded.explain(), loaded.facts(), repr(loaded), loaded._repr_html_()
            loaded.save("again.safetensors")

    return Case(
        f"{kind.__name__} on {name}: {way} {str(metadata)[:400]}",
        run,
        ("document.safetensors",),
        outputs=("again.safetensors",),
    )


def graph_pair() -> tuple[SymmetryGraph, list[dict[str, Tensor]]]:
    graph = NETS["two layers"]
    generator = torch.Generator().manual_seed(0)
    return graph, [
        {n: torch.randn(node.shape, generator=generator) for n, node in graph.tensors.items()} for _ in range(2)
    ]


def rows(dice: Dice, folder: Path) -> Case:
    """A file of rows with lines changed: resumed with the rows of a run without it, or refused."""
    graph, sides = graph_pair()
    path = folder / "rows.jsonl"
    solvers = ["identity", "weight_matching"]
    whole = alignkit.compare(graph, *sides, solvers=solvers, path=path)
    lines = path.read_text().splitlines()
    way = dice.choice(("json", "json", "bytes", "cut", "doubled", "swapped"))
    at = dice.randrange(len(lines))
    if way == "json":
        lines[at] = json.dumps(changed_json(dice, json.loads(lines[at])))
    elif way == "doubled":
        lines.insert(at, lines[at])
    elif way == "swapped":
        lines.reverse()
    data = ("\n".join(lines) + "\n").encode()
    data = changed_bytes(dice, data) if way == "bytes" else data[: dice.randrange(len(data))] if way == "cut" else data
    path.write_bytes(data)

    def run() -> None:
        again = alignkit.compare(graph, *sides, solvers=solvers, path=path)
        expect([row.solver for row in again.rows] == [row.solver for row in whole.rows], "other rows come back")
        again.explain(), again.facts(), Comparison.from_json(again.to_json())

    return Case(f"rows.jsonl: {way} {data[:500]!r}", run, ("rows.jsonl",), outputs=("rows.jsonl",))


def comparison_text(dice: Dice, folder: Path) -> Case:
    """The JSON of a comparison with parts changed."""
    graph, sides = graph_pair()
    text = alignkit.compare(graph, *sides, solvers=["identity"]).to_json()
    text = (
        json.dumps(changed_json(dice, json.loads(text)))
        if dice.chance(0.8)
        else dice.pick("", "null", "[" * 10**5, "1")
    )

    def run() -> None:
        comparison = Comparison.from_json(text)
        comparison.explain(), comparison.facts(), Comparison.from_json(comparison.to_json())

    return Case(f"Comparison.from_json({text[:500]})", run)


def network_set(dice: Dice, folder: Path) -> Case:
    """A set of networks whose manifest is changed, or that is no set at all."""
    text = MANIFEST if dice.chance(0.1) else json.dumps(changed_json(dice, json.loads(MANIFEST)))
    data = changed_bytes(dice, text.encode()) if dice.chance(0.2) else text.encode()
    (folder / "manifest.json").write_bytes(data)

    def run() -> None:
        networks = NetworkSet.open(folder)
        expect(len(networks) >= 0, "a negative number of networks")
        for index in range(min(3, len(networks))):
            networks[index]

    return Case(f"manifest.json: {data[:500]!r}", run)


MANIFEST = json.dumps(
    {
        "format": "alignkit.zoo",
        "version": 1,
        **alignkit.zoo.Manifest(
            plan=alignkit.zoo.plan_set(alignkit.zoo.architecture("siren"), alignkit.zoo.source("sine"), 4),
            splits={"train": (0, 1), "validation": (2,), "test": (3,)},
        ).model_dump(mode="json"),
    }
)

PATHS: dict[str, Callable[[Path], object]] = {
    "missing": lambda path: None,
    "pipe": os.mkfifo,
    "folder": lambda path: path.mkdir(),
    "link to itself": lambda path: path.symlink_to(path.name),
    "dangling link": lambda path: path.symlink_to("nowhere.pt"),
    "link to the zero device": lambda path: path.symlink_to("/dev/zero"),
    "empty": lambda path: path.touch(),
    "text": lambda path: path.write_text("these are no weights"),
    "good": lambda path: write_weights(path, {"w": torch.zeros(2)}),
}
NAMES = (
    "w.pt",
    "w.safetensors",
    "w",
    "w.npz",
    ".pt",
    "x" * 300 + ".pt",
    "a\0.pt",
    "\ud800.pt",
    "no/w.pt",
    "é.pt",
    "w.PT",
    "w.pt/x.pt",
)


def odd_path(dice: Dice, folder: Path) -> Case:
    """Reading and writing at places where nothing can be read or written."""
    name, there = dice.choice(NAMES), dice.choice(sorted(PATHS))
    path = folder / name
    try:
        PATHS[there](path)
    except (OSError, ValueError, AlignkitError):
        there = "missing"
    graph = NETS["two layers"]
    alignment = Alignment.identity(graph)
    deeds: dict[str, Callable[[], object]] = {
        "read": lambda: read_weights(path),
        "open": lambda: open_checkpoint(path),
        "write": lambda: check_written(path),
        "save": lambda: (alignment.save(path), Alignment.load(path, graph)),
        "load": lambda: Alignment.load(path, graph),
        "load a solution": lambda: Solution.load(path, graph),
        "draw": lambda: graph.draw(path),
        "read a set": lambda: NetworkSet.open(path),
        "bind": lambda: graph.bind(path, path),
        "compare": lambda: alignkit.compare(graph, *graph_pair()[1], solvers=["identity"], path=path),
        "open networks": lambda: alignkit.open_networks(path, path, spec=path),
    }
    deed = dice.choice(sorted(deeds))
    written = ("*",) if deed in ("write", "save", "draw", "compare") else ()
    return Case(f"{deed} {name[:40]!r}, which is {there}", deeds[deed], outputs=written)


def check_written(path: Path) -> None:
    write_weights(path, {"w": torch.ones(2)})
    expect(same(read_weights(path), {"w": torch.ones(2)}), "other weights are read than were written")


def make(dice: Dice, folder: Path) -> Case:
    kinds = (
        checkpoint,
        safetensors_file,
        pickled,
        pickled,
        document,
        document,
        rows,
        comparison_text,
        network_set,
        odd_path,
    )
    return dice.choice(kinds)(dice, folder)
