"""Matrices that Python code picks by numbers that it got from tensors: another input takes others."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from alignkit.tracing import trace
from helpers.trace_checks import keeps_function

X = torch.randn(3, 5, generator=torch.Generator().manual_seed(5))
MORE = [torch.randn(n, 5, generator=torch.Generator().manual_seed(n)) for n in range(3, 9)]


class Ranked(nn.Module):
    """Four experts of 6 units are ranked; what each writes is read alike, by rank, or by another expert."""

    def __init__(self, take: Callable[[Tensor, Tensor], list[Tensor]], read: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.router = nn.Linear(5, 4)
        self.up, self.down = nn.Parameter(torch.randn(4, 6, 5)), nn.Parameter(torch.randn(4, 3, 6))
        self.probes = nn.ModuleList(nn.Linear(6, 3) for _ in range(4))
        self.take, self.read = take, read

    def forward(self, x: Tensor) -> Tensor:
        assert x.abs().sum() > 0  # the run is on real tensors
        numbers = self.router(x).sum(0).topk(4).indices
        hidden = [(x @ up.T).tanh() for up in self.take(self.up, numbers)]
        if self.read == "by rank":
            return sum(probe(h) for probe, h in zip(self.probes, hidden, strict=True))
        downs = self.take(self.down, numbers)
        if self.read == "by the other":
            downs = downs[::-1]
        return sum(h @ down.T for h, down in zip(hidden, downs, strict=True))


def counted(w: Tensor, numbers: Tensor) -> list[Tensor]:
    picked = []
    for number in numbers:
        counter = torch.zeros((), dtype=torch.long) + number
        picked.append(w[counter])
        counter += 1
        picked.append(w[counter % 4])
    return [a + b for a, b in zip(picked[::2], picked[1::2], strict=True)]


# How Python gets the matrices, and how many orders of 6 units there are where they are read alike.
TAKES: dict[str, tuple[Callable[[Tensor, Tensor], list[Tensor]], int]] = {
    "tensor": (lambda w, numbers: [w[number] for number in numbers], 4),
    "tensor of the place": (lambda w, numbers: [w[numbers[k]] for k in range(4)], 4),
    "tensor beside a slice": (lambda w, numbers: [w[number, :] for number in numbers], 4),
    "sum of tensors": (lambda w, numbers: [w[(number + 1) % 4] for number in numbers], 1),
    "counter": (counted, 1),
    "list": (lambda w, numbers: [w[e] for e in numbers.tolist()], 1),
    "int": (lambda w, numbers: [w[int(number)] for number in numbers], 1),
    "item": (lambda w, numbers: [w[(number.item() + 1) % 4] for number in numbers], 1),
    "array": (lambda w, numbers: [w[e] for e in numbers.numpy()], 1),
    "words": (lambda w, numbers: [w[int(word)] for word in str(numbers.tolist())[1:-1].split(",")], 1),
    "unbind": (lambda w, numbers: [w.unbind(0)[e] for e in numbers.tolist()], 1),
    "rows": (lambda w, numbers: [list(w)[e] for e in numbers.tolist()], 1),
    "slice": (lambda w, numbers: [w[e : e + 1][0] for e in numbers.tolist()], 1),
    "select": (lambda w, numbers: [w.select(0, e) for e in numbers.tolist()], 1),
    "narrow": (lambda w, numbers: [w.narrow(0, e, 1).squeeze(0) for e in numbers.tolist()], 1),
    "split": (lambda w, numbers: [w.split(1)[e][0] for e in numbers.tolist()], 1),
    "copy": (lambda w, numbers: [torch.stack([*w])[e] for e in numbers.tolist()], 1),
}


@pytest.mark.parametrize("read", ["alike", "by rank", "by the other"])
@pytest.mark.parametrize("name", TAKES)
def test_another_input_may_pick_others(name: str, read: str) -> None:
    take, units = TAKES[name]
    model = Ranked(take, read)
    graph = trace(model, X)
    keeps_function(model, graph, (X,), *((x,) for x in MORE))
    assert graph.provenance.unknown_ops == ()
    orders = sum(graph.instances(group) for group in graph.groups if graph.groups[group].size == 6)
    assert orders == (units if read == "alike" else 1)


class Fused(nn.Module):
    """Units of four experts in one matrix, of which Python picks shares; each rank has a layer of its own."""

    def __init__(self, hidden: Callable[[Tensor, Tensor, list[int]], list[Tensor]]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.router, self.up = nn.Linear(5, 4), nn.Parameter(torch.randn(24, 5))
        self.probes = nn.ModuleList(nn.Linear(6, 3) for _ in range(4))
        self.hidden = hidden

    def forward(self, x: Tensor) -> Tensor:
        numbers = self.router(x).sum(0).topk(4).indices.tolist()
        hidden = self.hidden(x, self.up, numbers)
        return sum(probe(h.tanh()) for probe, h in zip(self.probes, hidden, strict=True))


SHARES: dict[str, Callable[[Tensor, Tensor, list[int]], list[Tensor]]] = {
    "view": lambda x, w, numbers: [x @ w.view(4, 6, 5)[e].T for e in numbers],
    "rows of a view": lambda x, w, numbers: [x @ w.view(4, 6, 5).unbind(0)[e].T for e in numbers],
    "chunk": lambda x, w, numbers: [x @ w.chunk(4)[e].T for e in numbers],
    "slice": lambda x, w, numbers: [x @ w[6 * e : 6 * e + 6].T for e in numbers],
    "part": lambda x, w, numbers: [(x @ w.T).view(-1, 4, 6)[:, e] for e in numbers],
    "parts": lambda x, w, numbers: [(x @ w.T).view(-1, 4, 6).unbind(1)[e] for e in numbers],
    "parts of units": lambda x, w, numbers: [(x @ w.T).split(6, -1)[e] for e in numbers],
}


@pytest.mark.parametrize("name", SHARES)
def test_another_input_may_pick_other_shares_of_a_matrix(name: str) -> None:
    model = Fused(SHARES[name])
    keeps_function(model, trace(model, X), (X,), *((x,) for x in MORE))
