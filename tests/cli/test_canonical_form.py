"""``alignkit canonical-form``: one form for all equals of a network, without a reference."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from alignkit import Alignment, SymmetryGraph, read_weights, write_weights
from helpers.command_line import run
from helpers.weight_files import GIVEN, A, B

NET = ("--model", "job_nets:net")


def form_of(name: str, *more: object) -> dict[str, torch.Tensor]:
    run("canonical-form", name, "-o", "form.safetensors", "--force", *more)
    return read_weights("form.safetensors")


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
def test_copies_in_any_order_come_to_the_same_weights(folder: Path, seed: int, dtype: str) -> None:
    given = {name: tensor.to(getattr(torch, dtype)) for name, tensor in read_weights(A).items()}
    graph = SymmetryGraph.from_spec(json.loads(Path("spec.json").read_text()), given)
    write_weights("one.safetensors", given)
    write_weights("two.safetensors", Alignment.random(graph, seed).apply(given))
    one, two = form_of("one.safetensors", *GIVEN), form_of("two.safetensors", *GIVEN)
    assert all(torch.equal(tensor, two[name]) for name, tensor in one.items())
    other = form_of(B, *GIVEN)
    assert not all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def test_what_was_done_is_told(folder: Path) -> None:
    said = run("canonical-form", A, "-o", "form.safetensors", *NET, "--report", "form.md")
    assert "Every unit has its place" in said and "Function check of" in said
    assert "units moved" in Path("form.md").read_text()
    write_weights("tied.safetensors", {n: torch.zeros_like(t) for n, t in read_weights(A).items()})
    facts = json.loads(run("canonical-form", "tied.safetensors", "-o", "t.safetensors", *GIVEN, "--json"))
    assert sum(facts["ties"].values()) > 0
    assert "--tolerance" in run("canonical-form", A, "-o", "x.safetensors", *GIVEN, "--tolerance", "-1", code=2)
    assert "--force" in run("canonical-form", A, "-o", "form.safetensors", *GIVEN, code=2)


def test_one_network_without_a_reference_is_sent_there(folder: Path) -> None:
    assert "alignkit canonical-form" in run("canonicalize", A, "-o", "out", *GIVEN, code=2)
    assert not Path("out").exists()
