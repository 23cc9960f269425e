"""`--outputs`: which outputs count, in every command that traces a model."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import alignkit
from alignkit import Alignment, read_weights, write_weights
from alignkit.graph.proof.perturb import perturbed
from alignkit.models import load_model
from helpers.command_line import run
from helpers.weight_files import TUNED, A, B, C

MODULE = """
import torch
from torch import nn

class Scores(nn.Module):
    def __init__(self):
        super().__init__()
        self.encode, self.score = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x):
        memory = self.encode(x).tanh()
        return {"scores": self.score(memory), "memory": memory}

def net():
    return Scores(), torch.linspace(-1, 1, 20).reshape(5, 4)
"""
GIVEN = ["--model", "score_nets:net"]
COMMANDS = {
    "trace": ["trace", "score_nets:net"],
    "check": ["check", "score_nets:net", A],
    "check a spec": ["check", "score_nets:net", A, "--spec", "moves.json"],
    "check against": ["check", "score_nets:net", A, "--against", B],
    "solve": ["solve", A, B, "-o", "out.safetensors", *GIVEN],
    "merge": ["merge", A, B, "-o", "out.safetensors", *GIVEN],
    "compare": ["compare", A, B, "--solver", "weight_matching", *GIVEN],
    "distance": ["distance", A, B, *GIVEN],
    "transport": ["transport", A, TUNED, B, "-o", "out.safetensors", *GIVEN],
    "align-many": ["align-many", A, B, C, "-o", "out", *GIVEN],
    "canonicalize": ["canonicalize", A, B, C, "-o", "out", *GIVEN],
}


@pytest.fixture
def scores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with a model that returns its hidden units beside its scores: a, and b and c, which are a reordered."""
    (tmp_path / "score_nets.py").write_text(MODULE)
    (tmp_path / "moves.json").write_text(
        '{"encode.weight": "h .", "encode.bias": "h", "score.weight": ". h", "score.bias": "."}'
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    torch.manual_seed(0)
    model, args, kwargs = load_model("score_nets:net")
    graph = alignkit.trace(model, *args, outputs="scores", **kwargs)
    a = perturbed(model, 0).state_dict()
    for seed, name in enumerate((A, TUNED, B, C)):
        write_weights(name, Alignment.random(graph, seed).apply(a) if seed > 1 else a)
    yield tmp_path
    sys.modules.pop("score_nets", None)


@pytest.mark.parametrize("name", COMMANDS)
def test_commands_take_outputs_that_count_and_refuse_others_by_name(scores: Path, name: str) -> None:
    said = run(*COMMANDS[name], "--outputs", "scores", "--outputs", "logits", code=1)
    assert "no output 'logits'. Its outputs are: 'scores', 'memory'" in said
    run(*COMMANDS[name], "--outputs", "scores")


def test_only_units_that_no_counted_output_shows_are_reordered(scores: Path) -> None:
    assert "pinned by output memory" in run("trace", "score_nets:net")
    assert "6 units" in run("trace", "score_nets:net", "--outputs", "scores")
    run("distance", A, B, *GIVEN, "--same", code=1)
    run("distance", A, B, *GIVEN, "--same", "--outputs", "scores")
    run("check", "score_nets:net", A, "--spec", "moves.json", code=1)
    run("check", "score_nets:net", A, "--against", B, code=1)
    run("solve", A, B, "-o", "out.safetensors", *GIVEN, "--outputs", "scores")
    left, right = read_weights(A), read_weights("out.safetensors")
    assert all(torch.equal(left[name], right[name]) for name in left)


def test_outputs_beside_a_spec_that_is_not_traced_are_refused(scores: Path) -> None:
    said = run("solve", A, B, "-o", "out.safetensors", "--spec", "moves.json", "--outputs", "scores", code=2)
    assert "--outputs" in said
    assert not (scores / "out.safetensors").exists()
