"""Complex weights: moved and averaged as they are, refused where networks are compared, and never made real."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import alignkit
from alignkit import Alignment, SoftAlignment, SymmetryGraph
from alignkit.checkpoints import open_checkpoint
from alignkit.errors import AlignkitError, BindError, MergeError, SolverError, TaskError, WeightsError
from alignkit.jobs.from_disk import match_checkpoints, merge_checkpoints
from helpers.graph_strategies import slow_apply
from helpers.small_pairs import SPECS

DTYPES = ("complex64", "complex128")


def graph_of(name: str) -> SymmetryGraph:
    spec, shapes, sizes = SPECS[name]
    return SymmetryGraph.from_spec(spec, shapes, sizes=sizes)


def imaginary(graph, dtype, seed=0):
    """Weights without any real part."""
    generator = torch.Generator().manual_seed(seed)
    real = {n: torch.randn(t.shape, generator=generator) for n, t in graph.tensors.items()}
    return {n: (1j * t).to(getattr(torch, dtype)) for n, t in real.items()}


GRAPH = graph_of("two layers")
COMPARING = {
    "bind": lambda a, b: GRAPH.bind(a, b),
    "solve": lambda a, b: alignkit.solve(GRAPH, a, b),
    "merge": lambda a, b: alignkit.merge(GRAPH, a, b),
    "merge of three": lambda a, b: alignkit.merge(GRAPH, a, b, a),
    "distance": lambda a, b: alignkit.distance(GRAPH, a, b),
    "transport": lambda a, b: alignkit.transport(GRAPH, a, b, tuned=a),
    "align_many": lambda a, b: alignkit.align_many(GRAPH, a, b, a),
    "canonicalize": lambda a, b: alignkit.canonicalize(GRAPH, [b], a),
    "identity": lambda a, b: alignkit.solve(GRAPH, a, b, solver="identity"),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("job", COMPARING)
def test_what_compares_networks_refuses_complex_weights_by_name(job, dtype):
    with pytest.raises(
        BindError, match=f"'[wb]1' of .* is {dtype}; alignkit compares real numbers. Give torch.view_as"
    ):
        COMPARING[job](imaginary(GRAPH, dtype), imaginary(GRAPH, dtype, 1))


def test_what_it_advises_works():
    spec, shapes, _ = SPECS["two layers"]
    like = {name: (*shape, 2) for name, shape in shapes.items()}
    real = SymmetryGraph.from_spec({name: f"{text} ." for name, text in spec.items()}, like)
    a = imaginary(GRAPH, "complex128")
    order = Alignment.random(GRAPH, 3)
    pair = ({n: torch.view_as_real(t) for n, t in side.items()} for side in (a, order.apply(a)))
    solution = alignkit.solve(real, *pair)
    assert solution.objective_before > 1 and solution.objective_after == pytest.approx(0, abs=1e-12)
    assert Alignment(GRAPH, solution.alignment.elements) == order.inverse()


def test_matching_from_disk_refuses_them_before_values_are_read(tmp_path):
    paths = [tmp_path / name for name in ("a.safetensors", "b.safetensors")]
    for seed, path in enumerate(paths):
        alignkit.write_weights(path, imaginary(GRAPH, "complex64", seed))
    with pytest.raises(BindError, match="'w1' of A is complex64"):
        match_checkpoints(GRAPH, *paths, memory="1MB")
    sides = [open_checkpoint(path) for path in paths]
    with pytest.raises(BindError, match="'w1' of checkpoint 0 is complex64"):
        merge_checkpoints(tmp_path / "m.safetensors", sides, [None, Alignment.identity(GRAPH)])
    assert not (tmp_path / "m.safetensors").exists()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", SPECS)
def test_alignments_move_them_hard_and_soft(name, dtype):
    graph = graph_of(name)
    order, weights = Alignment.random(graph, 2), imaginary(graph, dtype)
    expected = slow_apply(graph, order, weights)
    soft = SoftAlignment.from_alignment(order).apply(weights)
    for tensor, moved in order.apply(weights).items():
        assert torch.equal(moved, expected[tensor])
        assert soft[tensor].dtype == moved.dtype and torch.allclose(soft[tensor], moved)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("method", ["linear", "slerp"])
def test_averages_are_those_of_numpy(method, dtype):
    a, b = (imaginary(GRAPH, dtype, seed) for seed in (0, 1))
    for name, tensor in alignkit.average([a, b], [3, 1], method).items():
        left, right = (side[name].to(torch.complex128).numpy() for side in (a, b))
        shares = [0.75, 0.25]
        if method == "slerp":
            cosine = np.vdot(left, right).real / np.linalg.norm(left) / np.linalg.norm(right)
            shares = [np.sin(share * np.arccos(cosine)) / np.sin(np.arccos(cosine)) for share in shares]
        expected = torch.from_numpy(np.asarray(shares[0] * left + shares[1] * right)).to(tensor.dtype)
        assert torch.allclose(tensor, expected, rtol=1e-6) and bool(tensor.imag.any())


@pytest.mark.parametrize("real", [0, 1])
def test_complex_and_real_weights_do_not_mix(real):
    sides = [imaginary(GRAPH, "complex64", seed) for seed in (0, 1)]
    sides[real] = {n: t.imag.clone() for n, t in sides[real].items()}
    for call in (
        lambda: alignkit.average(sides),
        lambda: alignkit.average(sides, method="slerp"),
        lambda: alignkit.merge(GRAPH, *sides),
        lambda: alignkit.distance(GRAPH, *sides),
        lambda: alignkit.transport(GRAPH, sides[real], sides[real], tuned=sides[1 - real]),
    ):
        with pytest.raises(AlignkitError, match="complex64"):
            call()


@pytest.mark.parametrize("value", [complex(0, float("nan")), complex(float("inf"), 0)])
def test_values_that_are_not_finite_are_noticed(value):
    a, b = (imaginary(GRAPH, "complex64", seed) for seed in (0, 1))
    b["w2"][0, 0] = value
    with pytest.raises(MergeError, match="'w2' of model 1 holds NaN or infinity"):
        alignkit.average([a, b])


class Rotation(nn.Module):
    """A complex linear layer, whose outputs are made real or not."""

    def __init__(self, real: bool) -> None:
        super().__init__()
        self.real, self.layer = real, nn.Linear(3, 2, dtype=torch.complex64)

    def forward(self, x):
        out = self.layer(x.to(torch.complex64))
        return out.abs() if self.real else out


def test_a_task_on_the_line_sees_both_parts():
    torch.manual_seed(0)
    model, other = Rotation(True), Rotation(True)
    task = alignkit.Task(model, (torch.randn(8, 3), torch.randn(8, 2)), "mse")
    middle = alignkit.average([model, other])
    losses = alignkit.interpolate(task, model, other, points=3).losses
    assert losses[1] == pytest.approx(task.evaluate(middle).loss, rel=1e-6)


def test_a_line_from_real_to_complex_weights_is_refused():
    model = nn.Linear(3, 2)
    task = alignkit.Task(model, (torch.randn(8, 3), torch.randn(8, 2)), "mse")
    other = {name: tensor * 1j for name, tensor in model.state_dict().items()}
    with pytest.raises(TaskError, match="loses its imaginary part"):
        alignkit.interpolate(task, model, other, points=3)


def test_statistics_of_complex_activations_are_refused():
    merged, parents = Rotation(True), [Rotation(True), Rotation(True)]
    with pytest.raises(SolverError, match="activations are complex"):
        alignkit.repair(merged, parents, torch.randn(8, 3))


def test_what_safetensors_cannot_hold_is_refused_before_anything_is_written(tmp_path):
    weights = imaginary(GRAPH, "complex128")
    with pytest.raises(WeightsError, match="'w1' is complex128, which a safetensors file cannot hold"):
        alignkit.write_weights(tmp_path / "w.safetensors", weights)
    assert not list(tmp_path.iterdir())
    alignkit.write_weights(tmp_path / "w.pt", weights)
    assert all(torch.equal(t, weights[n]) for n, t in alignkit.read_weights(tmp_path / "w.pt").items())
