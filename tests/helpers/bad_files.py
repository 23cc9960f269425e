"""A folder of good and damaged files: weights, alignments, specs."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from alignkit import Alignment, SymmetryGraph, write_weights

SHAPES = {"fc1.weight": (4, 7), "fc1.bias": (4,), "fc2.weight": (3, 4)}
SPEC = {"fc1.weight": "h .", "fc1.bias": "h", "fc2.weight": ". h"}
GRAPH = SymmetryGraph.from_spec(SPEC, SHAPES)
OTHER = SymmetryGraph.from_spec(SPEC | {"fc2.weight": "out h"}, SHAPES)


def good(seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}


class Exploit:
    """Would run a command if its pickle were trusted."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch {self.marker}",)


def damaged_files(folder: Path) -> None:
    write_weights(folder / "a.safetensors", good())
    write_weights(folder / "b.pt", good(1))
    whole, pickled = (folder / "a.safetensors").read_bytes(), (folder / "b.pt").read_bytes()
    files = {
        "truncated.safetensors": whole[: len(whole) // 2],
        "truncated.pt": pickled[: len(pickled) // 2],
        "flipped.safetensors": bytes([whole[0] ^ 0x80]) + whole[1:],
        "letter.safetensors": whole.replace(b'"dtype"', b'"dtypo"', 1),
        "length.safetensors": b"\xff" * 8 + whole[8:],
        "empty.safetensors": b"",
        "empty.pt": b"",
        "text.pt": b"these are no weights",
        "weights.npz": whole,
        "weights": whole,
    }
    for name, content in files.items():
        (folder / name).write_bytes(content)
    torch.save(Exploit(folder / "ran"), folder / "exploit.pt")
    torch.save({"fc1.weight": Exploit(folder / "ran")}, folder / "exploit.bin")
    torch.save(nn.Linear(2, 2), folder / "module.pt")
    torch.save([torch.zeros(2)], folder / "list.pt")
    torch.save({"fc1.weight": torch.zeros(4, 7), "epoch": 3}, folder / "epoch.pt")
    torch.save({**good(1), "fc1.bias": torch.full((4,), float("nan"))}, folder / "nan.pt")
    (folder / "folder.pt").mkdir()


def alignment_files(folder: Path) -> None:
    Alignment.random(GRAPH, 0).save(folder / "right.safetensors")
    Alignment.random(OTHER, 0).save(folder / "other.safetensors")
    header = {"format": "alignkit.alignment", "version": 1, "graph": GRAPH.fingerprint}
    elements = {"h": torch.tensor([1, 0, 3, 2])}
    changed: dict[str, tuple[Any, Mapping[str, Tensor]]] = {
        "version": ({**header, "version": 99}, elements),
        "kind": ({**header, "format": "alignkit.solution"}, elements),
        "hollow": ({**header, "format": "alignkit.solution", "solution": [1, 2]}, elements),
        "listed": ([1, 2], elements),
        "twice": (header, {"h": torch.tensor([1, 1, 3, 2])}),
        "missing": (header, {}),
        "unknown": (header, {**elements, "g": elements["h"].clone()}),
    }
    for name, (facts, tensors) in changed.items():
        metadata = {"alignkit": json.dumps(facts)}
        safetensors.torch.save_file(dict(tensors), folder / f"{name}.safetensors", metadata)
    whole = (folder / "right.safetensors").read_bytes()
    (folder / "half.safetensors").write_bytes(whole[:-20])


def text_files(folder: Path) -> None:
    (folder / "spec.json").write_text(json.dumps(SPEC))
    (folder / "broken.json").write_text('{"fc1.weight": ')
    (folder / "numbers.json").write_text('{"fc1.weight": 3}')
    (folder / "wrong.json").write_text(json.dumps(SPEC | {"fc1.weight": "h * ."}))


def fill(folder: Path) -> Path:
    """Write every file; a pickle that is trusted makes the file ``ran`` in this folder."""
    damaged_files(folder)
    alignment_files(folder)
    text_files(folder)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else b"" for p in folder.rglob("*")}
