"""Scores of units."""

from __future__ import annotations

import torch

from alignkit.deepalign.scores import standardise


def test_a_constant_matrix_standardises_to_zero():
    assert not standardise(torch.full((4, 4), 3.7, dtype=torch.float64)).any()
