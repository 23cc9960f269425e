"""Networks between two have BatchNorm statistics of their own, as merges get them anew; A and B have those given."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn.functional import kl_div

from alignkit import Alignment, Task, average, interpolate, reset_batchnorm, solve, trace
from alignkit.deepalign import AlignerInput
from alignkit.deepalign.midpoint import meet_in_the_middle
from alignkit.deepalign.scores import standardise
from alignkit.tasks.goals import by_outputs
from alignkit.tasks.merged_runs import LEAST_BATCH, merged_runs
from alignkit.tasks.minibatches import first_batches
from alignkit.tasks.path_loss import PathLoss

ALL = (96, 96, 96)
"""Samples to learn from, in a minibatch, and to score on."""


class Activated(nn.BatchNorm2d):
    """A norm with its activation, as libraries of models have them."""

    def forward(self, inputs):
        return super().forward(inputs).relu()


NORMS = {
    "BatchNorm1d": (nn.BatchNorm1d, nn.Conv1d, (8,)),
    "BatchNorm2d": (nn.BatchNorm2d, nn.Conv2d, (8, 8)),
    "BatchNorm3d": (nn.BatchNorm3d, nn.Conv3d, (6, 6, 6)),
    "SyncBatchNorm": (nn.SyncBatchNorm, nn.Conv2d, (8, 8)),
    "without scales": (lambda width: nn.BatchNorm2d(width, affine=False), nn.Conv2d, (8, 8)),
    "derived": (Activated, nn.Conv2d, (8, 8)),
}


@pytest.fixture(params=NORMS)
def norm(request):
    return NORMS[request.param]


@pytest.fixture
def networks(norm):
    """Two networks, and the second with running statistics that fit nothing."""
    normed, convolution, sides = norm
    places = math.prod(side - 4 for side in sides)

    def network():
        layers = convolution(1, 8, 3), normed(8), nn.ReLU(), convolution(8, 8, 3), normed(8), nn.ReLU()
        return nn.Sequential(*layers, nn.Flatten(), nn.Linear(8 * places, 4)).eval()

    torch.manual_seed(0)
    a, b = network(), network()
    strange = copy.deepcopy(b)
    for name, buffer in strange.named_buffers():
        if name.endswith("running_mean"):
            buffer += 5 * torch.rand(8)
    return a, b, strange


@pytest.fixture(params=[None, 40])
def task(request, norm, networks):
    generator = torch.Generator().manual_seed(1)
    inputs, targets = torch.randn(96, 1, *norm[2], generator=generator), torch.randint(4, (96,), generator=generator)
    return Task(networks[0], (inputs, targets), "cross_entropy", chunk=request.param)


def inputs_of(task):
    return torch.cat([batch.inputs for batch in task.batches])


def reset_middle(task, a, b):
    """The average of two networks with the statistics of all inputs."""
    return reset_batchnorm(average([a, b]), [inputs_of(task)]).eval()


def test_labels_do_not_see_running_statistics_between_two(networks, task):
    a, *others = networks
    graph = trace(a, inputs_of(task)[:2])
    moved = Alignment.random(graph, 3)
    usual, strange = (PathLoss(task, graph.bind(a, b), (0.5,), torch.Generator(), ALL).score(moved) for b in others)
    assert usual == strange


def test_labels_score_a_merge_as_it_is_once_its_statistics_are_reset(networks, task):
    a, _, strange = networks
    graph = trace(a, inputs_of(task)[:2])
    path = PathLoss(task, graph.bind(a, strange), (0.5,), torch.Generator(), ALL)
    reset = task.evaluate(reset_middle(task, a, strange)).loss
    assert path.score(Alignment.identity(graph)) == pytest.approx(reset, rel=0.005)
    assert abs(interpolate(task, a, strange, points=3).losses[1] - reset) > 0.01


@pytest.mark.parametrize("share", [0, 1])
def test_labels_score_the_ends_exactly_as_the_task_does(networks, task, share):
    a, _, strange = networks
    graph = trace(a, inputs_of(task)[:2])
    moved = Alignment.random(graph, 3)
    path = PathLoss(task, graph.bind(a, strange), (float(share),), torch.Generator(), ALL)
    end = [a, moved.apply(strange)][share]
    assert path.score(moved) == pytest.approx(task.evaluate(end).loss, abs=1e-6)


def test_outputs_are_compared_under_the_statistics_of_the_batch(networks, task):
    a, *others = networks
    graph = trace(a, inputs_of(task)[:2])
    scores = []
    for b in others:
        with torch.no_grad():
            of_a, of_b, of_middle = (
                reset_batchnorm(network, [inputs_of(task)]).eval()(inputs_of(task))
                for network in (a, b, average([a, b]))
            )
        wanted = (of_a.softmax(1) + of_b.softmax(1)) / 2
        by_hand = float(kl_div(of_middle.log_softmax(1), wanted, reduction="batchmean"))
        path = PathLoss(task, graph.bind(a, b), (0.5,), torch.Generator(), ALL, by_outputs)
        scores.append(path.score(Alignment.identity(graph)))
        assert scores[-1] == pytest.approx(by_hand, rel=0.02, abs=1e-4)
    assert scores[0] == scores[1]


def test_midpoint_steps_do_not_see_running_statistics(networks, task):
    a, *others = networks
    graph = trace(a, inputs_of(task)[:2])
    generator = torch.Generator().manual_seed(2)
    start = {
        name: standardise(torch.randn(group.size, group.size, generator=generator, dtype=torch.float64))
        for name, group in graph.groups.items()
    }
    usual, strange = (
        meet_in_the_middle(task, first_batches(task, 80), AlignerInput(graph, task.checked(a), task.checked(b)), start)
        for b in others
    )
    assert all(torch.equal(usual[name], strange[name]) for name in graph.groups)


def test_sinkhorn_finds_the_same_whatever_running_statistics_are(networks, task):
    a, *others = networks
    graph = trace(a, inputs_of(task)[:2])
    start, options = Alignment.identity(graph), {"max_steps": 40, "check_every": 4, "patience": 40}
    usual, strange = (solve(graph, a, b, solver="sinkhorn", task=task, init=start, **options) for b in others)
    assert usual.alignment == strange.alignment != start


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_few_inputs_are_run_with_running_statistics(networks, task, share):
    a, _, strange = networks
    run = merged_runs(task)
    few, many = (next(iter(task.batches)).head(count) for count in (LEAST_BATCH - 1, LEAST_BATCH))
    weights = task.checked(average([a, strange]))
    with torch.no_grad():
        as_it_is = [task.outputs(weights, batch.inputs) for batch in (few, many)]
        found = [run(share, batch).outputs(weights, batch.inputs) for batch in (few, many)]
    assert torch.equal(found[0], as_it_is[0])
    assert torch.equal(found[1], as_it_is[1]) == (share != 0.5)
