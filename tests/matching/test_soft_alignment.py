"""Soft alignments hold copies of their matrices, through which gradients flow."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from alignkit import Alignment, SoftAlignment
from helpers.graph_strategies import graphs
from helpers.small_graphs import ATTENTION, MLP

quick = settings(max_examples=40, suppress_health_check=list(HealthCheck))


@quick
@given(graphs(), st.integers(0, 2**31))
def test_nothing_that_is_written_later_changes_it(graph, seed):
    alignment = Alignment.random(graph, seed)
    matrices = dict(SoftAlignment.from_alignment(alignment).matrices)
    soft = SoftAlignment(graph, matrices)
    for matrix in (*matrices.values(), *soft.matrices.values()):
        matrix.zero_()
    matrices.clear()
    assert soft.round() == alignment


def test_its_parts_cannot_be_exchanged():
    soft = SoftAlignment.centre(ATTENTION)
    for name in ("matrices", "graph"):
        with pytest.raises(AttributeError):
            setattr(soft, name, {})


def test_gradients_flow_to_what_it_was_made_from():
    matrices = {n: m.requires_grad_() for n, m in SoftAlignment.centre(MLP).matrices.items()}
    moved = SoftAlignment(MLP, matrices).apply({n: torch.randn(t.shape) for n, t in MLP.tensors.items()})
    sum(tensor.square().sum() for tensor in moved.values()).backward()
    assert all(matrix.grad is not None and bool(matrix.grad.any()) for matrix in matrices.values())
