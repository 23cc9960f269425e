"""Networks of two widths: what is aligned is better than what is not, and rows that are there are not run again."""

import importlib
import json
from pathlib import Path

import pytest

pytest.importorskip("sklearn")


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    return importlib.import_module("bench_widths")


@pytest.mark.slow
def test_every_way_to_align_mlps_is_better_than_none(bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    place = tmp_path / "widths.json"
    bench.main(["mlp", "--pairs", "1", "--rows", "not aligned|weight_matching", "--json", str(place)])
    (table,) = json.loads(place.read_text())
    excess = {row["row"]: row["excess"] for row in table["rows"]}
    plain = excess.pop("widened, not aligned")
    assert len(excess) == 2 and max(excess.values()) < 0.5 * plain
    monkeypatch.setattr(bench.alignkit, "average", None)
    bench.main(["mlp", "--pairs", "1", "--rows", "not aligned", "--json", str(place)])
    assert json.loads(place.read_text()) == [table]
