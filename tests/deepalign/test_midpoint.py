"""Midpoint steps: the middle comes closer, in any order of units."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from alignkit import Alignment, Task, average, solve, trace
from alignkit.deepalign import AlignerInput
from alignkit.deepalign.midpoint import meet_in_the_middle
from alignkit.deepalign.scores import standardise
from alignkit.errors import SolverError
from alignkit.tasks.minibatches import first_batches
from alignkit.testing import convnet, planted_pair
from helpers.aligner_inputs import ARCHITECTURES, mlp_of_four, task_of


def two_networks(build):
    """Two networks with weights of their own, a task on random data, and their graph."""
    architecture = build()
    a, other = planted_pair(architecture, seed=1).bind().module_a, planted_pair(architecture, seed=2).bind()
    pair = other.graph.bind(a, other.module_b)
    return pair, task_of(pair, architecture)


def middle_deviation(pair, task, alignment):
    """Squared deviation of the outputs of the average from the average of the outputs."""
    inputs = next(iter(task.batches)).inputs
    moved = alignment.apply(pair.module_b)
    middle = average([pair.module_a, moved])
    with torch.no_grad():
        wanted = (pair.module_a(inputs) + moved(inputs)) / 2
        return float((middle(inputs) - wanted).square().mean())


@pytest.mark.parametrize("build", ARCHITECTURES)
def test_midpoint_steps_bring_the_middle_closer_in_any_order_of_units(build):
    pair, task = two_networks(build)
    without = solve(pair, solver="deepalign", task=task, midpoint_steps=0).alignment
    found = solve(pair, solver="deepalign", task=task, midpoint_steps=8).alignment
    assert middle_deviation(pair, task, found) < middle_deviation(pair, task, without)
    move_a, move_b = (Alignment.random(pair.graph, seed) for seed in (7, 8))
    moved = pair.graph.bind(move_a.apply(pair.module_a), move_b.apply(pair.module_b))
    again = solve(moved, solver="deepalign", task=task, midpoint_steps=8).alignment
    assert again == move_a @ found @ move_b.inverse()


def test_midpoint_steps_are_for_data_unless_they_are_asked_for():
    pair, task = two_networks(convnet)

    def solved(**options):
        return solve(pair, solver="deepalign", task=task, **options).alignment

    assert solved() == solved(midpoint_steps=8) != solved(midpoint_steps=0)
    assert solved(inputs="random") == solved(inputs="random", midpoint_steps=0)
    with pytest.raises(SolverError, match="midpoint_steps=8 runs both networks: give a task"):
        solve(pair.graph.bind(pair.a, pair.b), solver="deepalign", midpoint_steps=8)


def test_midpoint_steps_do_not_depend_on_how_the_data_is_cut():
    pair, _ = two_networks(mlp_of_four)
    data = (mlp_of_four().inputs(96), torch.zeros(96).long())
    generator = torch.Generator().manual_seed(0)
    start = {
        name: standardise(torch.randn(group.size, group.size, generator=generator, dtype=torch.float64))
        for name, group in pair.graph.groups.items()
    }
    found = []
    for chunk in (None, 32):
        task = Task(pair.module_a, data, "cross_entropy", chunk=chunk)
        batches = first_batches(task, 80)
        assert [batch.size for batch in batches] == ([80] if chunk is None else [32, 32, 16])
        both = AlignerInput(pair.graph, *(task.checked(side) for side in (pair.a, pair.b)))
        found.append(meet_in_the_middle(task, batches, both, start))
    for name, scores in start.items():
        assert not torch.allclose(found[0][name], scores)
        torch.testing.assert_close(found[0][name], found[1][name], rtol=1e-3, atol=1e-4)


def test_batches_of_single_inputs_are_run_with_running_statistics():
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3)).eval()
    singles = [(torch.randn(1, 6), torch.zeros(1).long()) for _ in range(4)]
    other = copy.deepcopy(model)
    nn.init.normal_(other[0].weight)
    solution = solve(
        trace(model, singles[0][0]), model, other, solver="deepalign", task=Task(model, singles, "cross_entropy")
    )
    assert solution.notes["midpoint steps"] == "4 inputs of the task"
