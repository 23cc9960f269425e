"""Deep-Align without training: exact on copies, symmetric, and consistent between its ways to probe."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from alignkit import Alignment, Task, average, builders, interpolate, solve, trace
from alignkit.deepalign import ProbeEncoder, save_aligner
from alignkit.deepalign.consensus import consensus
from alignkit.deepalign.midpoint import meet_in_the_middle
from alignkit.deepalign.scores import standardise
from alignkit.errors import SolverError
from alignkit.matching.families import best_element
from alignkit.matching.objective import Objective
from alignkit.tasks.minibatches import first_batches
from alignkit.testing import attention, convnet, mlp, planted_pair, residual


def mlp_of_four():
    return mlp(6, 16, 12, 4)


ARCHITECTURES = [mlp_of_four, convnet, attention, residual]


def task_of(pair, architecture):
    inputs = architecture.inputs(16)
    with torch.no_grad():
        outputs = pair.module_a(inputs)
    return Task(pair.module_a, (inputs, outputs), "mse")


@pytest.mark.parametrize("build", ARCHITECTURES)
@pytest.mark.parametrize("inputs", ["data", "random", "weights alone"])
def test_permuted_copies_are_aligned_exactly(build, inputs):
    planted = planted_pair(build(), seed=1)
    pair = planted.bind()
    options = {} if inputs == "weights alone" else {"inputs": inputs, "task": task_of(pair, planted.architecture)}
    solution = solve(pair, solver="deepalign", **options)
    assert solution.alignment == planted.answer
    assert solution.objective_after == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize("build", ARCHITECTURES)
def test_swapping_the_networks_inverts_the_alignment(build):
    planted = planted_pair(build(), seed=2, noise=0.3)
    pair = planted.bind()
    task = task_of(pair, planted.architecture)
    forth = solve(pair, solver="deepalign", task=task).alignment
    back = solve(pair.swapped(), solver="deepalign", task=task).alignment
    assert back == forth.inverse()


@pytest.mark.parametrize("build", ARCHITECTURES)
def test_the_order_in_which_units_are_stored_does_not_matter(build):
    planted = planted_pair(build(), seed=3, noise=0.3)
    pair = planted.bind()
    task = task_of(pair, planted.architecture)
    move_a, move_b = (Alignment.random(pair.graph, seed) for seed in (7, 8))
    plain = solve(pair, solver="deepalign", task=task).alignment
    moved = pair.graph.bind(move_a.apply(pair.module_a), move_b.apply(pair.module_b))
    found = solve(moved, solver="deepalign", task=task).alignment
    assert found == move_a @ plain @ move_b.inverse()


def test_an_input_shape_takes_the_place_of_data():
    planted = planted_pair(convnet(), seed=4)
    solution = solve(planted.bind(), solver="deepalign", input_shape=planted.architecture.input_shape)
    assert solution.alignment == planted.answer
    assert solution.notes["probes"].startswith("128 random inputs")


def test_the_barrier_between_trained_networks_falls():
    torch.manual_seed(0)
    inputs = torch.randn(512, 8)
    labels = (inputs[:, :4].prod(1) > 0).long() + 2 * (inputs[:, 4] > 0).long()

    def trained(seed):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(8, 48), nn.ReLU(), nn.Linear(48, 48), nn.ReLU(), nn.Linear(48, 4))
        optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
        for _ in range(300):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(inputs), labels).backward()
            optimizer.step()
        return model

    a, b = trained(1), trained(2)
    graph = builders.mlp(a)
    task = Task(a, (inputs, labels), "cross_entropy")
    unaligned = interpolate(task, a, b).barrier
    aligned = solve(graph, a, b, solver="deepalign", task=task).apply(b)
    assert interpolate(task, a, aligned).barrier < 0.7 * unaligned


def test_rounds_of_consensus_correct_wrong_scores():
    planted = planted_pair(mlp_of_four(), seed=5)
    pair = planted.bind()
    right = {name: matrix.double() for name, matrix in planted.answer.as_matrices().items()}
    generator = torch.Generator().manual_seed(0)
    noisy = {n: m + 0.8 * torch.randn(m.shape, generator=generator, dtype=torch.float64) for n, m in right.items()}
    assert Alignment(pair.graph, best_element(pair.graph, noisy)) != planted.answer
    agreed = consensus(Objective(pair), noisy, rounds=3, sharpness=6.0, carry_over=1.0)
    assert Alignment(pair.graph, best_element(pair.graph, agreed)) == planted.answer


def test_a_constant_matrix_standardises_to_zero():
    assert not standardise(torch.full((4, 4), 3.7, dtype=torch.float64)).any()


class Tied(nn.Module):
    """Tokens embedded and read out by one matrix; inputs are given by name."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(11, 6)
        self.hidden, self.back = nn.Linear(6, 9), nn.Linear(9, 6)
        self.read = nn.Linear(6, 11, bias=False)
        self.read.weight = self.embed.weight

    def forward(self, tokens):
        return self.read(self.back(torch.relu(self.hidden(self.embed(tokens)))))


@pytest.mark.parametrize("encoder", ["probes", "learned"])
def test_tied_weights_and_inputs_by_name(encoder, tmp_path):
    torch.manual_seed(0)
    model = Tied()
    graph = trace(model, tokens=torch.tensor([[0, 10]]))
    answer = Alignment.random(graph, 3)
    task = Task(model, [({"tokens": torch.arange(11)[None].repeat(8, 1)}, torch.zeros(8, 11, 11))], "mse")
    options = {"encoder": encoder}
    if encoder == "learned":
        save_aligner(tmp_path / "aligner.safetensors", ProbeEncoder())
        options["checkpoint"] = tmp_path / "aligner.safetensors"
    copy = answer.inverse().apply(model)
    for given in (task, None):  # data; random tokens as traced
        solution = solve(graph.bind(model, copy), solver="deepalign", task=given, **options)
        assert solution.objective_after == pytest.approx(0.0, abs=1e-9)


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
        sides = (task.checked(side) for side in (pair.a, pair.b))
        found.append(meet_in_the_middle(pair.graph, task, batches, *sides, start))
    for name, scores in start.items():
        assert not torch.allclose(found[0][name], scores)
        torch.testing.assert_close(found[0][name], found[1][name], rtol=1e-3, atol=1e-4)
