"""The federated benchmark: alignment helps clients that started alone, and changes nothing for those that did not."""

import argparse
import importlib
from pathlib import Path

import pytest

pytest.importorskip("sklearn")
pytestmark = pytest.mark.slow


def test_alignment_helps_clients_that_started_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent / "federated"))
    bench = importlib.import_module("bench_federated")
    options = argparse.Namespace(rounds=1, epochs=10)

    def here(*jobs: object) -> object:
        return list(map(bench.clients.train, *jobs))

    reached = {
        (start, align): bench.rounds(here, 8, 1.0, start, 0, options, align=align)[1][0]
        for start in ("own", "shared")
        for align in (False, True)
    }
    assert reached["own", True] > reached["own", False] + 0.2
    assert reached["shared", True] == pytest.approx(reached["shared", False], abs=0.01)
