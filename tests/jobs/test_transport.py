"""A fine-tune arrives at the right units of another base."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from alignkit.errors import BindError, MergeError
from alignkit.graph import SymmetryGraph
from alignkit.graph.elements.alignment import Alignment
from alignkit.jobs.average import average
from alignkit.jobs.solve import solve
from alignkit.jobs.transport import transport
from alignkit.testing.problems import ARCHITECTURES, independent_pair, mlp, planted_pair


@pytest.mark.parametrize("name", sorted(ARCHITECTURES))
def test_a_task_vector_arrives_at_the_units_of_b(name):
    """B computes what A does, in another order of units: carrying the task makes it compute what tuned A does."""
    pair = planted_pair(ARCHITECTURES[name](), seed=3)
    tuned = average([pair.a, independent_pair(pair.architecture, seed=5).a], [0.9, 0.1])
    alignment = solve(pair.bind()).alignment
    assert not alignment.is_identity
    carried = transport(pair.bind(), tuned=tuned, alignment=alignment)
    found = carried.network
    assert carried.solution is None
    assert carried.facts()["task_vector"] == pytest.approx(carried.length)
    inputs = pair.architecture.inputs(seed=1)
    with torch.no_grad():
        assert torch.allclose(found(inputs), tuned(inputs), atol=1e-5)
        wrong = transport(pair.bind(), tuned=tuned, alignment=alignment.inverse()).network
        assert not torch.allclose(wrong(inputs), tuned(inputs), atol=1e-3)


def test_scale_and_kinds():
    pair = planted_pair(mlp(4, 6, 5, 3), seed=0)
    tuned = independent_pair(pair.architecture, seed=1).a
    alignment = pair.answer
    state = pair.b.state_dict()
    none = transport(pair.graph, pair.a.state_dict(), state, tuned=tuned, alignment=alignment, scale=0).network
    assert isinstance(none, dict)
    assert list(none) == list(state)
    assert all(torch.equal(none[n], t) for n, t in state.items())
    there = transport(pair.graph, pair.a, pair.b, tuned=tuned).network
    back = transport(pair.graph, pair.a, there, tuned=tuned, alignment=alignment, scale=-1).network
    assert isinstance(back, nn.Module)
    assert all(torch.allclose(t, state[n], atol=1e-5) for n, t in back.state_dict().items())


def test_running_variances_stay_positive():
    graph = SymmetryGraph.from_spec(
        dict.fromkeys(("weight", "bias", "running_mean", "running_var"), "c"), nn.BatchNorm1d(3)
    )
    base, tuned, other = nn.BatchNorm1d(3), nn.BatchNorm1d(3), nn.BatchNorm1d(3)
    tuned.running_var.fill_(0.1)
    other.running_var.fill_(0.5)
    other.num_batches_tracked.fill_(4)
    found = transport(graph, base, other, tuned=tuned, alignment=Alignment.identity(graph)).network
    assert bool((found.running_var > 0).all())
    assert int(found.num_batches_tracked) == 4


def test_transport_names_every_mismatch():
    pair = planted_pair(mlp(4, 6, 3))
    small = {n: t for n, t in pair.a.state_dict().items() if n != "0.bias"}
    with pytest.raises(BindError, match=r"'0.bias' is missing in A"):
        transport(pair.graph, small, pair.b, tuned=pair.a)
    with pytest.raises(MergeError, match=r"(?s)'2.bias' has shape .* in tuned.*'2.weight' has shape .* in tuned"):
        transport(pair.bind(), tuned=mlp(4, 6, 2).model, alignment=pair.answer)
    with pytest.raises(MergeError, match="belongs to another graph"):
        transport(pair.bind(), tuned=pair.a, alignment=planted_pair(mlp(4, 5, 3)).answer)
    with pytest.raises(MergeError, match="scale is inf"):
        transport(pair.bind(), tuned=pair.a, alignment=pair.answer, scale=math.inf)
