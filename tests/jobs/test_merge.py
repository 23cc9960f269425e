"""`merge` aligns, then averages: two networks by one solve, more by a common order."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from alignkit.errors import BindError, MergeError, SolverError
from alignkit.jobs.average import average
from alignkit.jobs.merge import merge
from alignkit.jobs.solve import solve
from alignkit.tasks.task import Task
from alignkit.testing.problems import convnet, independent_pair, mlp, planted_pair


@pytest.fixture
def pair():
    return planted_pair(mlp(6, 12, 10, 3), seed=2, noise=0.05)


def equal(left, right):
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def test_two_networks_are_aligned_before_they_are_averaged(pair):
    merged = merge(pair.bind(), weights=[3, 1])
    aligned = solve(pair.bind()).apply(pair.b)
    expected = average([pair.a, aligned], [3, 1])
    assert isinstance(merged.network, nn.Module)
    assert equal(merged.network.state_dict(), expected.state_dict())
    assert equal(merged.aligned[1].state_dict(), aligned.state_dict())
    assert f"{merged.alignment.objective_after:.6g} aligned" in merged.explain()


def test_the_average_has_the_form_of_its_parts(pair):
    states = pair.a.state_dict(), pair.b.state_dict()
    network = merge(pair.graph, *states).network
    assert isinstance(network, dict)
    assert equal(network, merge(pair.bind()).network.state_dict())
    with pytest.raises(MergeError, match="modules or state dicts, not both"):
        merge(pair.graph, pair.a, states[1])


def test_more_networks_come_to_the_order_of_the_first(pair):
    other = planted_pair(mlp(6, 12, 10, 3), seed=2, noise=0.05).b
    merged = merge(pair.graph, pair.a, pair.b, other)
    assert len(merged.aligned) == 3
    assert merged.alignment.alignments[0].is_identity
    for name, tensor in pair.a.state_dict().items():
        assert torch.allclose(merged.network.state_dict()[name], tensor, atol=0.2)


def test_the_identity_is_the_plain_average():
    pair = independent_pair(mlp(4, 6, 3), seed=1)
    assert equal(merge(pair.bind(), solver="identity").network.state_dict(), average([pair.a, pair.b]).state_dict())


def test_a_task_tells_the_losses_before_and_after(pair):
    inputs = pair.architecture.inputs(40, seed=6)
    task = Task(pair.a, (inputs, pair.a(inputs).detach()), "mse")
    merged = merge(pair.bind(), task=task)
    facts = merged.facts()["task"]
    assert facts["loss_average_aligned"] < facts["loss_average_unaligned"]
    assert f"{facts['loss_a']:.4f}" in merged.explain()


def test_averaged_statistics_are_told_with_the_way_out():
    pair = planted_pair(convnet(), seed=1, noise=0.01)
    assert "model = alignkit.reset_batchnorm(model, batches)" in merge(pair.bind()).explain()


def test_wrong_calls_are_refused_before_anything_is_solved(pair):
    with pytest.raises(MergeError, match="1 weight for 2 models"):
        merge(pair.bind(), weights=[1])
    with pytest.raises(BindError, match="at least two networks"):
        merge(pair.graph, pair.a)
    with pytest.raises(SolverError, match="no option 'restart'"):
        merge(pair.bind(), restart=3)
