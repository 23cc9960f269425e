"""The universal encoder: symmetries for any parameters, exactness on copies, and what it learns from."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from alignkit import Alignment, trace
from alignkit.matching.families import best_element
from alignkit.testing import mlp, planted_pair
from helpers.aligner_inputs import ARCHITECTURES, encoder, pair_of, scores_of, task_of


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


def test_inputs_of_a_trace_survive_json():
    model = nn.Sequential(nn.Embedding(10, 4), nn.Linear(4, 2))
    graph = trace(model, torch.tensor([[3, 7]]))
    (one,) = type(graph).from_json(graph.to_json()).provenance.inputs
    assert (one.shape, one.dtype, one.low, one.high) == ((1, 2), "int64", 3, 7)
