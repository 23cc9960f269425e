"""The network between two is judged with statistics of its own where it has BatchNorm, as merges get them anew."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from alignkit import Alignment, Task, interpolate, reset_batchnorm, solve, trace
from alignkit.tasks.goals import by_labels, by_outputs
from alignkit.tasks.path_loss import PathLoss


def network(norm: type[nn.Module]) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 8, 3), norm(8), nn.ReLU(), nn.Conv2d(8, 8, 3), norm(8), nn.ReLU(), nn.Flatten(), nn.Linear(128, 4)
    ).eval()


@pytest.fixture(params=[nn.BatchNorm2d, nn.SyncBatchNorm])
def networks(request):
    """Two networks, and the second with running statistics that fit nothing: those of a merge are reset anyway."""
    torch.manual_seed(0)
    a, b = network(request.param), network(request.param)
    strange = copy.deepcopy(b)
    for name, buffer in strange.named_buffers():
        if name.endswith("running_mean"):
            buffer += 5 * torch.rand(8)
    return a, b, strange


@pytest.fixture(params=[None, 40])
def task(request, networks):
    generator = torch.Generator().manual_seed(1)
    inputs, targets = torch.randn(96, 1, 8, 8, generator=generator), torch.randint(4, (96,), generator=generator)
    return Task(networks[0], (inputs, targets), "cross_entropy", chunk=request.param)


@pytest.mark.parametrize("goal", [by_labels, by_outputs])
def test_scores_do_not_depend_on_running_statistics(networks, task, goal):
    a, *others = networks
    graph = trace(a, torch.randn(2, 1, 8, 8))
    moved, counts = Alignment.random(graph, 3), (96, 96, 96)
    usual, strange = (
        PathLoss(task, graph.bind(a, b), (0.5,), torch.Generator(), counts, goal).score(moved) for b in others
    )
    assert usual == strange


def test_labels_score_a_merge_as_it_is_once_its_statistics_are_reset(networks):
    a, _, strange = networks
    inputs, targets = torch.randn(96, 1, 8, 8), torch.randint(4, (96,))
    task, graph = Task(a, (inputs, targets), "cross_entropy"), trace(a, inputs[:2])
    pair = graph.bind(a, strange)
    score = PathLoss(task, pair, (0.5,), torch.Generator(), (96, 96, 96)).score(Alignment.identity(graph))
    middle = copy.deepcopy(a)
    middle.load_state_dict({name: (t + strange.state_dict()[name]) / 2 for name, t in a.state_dict().items()})
    reset = task.evaluate(reset_batchnorm(middle, [inputs])).loss
    assert score == pytest.approx(reset, rel=0.01)
    assert abs(interpolate(task, a, strange, points=3).losses[1] - reset) > 0.02


def test_sinkhorn_finds_the_same_whatever_running_statistics_are(networks, task):
    a, *others = networks
    graph = trace(a, torch.randn(2, 1, 8, 8))
    start, options = Alignment.identity(graph), {"max_steps": 40, "check_every": 4, "patience": 40}
    usual, strange = (solve(graph, a, b, solver="sinkhorn", task=task, init=start, **options) for b in others)
    assert usual.alignment == strange.alignment != start


def test_networks_with_running_statistics_alone_are_run_as_they_are_on_few_inputs(networks):
    a, b, _ = networks
    single = [(torch.randn(1, 1, 8, 8), torch.zeros(1).long()) for _ in range(4)]
    task, graph = Task(a, single, "cross_entropy"), trace(a, torch.randn(2, 1, 8, 8))
    score = PathLoss(task, graph.bind(a, b), (0.0,), torch.Generator(), (4, 1, 4)).score(Alignment.identity(graph))
    assert score == pytest.approx(task.evaluate(a).loss)
