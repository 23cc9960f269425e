"""The solver Deep-Align without training: exact on copies, symmetric, and consistent between its ways to probe."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from alignkit import Alignment, Solution, Task, builders, interpolate, solve, trace
from alignkit.deepalign import ProbeEncoder, save_aligner
from alignkit.errors import SolverError
from alignkit.testing import convnet, mlp, planted_pair
from helpers.aligner_inputs import ARCHITECTURES, encoder, task_of


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


def test_solve_uses_a_checkpoint_and_names_it(tmp_path):
    aligner = encoder(1, 0.3)
    save_aligner(tmp_path / "aligner.safetensors", aligner, {"data": "none"})
    planted = planted_pair(convnet(), seed=6)
    bound = planted.bind()
    task = task_of(bound, planted.architecture)
    solution = solve(
        bound, solver="deepalign", encoder="learned", checkpoint=tmp_path / "aligner.safetensors", task=task
    )
    assert solution.alignment == planted.answer
    assert solution.notes["aligner"] == aligner.fingerprint
    assert aligner.fingerprint in solution.explain()
    solution.save(tmp_path / "solution.safetensors")
    assert Solution.load(tmp_path / "solution.safetensors", bound.graph).notes == solution.notes


def test_a_traced_graph_with_modules_needs_no_data():
    torch.manual_seed(0)
    a, b = (nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3)) for _ in "ab")
    graph = trace(a, torch.zeros(1, 5))
    solution = solve(graph, a, b, solver="deepalign", encoder="probes", probes=32)
    assert solution.notes["probes"] == "32 random inputs as traced"
    alone = solve(graph, a.state_dict(), b.state_dict(), solver="deepalign", encoder="probes")
    assert "weights alone" in alone.notes["probes"]


def test_dws_needs_a_checkpoint_and_probes_take_none(tmp_path):
    bound = planted_pair(mlp(6, 8, 4), seed=0).bind()
    with pytest.raises(SolverError, match="train-deepalign"):
        solve(bound, solver="deepalign", encoder="dws")
    save_aligner(tmp_path / "aligner.safetensors", encoder(0))
    with pytest.raises(SolverError, match="no trained weights"):
        solve(bound, solver="deepalign", encoder="probes", checkpoint=tmp_path / "aligner.safetensors")
    with pytest.raises(SolverError, match='encoder="learned"'):
        solve(bound, solver="deepalign", encoder="dws", checkpoint=tmp_path / "aligner.safetensors")
