"""Results of permutation solvers do not get worse: those in the table, and the script that fills it."""

import importlib
import json
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
pytest.importorskip("sklearn")


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    return importlib.import_module("bench_versions")


@pytest.mark.slow
def test_a_version_beside_itself_is_neither_better_nor_worse(bench, monkeypatch):
    rows = bench.compare(ROOT, 1)
    assert {(row["network"], row["solver"]) for row in rows} == {
        (network, run.title) for network in (*bench.ARCHITECTURES, "digits MLP") for run in bench.RUNS
    }
    assert all(row["better"] == row["worse"] == 0 and row["older"] == row["today"] for row in rows)
    assert all(row["today"] < row["before"] for row in rows if row["measure"] == bench.DISTANCE)


def test_folders_that_hold_no_version_are_refused(bench, tmp_path, monkeypatch):
    for seed in range(2):
        bench.torch.save(bench.trained(seed), tmp_path / f"{seed}.pt")
    monkeypatch.setattr(bench, "RUNS", ())
    with pytest.raises(SystemExit, match="was to be measured, and"):
        bench.solved_by(tmp_path / "nothing", tmp_path, 0)


def test_no_mean_of_the_table_is_worse_than_it_was():
    rows = json.loads((ROOT / "docs/results/versions.json").read_text())
    worse = [row for row in rows if row["today"] > row["older"] * (1 + 1e-6)]
    assert worse == []
