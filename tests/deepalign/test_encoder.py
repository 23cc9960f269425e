"""The universal encoder: symmetries for any parameters, exactness on copies, files, and what it refuses."""

from __future__ import annotations

import json

import pytest
import safetensors.torch
import torch
from torch import nn

from alignkit import Alignment, Solution, Task, solve, trace
from alignkit.deepalign import AlignerInput, ProbeEncoder, load_aligner, read_card, save_aligner
from alignkit.deepalign.probing import find_probing
from alignkit.deepalign.wiring import find_wiring
from alignkit.errors import SolverError, WeightsError
from alignkit.matching.families import best_element
from alignkit.matching.sinkhorn import balanced_sinkhorn
from alignkit.solver import Problem
from alignkit.testing import attention, convnet, mlp, planted_pair, residual

ARCHITECTURES = [lambda: mlp(6, 16, 12, 4), convnet, attention, residual]


def encoder(seed, scale=1.0):
    torch.manual_seed(seed)
    made = ProbeEncoder()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(scale * torch.randn_like(parameter))
    return made


def task_of(pair, architecture, dtype=torch.float32):
    inputs = architecture.inputs(16).to(dtype)
    with torch.no_grad():
        outputs = pair.module_a.to(dtype)(inputs)
    return Task(pair.module_a, (inputs, outputs), "mse")


def pair_of(bound, task):
    problem = Problem(bound, task=task)
    probed = find_probing(problem, 16, "auto", None)
    return AlignerInput(bound.graph, task.checked(bound.a), task.checked(bound.b), probed.probing)


def scores_of(aligner, pair):
    with torch.no_grad():
        return aligner(pair)


@pytest.mark.parametrize("build", ARCHITECTURES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("seed", "scale"), [(0, 1.0), (1, 0.1), (2, 3.0)])
def test_a_permuted_copy_is_found_whatever_the_parameters_are(build, dtype, seed, scale):
    planted = planted_pair(build(), seed=seed)
    bound = planted.bind()
    bound.module_a.to(dtype)
    bound = bound.graph.bind(bound.module_a, bound.module_b.to(dtype))
    pair = pair_of(bound, task_of(bound, planted.architecture, dtype))
    aligner = encoder(seed, scale).to(dtype)
    with torch.no_grad():  # Weights of the mix may be anything but must not cancel out.
        aligner.mix.abs_()
        aligner.learned.abs_()
    assert Alignment(bound.graph, best_element(bound.graph, scores_of(aligner, pair))) == planted.answer


@pytest.mark.parametrize("build", ARCHITECTURES)
def test_scores_follow_the_units_and_transpose_with_the_networks(build):
    planted = planted_pair(build(), seed=3, noise=0.3)
    bound = planted.bind()
    for module in (bound.module_a, bound.module_b):
        module.double()
    bound = bound.graph.bind(bound.module_a, bound.module_b)
    task = task_of(bound, planted.architecture, torch.float64)
    aligner = encoder(4).double()
    plain = scores_of(aligner, pair_of(bound, task))
    swapped = scores_of(aligner, pair_of(bound.swapped(), task))
    move_a, move_b = (Alignment.random(bound.graph, seed) for seed in (7, 8))
    moved = bound.graph.bind(move_a.apply(bound.module_a), move_b.apply(bound.module_b))
    followed = scores_of(aligner, pair_of(moved, task))
    assert plain
    for group, matrix in plain.items():
        spread = float(matrix.std())
        assert torch.allclose(swapped[group], matrix.T, atol=1e-8 * spread)
        expected = matrix[move_a.flat(group)][:, move_b.flat(group)]
        assert torch.allclose(followed[group], expected, atol=1e-8 * spread)


def test_every_parameter_learns():
    planted = planted_pair(mlp(6, 16, 12, 4), seed=5, noise=0.5)
    bound = planted.bind()
    aligner = encoder(0, 0.3)
    scores = aligner(pair_of(bound, task_of(bound, planted.architecture)))
    sum(matrix.diagonal().sum() for matrix in scores.values()).backward()
    silent = [n for n, p in aligner.named_parameters() if p.grad is None or not p.grad.any()]
    assert silent == ["log_sharpness"]  # It enters where scores become logits.


