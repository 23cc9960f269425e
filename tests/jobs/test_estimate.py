"""Estimates: what a job reads, moves and needs, told before it runs."""

from __future__ import annotations

import pytest
from torch import nn

import alignkit
from alignkit import SymmetryGraph


def test_an_estimate_names_groups_tensors_and_memory(graph: SymmetryGraph) -> None:
    estimates = alignkit.estimate(graph, "merge", reads=["a.pt", "b.pt"], writes=["m.pt"])
    assert [(g.name, g.units, g.tensors, g.numbers) for g in estimates.groups] == [("h", 6, 3, 48)]
    assert set(estimates.moved) == {"0.weight", "0.bias", "2.weight"}
    assert estimates.uncovered == {"2.bias": "the spec fixes all its axes"}
    assert estimates.memory >= 4 * 4 * 51  # two models read, one aligned, one merged
    assert estimates.seconds is not None and estimates.seconds > 0
    for said in ("Estimate of merge", "Reads a.pt", "Would write m.pt", "3 of 4 tensors move", "2.bias: the spec"):
        assert said in str(estimates)
    assert estimates.facts()["memory_bytes"] == estimates.memory


def test_an_estimate_grows_with_the_networks_and_keeps_a_limit(graph: SymmetryGraph) -> None:
    wide = nn.Sequential(nn.Linear(400, 600), nn.ReLU(), nn.Linear(600, 300))
    larger = alignkit.builders.mlp(wide)
    assert alignkit.estimate(larger).memory > 100 * alignkit.estimate(graph).memory
    assert alignkit.estimate(graph, "merge", models=9).memory > alignkit.estimate(graph, "merge", models=2).memory
    assert alignkit.estimate(larger, memory=10**6).memory == 10**6
    assert alignkit.estimate(larger, "solve", bytes_each=10**9).memory >= 4 * 10**9


@pytest.mark.parametrize("job", ["check", "merge"])
def test_an_estimate_admits_what_it_does_not_know(job: str, graph: SymmetryGraph) -> None:
    solver = None if job == "check" else ["weight_matching", "sinkhorn"]
    estimates = alignkit.estimate(graph, job, solver=solver)  # type: ignore[arg-type]
    assert estimates.seconds is None
    assert "not known" in str(estimates)
