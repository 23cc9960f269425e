"""Alignments move tensors of every dtype that torch has, bit for bit, whatever it can index."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from alignkit import Alignment
from helpers.graph_strategies import graphs, slow_apply

quick = settings(max_examples=15, suppress_health_check=list(HealthCheck))
INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
WHOLE = [f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)]
SMALL = ["float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e8m0fnu"]
DTYPES = [*WHOLE, *SMALL, "bfloat16", "float16", "float32", "float64"]


@pytest.mark.parametrize("dtype", DTYPES)
@quick
@given(graphs(), st.integers(0, 2**31))
def test_every_bit_comes_to_its_place(dtype, graph, seed):
    kind = getattr(torch, dtype)
    generator, whole = torch.Generator().manual_seed(seed), INTEGERS[kind.itemsize]
    bounds = torch.iinfo(whole)
    bits = {
        name: torch.randint(bounds.min, bounds.max, node.shape, generator=generator).to(whole)
        for name, node in graph.tensors.items()
    }
    if kind.itemsize > 1 and kind.is_floating_point:  # torch may change which NaN it is
        bits = {name: tensor.where(~tensor.view(kind).isnan(), 0) for name, tensor in bits.items()}
    alignment = Alignment.random(graph, seed)
    moved = alignment.apply({name: tensor.view(kind) for name, tensor in bits.items()})
    expected = slow_apply(graph, alignment, bits)
    assert all(tensor.dtype == kind for tensor in moved.values())
    assert all(torch.equal(tensor.view(whole), expected[name]) for name, tensor in moved.items())


@quick
@given(graphs(), st.integers(0, 2**31))
def test_truth_values_come_to_their_place(graph, seed):
    generator = torch.Generator().manual_seed(seed)
    masks = {n: torch.rand(node.shape, generator=generator) > 0.5 for n, node in graph.tensors.items()}
    alignment = Alignment.random(graph, seed)
    moved, expected = alignment.apply(masks), slow_apply(graph, alignment, masks)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in moved.items())
