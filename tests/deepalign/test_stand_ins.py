"""Stand-ins for data: random inputs on which two classifiers are sure; none for other outputs."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from alignkit import Alignment, Task, interpolate, solve, trace
from alignkit.deepalign.aligner import USUAL
from alignkit.deepalign.consensus import consensus
from alignkit.deepalign.midpoint import meet_in_the_middle
from alignkit.deepalign.probes import probe_similarities
from alignkit.deepalign.probing import find_probing
from alignkit.deepalign.stand_ins import MAX_NUMBERS, blurred, evenly_sure, find_middle_inputs
from alignkit.matching.families import best_element
from alignkit.solver import Problem
from alignkit.tasks.batches import Batch
from alignkit.testing import convnet, mlp, planted_pair, residual


def mlp_of_four():
    return mlp(6, 16, 12, 4)


def sure_pair(build, sharp=60.0):
    """A network and a permuted, noisy copy, whose outputs are large: they are sure of the same classes."""
    architecture = build()
    pair = planted_pair(architecture, seed=1, noise=0.3).bind()
    for module in (pair.module_a, pair.module_b):
        with torch.no_grad():
            for parameter in list(module.parameters())[-2:]:
                parameter *= sharp
    return pair.graph.bind(pair.module_a, pair.module_b), architecture


def solved(pair, architecture, **options):
    return solve(pair, solver="deepalign", input_shape=architecture.input_shape, **options)


@pytest.mark.parametrize("build", [mlp_of_four, convnet, residual])
def test_networks_that_are_sure_meet_in_the_middle_without_data(build):
    pair, architecture = sure_pair(build)
    plain = solved(pair, architecture)
    assert "on which both networks are sure" in plain.notes["midpoint steps"]
    move_a, move_b = (Alignment.random(pair.graph, seed) for seed in (7, 8))
    moved = pair.graph.bind(move_a.apply(pair.module_a), move_b.apply(pair.module_b))
    assert solved(moved, architecture).alignment == move_a @ plain.alignment @ move_b.inverse()


@pytest.mark.parametrize("build", [mlp_of_four, convnet, residual])
def test_steps_on_stand_ins_are_half_as_long_as_on_the_same_inputs_as_data(build):
    pair, architecture = sure_pair(build)
    first = architecture.inputs(8)
    task = Task(pair.module_a, (first, torch.zeros(8).long()), "cross_entropy")
    random = Problem(pair, task=task)
    probed = find_probing(random, 128, "random", None)
    middle = find_middle_inputs(probed, anything=False)
    start = consensus(random.objective, probe_similarities(probed.pair, probed.pair.probing), USUAL)

    def after(share):
        schedule = replace(USUAL, rate=share * USUAL.rate)
        return best_element(pair.graph, meet_in_the_middle(middle.task, middle.batches, probed.pair, start, schedule))

    found = solve(pair, solver="deepalign", task=task, inputs="random").alignment
    assert found == Alignment(pair.graph, after(0.5))


@pytest.mark.parametrize("build", [mlp_of_four, convnet, residual])
def test_networks_that_are_not_sure_are_left_to_their_probes(build):
    pair, architecture = sure_pair(build, sharp=0.1)
    plain = solved(pair, architecture)
    assert "midpoint steps" not in plain.notes
    assert plain.alignment == solved(pair, architecture, midpoint_steps=0).alignment
    asked = solved(pair, architecture, midpoint_steps=8)
    assert asked.notes["midpoint steps"] == "128 random inputs"


def test_outputs_that_a_task_measures_by_squares_are_no_classes():
    pair, architecture = sure_pair(mlp_of_four)
    inputs = architecture.inputs(16)
    task = Task(pair.module_a, (inputs, torch.zeros(16, 4)), "mse")
    assert "midpoint steps" not in solve(pair, solver="deepalign", task=task, inputs="random").notes
    task = Task(pair.module_a, (inputs, torch.zeros(16).long()), "cross_entropy")
    assert "midpoint steps" in solve(pair, solver="deepalign", task=task, inputs="random").notes


def test_large_inputs_are_not_drawn_by_the_thousand():
    size = MAX_NUMBERS // 4096 + 1
    torch.manual_seed(0)
    a, b = (nn.Sequential(nn.Linear(size, 4), nn.ReLU(), nn.Linear(4, 3)) for _ in "ab")
    for module in (a, b):
        module[2].weight.data *= 100
    solution = solve(trace(a, torch.zeros(1, size)), a, b, solver="deepalign", probes=8)
    assert "midpoint steps" not in solution.notes


def test_the_barrier_between_classifiers_falls_without_data():
    torch.manual_seed(0)
    centres = torch.randn(6, 12)
    labels = torch.arange(600) % 6
    inputs = centres[labels] + 0.6 * torch.randn(600, 12)

    def trained(seed):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(12, 24), nn.ReLU(), nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 6))
        optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
        for _ in range(300):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(inputs), labels).backward()
            optimizer.step()
        return model

    models = [trained(seed) for seed in range(6)]
    graph = trace(models[0], inputs[:2])
    task = Task(models[0], (inputs, labels), "cross_entropy")

    def barrier(**options):
        pairs = zip(models[::2], models[1::2], strict=True)
        lines = (interpolate(task, a, solve(graph, a, b, solver="deepalign", **options).apply(b)) for a, b in pairs)
        return sum(line.barrier for line in lines)

    assert barrier() < 0.9 * barrier(midpoint_steps=0)


def test_each_class_has_its_turn_and_the_surest_come_first():
    entropies, classes = torch.tensor([0.6, 0.3, 0.1, 0.5, 0.4]), torch.tensor([0, 0, 0, 7, 7])
    assert evenly_sure(entropies, classes, 3).tolist() == [2, 4, 1]
    assert evenly_sure(entropies, classes, 9).tolist() == [2, 4, 1, 3, 0]


@pytest.mark.parametrize("shape", [(1, 56, 28), (3, 32, 32), (2, 7, 1)])
def test_neighbouring_pixels_of_random_images_are_alike_and_keep_their_variance(shape):
    noise = torch.randn(2000, *shape, generator=torch.Generator().manual_seed(0))
    images = blurred(Batch((noise, noise[:, 0, :, 0]), torch.zeros(2000), "noise")).inputs
    assert torch.equal(images[1], noise[:, 0, :, 0]), "rows of numbers are no images"
    assert torch.allclose(images[0].var(0), torch.ones(shape), atol=0.2)
    for axis, side in ((-2, shape[1]), (-1, shape[2])):
        if side > 1:
            alike = (images[0].movedim(axis, 0)[1:] * images[0].movedim(axis, 0)[:-1]).mean()
            far = (images[0].movedim(axis, 0)[side // 2 :] * images[0].movedim(axis, 0)[: side - side // 2]).mean()
            assert abs(float(far)) < 0.02
            assert (float(alike) > 0.2) == (side >= 28)
