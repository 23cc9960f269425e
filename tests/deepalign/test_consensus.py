"""Consensus: rounds correct wrong scores, and balancing keeps what the two networks share."""

from __future__ import annotations

import torch

from alignkit import Alignment
from alignkit.deepalign.consensus import consensus
from alignkit.matching.families import best_element
from alignkit.matching.objective import Objective
from alignkit.matching.sinkhorn import balanced_sinkhorn
from alignkit.testing import planted_pair
from helpers.aligner_inputs import mlp_of_four


def test_rounds_of_consensus_correct_wrong_scores():
    planted = planted_pair(mlp_of_four(), seed=5)
    pair = planted.bind()
    right = {name: matrix.double() for name, matrix in planted.answer.as_matrices().items()}
    generator = torch.Generator().manual_seed(0)
    noisy = {n: m + 0.8 * torch.randn(m.shape, generator=generator, dtype=torch.float64) for n, m in right.items()}
    assert Alignment(pair.graph, best_element(pair.graph, noisy)) != planted.answer
    agreed = consensus(Objective(pair), noisy)
    assert Alignment(pair.graph, best_element(pair.graph, agreed)) == planted.answer


def test_balanced_matrices_have_sums_near_one_and_follow_transposition():
    logits = 3 * torch.randn(2, 9, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = balanced_sinkhorn(logits, scalings=100)
    assert torch.allclose(found.sum(-1), torch.ones(2, 9, dtype=torch.float64), atol=1e-6)
    assert torch.allclose(found.sum(-2), torch.ones(2, 9, dtype=torch.float64), atol=1e-6)
    few = balanced_sinkhorn(logits, scalings=3)
    assert torch.equal(balanced_sinkhorn(logits.mT, scalings=3), few.mT) or torch.allclose(
        balanced_sinkhorn(logits.mT, scalings=3), few.mT, atol=1e-14
    )