def test_connections_lead_from_what_is_read_to_what_is_written():
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6), nn.Flatten(), nn.Linear(96, 2)
    )
    graph = trace(model, torch.randn(1, 1, 8, 8))
    (connection,) = find_wiring(graph, model).connections
    assert (connection.source.tensor, connection.source.group, connection.target.group) == (
        "2.weight",
        "layer.0",
        "layer.2",
    )
    weights = dict(model.state_dict())
    matrix = connection.matrix(weights)
    summed = weights["2.weight"].sum((2, 3))
    assert torch.allclose(matrix, summed / (summed.square().mean().sqrt() * 2))


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


def test_inputs_of_a_trace_survive_json():
    model = nn.Sequential(nn.Embedding(10, 4), nn.Linear(4, 2))
    graph = trace(model, torch.tensor([[3, 7]]))
    (one,) = type(graph).from_json(graph.to_json()).provenance.inputs
    assert (one.shape, one.dtype, one.low, one.high) == ((1, 2), "int64", 3, 7)


def test_files_come_back_as_they_were(tmp_path):
    aligner = encoder(2)
    path = tmp_path / "aligner.safetensors"
    save_aligner(path, aligner, {"limits": "small"})
    loaded = load_aligner(path)
    assert loaded.fingerprint == aligner.fingerprint
    assert read_card(path) == {"limits": "small"}
    with torch.no_grad():
        aligner.learned += 1
    assert loaded.fingerprint != aligner.fingerprint


def damaged(path, change):
    header = json.loads(safetensors.safe_open(path, "pt").metadata()["alignkit"])
    tensors = safetensors.torch.load_file(path)
    change(header, tensors)
    safetensors.torch.save_file(tensors, path, {"alignkit": json.dumps(header)})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda h, t: h.update(encoder="lerned"), "did you mean"),
        (lambda h, t: h.update(version=99), "newer release"),
        (lambda h, t: h["settings"].update(channels=5), "do not fit"),
        (lambda h, t: t.pop("mix"), "do not fit"),
        (lambda h, t: t["mix"].fill_(float("nan")), "NaN"),
    ],
)
def test_damaged_files_are_refused(tmp_path, change, said):
    path = tmp_path / "aligner.safetensors"
    save_aligner(path, encoder(0))
    damaged(path, change)
    with pytest.raises(WeightsError, match=f"(?i){said}"):
        load_aligner(path)


def test_what_is_no_aligner_is_refused(tmp_path):
    with pytest.raises(WeightsError, match="cannot be read as an aligner: No such file"):
        load_aligner(tmp_path / "missing.safetensors")
    safetensors.torch.save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(WeightsError, match="not an aligner"):
        load_aligner(tmp_path / "other.safetensors")
    (tmp_path / "text.safetensors").write_text("no")
    with pytest.raises(WeightsError, match="cannot be read"):
        load_aligner(tmp_path / "text.safetensors")


def test_dws_needs_a_checkpoint_and_probes_take_none(tmp_path):
    bound = planted_pair(mlp(6, 8, 4), seed=0).bind()
    with pytest.raises(SolverError, match="train-deepalign"):
        solve(bound, solver="deepalign", encoder="dws")
    save_aligner(tmp_path / "aligner.safetensors", encoder(0))
    with pytest.raises(SolverError, match="no trained weights"):
        solve(bound, solver="deepalign", encoder="probes", checkpoint=tmp_path / "aligner.safetensors")
    with pytest.raises(SolverError, match='encoder="learned"'):
        solve(bound, solver="deepalign", encoder="dws", checkpoint=tmp_path / "aligner.safetensors")


def test_balanced_matrices_have_sums_near_one_and_follow_transposition():
    logits = 3 * torch.randn(2, 9, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = balanced_sinkhorn(logits, scalings=100)
    assert torch.allclose(found.sum(-1), torch.ones(2, 9, dtype=torch.float64), atol=1e-6)
    assert torch.allclose(found.sum(-2), torch.ones(2, 9, dtype=torch.float64), atol=1e-6)
    few = balanced_sinkhorn(logits, scalings=3)
    assert torch.equal(balanced_sinkhorn(logits.mT, scalings=3), few.mT) or torch.allclose(
        balanced_sinkhorn(logits.mT, scalings=3), few.mT, atol=1e-14
    )
