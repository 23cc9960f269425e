"""Tensors laid beside each other keep units of their own, until something ties them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from alignkit.tracing import trace
from helpers.trace_checks import keeps_function

X = torch.linspace(-1, 1, 20).reshape(4, 5).sin()


class Stacks(nn.Module):
    """Three layers of 6 units, whose outputs are stacked along a dimension and read in some way."""

    def __init__(self, dim: int, read: Callable[[Stacks, Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(nn.Linear(5, 6) for _ in range(3))
        self.one, self.two, self.all = nn.Linear(6, 2), nn.Linear(6, 2), nn.Linear(18, 2)
        self.scale, self.weights = nn.Parameter(torch.randn(3, 1, 6)), nn.Parameter(torch.randn(3, 1, 1))
        self.norm = nn.LayerNorm(6)
        self.dim, self.read = dim, read

    def forward(self, x: Tensor) -> Tensor:
        stacked = torch.stack([layer(x).tanh() for layer in self.layers], self.dim).movedim(self.dim, 0)
        return self.read(self, stacked)


# How many separate groups of 6 there are, by hand: layers that something ties to each other are one.
READS: dict[str, tuple[Callable[[Stacks, Tensor], Tensor], int]] = {
    "one of them": (lambda m, s: m.one(s[-1]) + m.two(s[0]), 3),
    "each by its own layer": (lambda m, s: m.one(s[0]) + m.two(s[1]) + m.one(s[2]), 2),
    "unbind": (lambda m, s: m.one(s.unbind(0)[0]) * m.two(s.unbind(0)[1]) + m.two(s.unbind(0)[2]), 2),
    "flat": (lambda m, s: m.all(s.transpose(0, 1).flatten(1)), 3),
    "cat": (lambda m, s: m.all(torch.cat([s[2], s[0], s[1]], -1)), 3),
    "the same layer for all": (lambda m, s: m.one(s).prod(0), 1),
    "sum": (lambda m, s: m.one(s.sum(0)), 1),
    "mean of two": (lambda m, s: m.one(s[:2].mean(0)) + m.two(s[2]), 2),
    "maximum": (lambda m, s: m.one(s.amax(0)), 1),
    "attention of layers": (lambda m, s: m.one((s.softmax(0) * s).sum(0)), 1),
    "cumulative sum": (lambda m, s: m.one(s.cumsum(0)[1]) + m.two(s[2]), 1),
    "scaled": (lambda m, s: m.all((s * m.scale).transpose(0, 1).flatten(1)), 3),
    "one weight each": (lambda m, s: m.all((s * m.weights).transpose(0, 1).flatten(1)), 3),
    "weighted sum": (lambda m, s: m.one((s * m.weights).sum(0)), 1),
    "einsum": (lambda m, s: m.one(torch.einsum("lbh,l->bh", s, m.weights.flatten())), 1),
    "inner products": (lambda m, s: (s[0] * s[1]).sum(-1, keepdim=True) + m.one(s[2]), 2),
    "norm": (lambda m, s: m.one(m.norm(s)[0]) + m.two(s[1]) + m.two(s[2]), 1),
    "norm of the units": (lambda m, s: m.all(F.normalize(s, dim=-1).transpose(0, 1).flatten(1)), 3),
    "stacked again": (lambda m, s: m.one(torch.stack([s, s.exp()])[1, 0]) + m.two(s[1]) + m.two(s[2]), 2),
    "residual": (lambda m, s: m.all((s + s.flip(0)).transpose(0, 1).flatten(1)), 2),
    "rolled": (lambda m, s: m.one(s.roll(1, 0)[0]) + m.two(s[1]) * m.two(s[0]), 2),
    "batches joined": (lambda m, s: m.one(s.reshape(-1, 6)).reshape(3, -1, 2).sum(0), 1),
    "batches joined and parted": (
        lambda m, s: m.all(s.reshape(-1, 6).relu().view(3, -1, 6).movedim(0, 1).flatten(1)),
        3,
    ),
    "written": (lambda m, s: m.one(torch.zeros_like(s).copy_(s)[0]) + m.two(s[1]) + m.two(s[2]), 2),
    "products of all pairs": (
        lambda m, s: (s.movedim(0, 1) @ s.movedim(0, 1).mT).sum((1, 2))[:, None] + m.one(s[0]),
        1,
    ),
    "matrix of each": (lambda m, s: (s.transpose(1, 2) @ s).sum((1, 2)).sum() + m.one(s[0]), 3),
}


@pytest.mark.parametrize("dim", [0, 1])
@pytest.mark.parametrize("name", READS)
def test_layers_are_tied_where_something_ties_them(name: str, dim: int) -> None:
    read, expected = READS[name]
    model = Stacks(dim, read)
    graph = trace(model, X)
    rows = [graph.spec()[f"layers.{i}.weight"].split()[0] for i in range(3)]
    keeps_function(model, graph, (X,), (X[:1],))
    assert "." not in rows
    assert len(set(rows)) == expected


class LastStates(nn.Module):
    """Recurrent layers that are read by their last states."""

    def __init__(self, layer: type[nn.RNNBase], read: Callable[[Tensor], Tensor], bidirectional: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = layer(5, 6, 2, batch_first=True, bidirectional=bidirectional)
        self.out, self.read = nn.LazyLinear(2), read
        self(X[None])

    def forward(self, x: Tensor) -> Tensor:
        state = self.layer(x)[1]
        return self.out(self.read(state[0] if isinstance(state, tuple) else state))


@pytest.mark.parametrize("layer", [nn.RNN, nn.LSTM, nn.GRU])
@pytest.mark.parametrize(
    ("read", "bidirectional", "expected"),
    [
        (lambda h: h[-1], False, 2),
        (lambda h: torch.cat([h[-2], h[-1]], -1), True, 4),
        (lambda h: h.transpose(0, 1).flatten(1), False, 2),
        (lambda h: h.sum(0), False, 1),
        (lambda h: h.view(2, 2, -1, 6)[1].mean(0), True, 3),
    ],
)
def test_layers_and_directions_that_are_read_by_their_last_states(
    layer: type[nn.RNNBase], read: Callable[[Tensor], Tensor], bidirectional: bool, expected: int
) -> None:
    model, x = LastStates(layer, read, bidirectional), X[None]
    graph = trace(model, x)
    assert [group.size for group in graph.groups.values()] == [6] * expected
    keeps_function(model, graph, (x,), (x[:, :2],), (torch.cat([x, x.flip(1)]),))
