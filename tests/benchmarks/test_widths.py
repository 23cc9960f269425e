"""Networks of two widths: an expansion computes the same, and what is aligned is better than what is not."""

import importlib
from pathlib import Path

import pytest
import torch

pytest.importorskip("sklearn")


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    return importlib.import_module("bench_widths")


@pytest.mark.parametrize("widths", [(3, 2), (3, 4, 2), (5, 1, 7, 3), (2, 6, 5, 4, 3)])
def test_an_expanded_network_is_twice_as_wide_and_computes_the_same(bench, widths):
    torch.manual_seed(0)
    model, inputs = bench.mlp(widths), torch.randn(9, widths[0])
    wide = bench.expanded(model)
    assert [layer.out_features for layer in wide if isinstance(layer, torch.nn.Linear)] == [
        *(2 * width for width in widths[1:-1]),
        widths[-1],
    ]
    torch.testing.assert_close(wide(inputs), model(inputs))


@pytest.mark.slow
def test_every_way_to_align_is_better_than_none(bench):
    wide, narrow = bench.trained(bench.WIDE, 0), bench.trained(bench.NARROW, 100)
    parents = (bench.loss(wide) + bench.loss(narrow)) / 2
    excess = {name: bench.loss(merged) - parents for name, merged in bench.averages(wide, narrow)}
    plain = excess.pop("expanded, not aligned")
    assert len(excess) >= 6
    assert max(excess.values()) < 0.5 * plain
