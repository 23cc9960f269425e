"""`alignkit trace`: groups on the screen, graphs in files."""

from __future__ import annotations

import json
from pathlib import Path

from alignkit import SymmetryGraph
from helpers.command_line import run


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
