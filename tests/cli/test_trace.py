"""`alignkit trace`: groups on the screen, graphs in files."""

from __future__ import annotations

import json
from pathlib import Path

from alignkit import SymmetryGraph
from helpers.command_line import run

MORE = """
import torch
from torch import nn

def odd():
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2)), torch.rand(2, 4)

def stream():
    return nn.Sequential(nn.Linear(4, 6), nn.RMSNorm(6), nn.Linear(6, 2)), torch.rand(2, 4)
"""


def test_trace_prints_groups_and_writes_files(model_modules: Path) -> None:
    text = run("trace", "my_models:mlp", "--spec", "s.json", "--json", "g.json", "--picture", "p.png")
    assert "1 group" in text
    spec = json.loads((model_modules / "s.json").read_text())
    graph = SymmetryGraph.from_json((model_modules / "g.json").read_text())
    assert graph.spec() == spec
    assert (model_modules / "p.png").stat().st_size > 1000


def test_trace_replaces_nothing_unasked(model_modules: Path) -> None:
    (model_modules / "s.json").write_text("mine")
    assert "--force" in run("trace", "my_models:mlp", "--spec", "s.json", code=2)
    assert (model_modules / "s.json").read_text() == "mine"
    run("trace", "my_models:mlp", "--spec", "s.json", "--force")
    assert "same file" in run("trace", "my_models:mlp", "--spec", "t.json", "--json", "t.json", code=2)


def test_trace_explains_a_bad_model(model_modules: Path) -> None:
    assert "Did you mean 'mlp'" in run("trace", "my_models:mpl", code=2)
    assert "KeyError" in run("trace", "my_models:broken", code=1)


def test_a_name_that_is_no_text_is_written_and_told(model_modules: Path) -> None:
    """File systems take any bytes; Python shows those that are no UTF-8 as half characters."""
    assert "\\udcff.json" in run("trace", "my_models:mlp", "--spec", "\udcff.json")
    assert (model_modules / "\udcff.json").exists()


def test_trace_finds_every_kind_where_it_is_asked_to(model_modules: Path) -> None:
    (model_modules / "more_models.py").write_text(MORE)
    assert "-: permuted with signs" in run("trace", "more_models:odd", "--symmetries", "all")
    run("trace", "more_models:odd", "--symmetries", "all", "--spec", "s.json", "--json", "g.json")
    assert json.loads((model_modules / "s.json").read_text())["0.weight"].startswith("-")
    text = run("trace", "more_models:stream", "--symmetries", "all", "--json", "f.json")
    assert SymmetryGraph.from_json((model_modules / "f.json").read_text()).folds
    assert "alignkit.fold" in text


def test_a_spec_is_not_written_where_weights_have_to_be_folded(model_modules: Path) -> None:
    (model_modules / "more_models.py").write_text(MORE)
    assert "--json" in run("trace", "more_models:stream", "--symmetries", "all", "--spec", "t.json", code=2)
    assert not (model_modules / "t.json").exists()
    assert "--keep-tied" in run("trace", "more_models:odd", "--keep-tied", code=2)
