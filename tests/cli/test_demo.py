"""`alignkit demo`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

import alignkit
from alignkit import read_weights
from helpers.command_line import run


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of one demo, and what it printed."""
    folder = tmp_path_factory.mktemp("demo") / "results"
    return folder, run("demo", "-o", folder)


def test_the_demo_compares_every_solver_with_the_identity_first(demo: tuple[Path, str]) -> None:
    folder, printed = demo
    result = json.loads((folder / "demo.json").read_text())
    rows = {row["solver"]: row for row in result["comparison"]["rows"]}
    comparison = alignkit.Comparison.from_json(json.dumps(result["comparison"]))
    assert next(iter(rows)) == "identity"
    assert set(rows) == set(alignkit.list_solvers())
    assert all(name in printed for name in rows)
    assert rows["identity"]["distance"] == pytest.approx(rows["identity"]["distance_before"])
    barriers = {row.solver: row.barrier for row in comparison.rows}
    assert barriers["identity"] > 0.2  # two seeds: the plain average is visibly worse
    assert rows["weight_matching"]["distance"] < 0.7 * rows["identity"]["distance"]
    assert barriers["weight_matching"] < 0.3 * barriers["identity"]
    assert min(result["accuracy_a"], result["accuracy_b"]) > 0.95
    assert (folder / "demo.png").read_bytes().startswith(b"\x89PNG")


def test_the_models_of_the_demo_can_be_solved_from_their_files(demo: tuple[Path, str], tmp_path: Path) -> None:
    folder, _ = demo
    models = (folder / "model_a.safetensors", folder / "model_b.safetensors")
    run("solve", *models, "--spec", folder / "spec.json", "-o", tmp_path / "aligned.safetensors")
    assert set(read_weights(tmp_path / "aligned.safetensors")) == set(read_weights(models[1]))


def test_a_demo_does_not_replace_files_of_others(tmp_path: Path) -> None:
    (tmp_path / "spec.json").write_text("mine")
    assert "holds spec.json already" in run("demo", "-o", tmp_path, code=2)
    assert "is a file" in run("demo", "-o", tmp_path / "spec.json", code=2)
    assert (tmp_path / "spec.json").read_text() == "mine"
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.slow
def test_a_demo_is_repeatable_and_replaces_itself(demo: tuple[Path, str]) -> None:
    folder, _ = demo
    first = json.loads((folder / "demo.json").read_text())
    run("demo", "-o", folder)
    again = json.loads((folder / "demo.json").read_text())
    for old, new in zip(first["comparison"]["rows"], again["comparison"]["rows"], strict=True):
        assert (old["solver"], old["distance"], old["line"]) == (new["solver"], new["distance"], new["line"])


def test_without_scikit_learn_the_demo_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    assert 'pip install "alignkit[demo]"' in run("demo", "-o", tmp_path / "x", code=1)
    assert not (tmp_path / "x").exists()
