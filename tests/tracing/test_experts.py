"""Experts in stacked tensors: at places that stay, each expert has units of its own."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from alignkit.tracing import trace
from helpers.trace_checks import keeps_function

X = torch.linspace(-1, 1, 45).reshape(9, 5).sin()


class Experts(nn.Module):
    """Three experts of 6 units on a stream of width 4, each read in some way."""

    def __init__(self, read: Callable[[Experts, Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inp, self.out, self.router, self.probe = (
            nn.Linear(5, 4), nn.Linear(4, 2), nn.Linear(4, 3), nn.Linear(6, 4)
        )  # fmt: skip
        self.up, self.bias = nn.Parameter(torch.randn(3, 6, 4)), nn.Parameter(torch.randn(3, 6))
        self.gates, self.gate_bias = nn.Parameter(torch.randn(3, 12, 4)), nn.Parameter(torch.randn(3, 12))
        self.down, self.shared = nn.Parameter(torch.randn(3, 4, 6)), nn.Parameter(torch.randn(4, 6))
        self.read = read

    def forward(self, x: Tensor) -> Tensor:
        stream = self.inp(x)
        return self.out(stream + self.read(self, stream))


def shares(m: Experts, x: Tensor) -> Tensor:
    """Return the share of each expert; numbers tell them apart, so that their places stay."""
    return (m.router(x) * torch.tensor([1.0, 2.0, 3.0])).softmax(-1)


def loop(m: Experts, x: Tensor) -> Tensor:
    hidden = [(x @ m.up[e].T + m.bias[e]).relu() for e in range(3)]
    return sum(shares(m, x)[:, e, None] * (hidden[e] @ m.down[e].T) for e in range(3))


def einsum(m: Experts, x: Tensor) -> Tensor:
    hidden = (torch.einsum("td,eud->etu", x, m.up) + m.bias[:, None]).relu()
    return torch.einsum("etu,edu,te->td", hidden, m.down, shares(m, x))


def batched(m: Experts, x: Tensor) -> Tensor:
    hidden = torch.baddbmm(m.bias[:, None], x.expand(3, -1, -1), m.up.mT).tanh()
    return (torch.bmm(hidden, m.down.mT) * shares(m, x).T[..., None]).sum(0)


def halves(m: Experts, x: Tensor) -> Tensor:
    gate, value = (torch.einsum("td,eud->etu", x, m.gates) + m.gate_bias[:, None]).chunk(2, -1)
    return torch.einsum("etu,edu,te->td", gate.sigmoid() * value, m.down, shares(m, x))


def interleaved(m: Experts, x: Tensor) -> Tensor:
    both = [x @ m.gates[e].T + m.gate_bias[e] for e in range(3)]
    hidden = [y[:, ::2].sigmoid() * y[:, 1::2] for y in both]
    return sum(shares(m, x)[:, e, None] * (hidden[e] @ m.down[e].T) for e in range(3))


def routed(m: Experts, x: Tensor) -> Tensor:
    result = torch.zeros_like(x)
    best = m.router(x).argmax(-1)
    for e, (up, down) in enumerate(zip(m.up.unbind(0), m.down.unbind(0), strict=True)):
        (tokens,) = torch.where(best == e)
        result.index_add_(0, tokens, (x[tokens] @ up.T).relu() @ down.T)
    return result


def rolled(m: Experts, x: Tensor) -> Tensor:
    hidden = [(x @ m.up[e].T).relu() for e in range(3)]
    return sum(shares(m, x)[:, e, None] * (hidden[e] @ m.down[(e + 1) % 3].T) for e in range(3))


def same_second(m: Experts, x: Tensor) -> Tensor:
    hidden = torch.einsum("td,eud->etu", x, m.up).relu()
    return torch.einsum("etu,du,te->td", hidden, m.shared, shares(m, x))


def one_alone(m: Experts, x: Tensor) -> Tensor:
    hidden = torch.einsum("td,eud->etu", x, m.up).relu()
    return torch.einsum("etu,edu,te->td", hidden, m.down, shares(m, x)) + m.probe(hidden[1])


def two_tied(m: Experts, x: Tensor) -> Tensor:
    hidden = [(x @ m.up[e].T).relu() for e in range(3)]
    return sum(shares(m, x)[:, e, None] * (hidden[e] @ m.down[e].T) for e in range(3)) + m.probe(hidden[0] * hidden[1])


def attention(m: Experts, x: Tensor) -> Tensor:
    q, k = ((torch.einsum("td,eud->etu", x, w)).unflatten(-1, (2, 3)) for w in (m.up, m.gates[:, :6] + m.gates[:, 6:]))
    mixed = (torch.einsum("ethu,eshu->ehts", q, k).softmax(-1) @ k.transpose(1, 2)).transpose(1, 2).flatten(2)
    return torch.einsum("etu,edu,te->td", mixed, m.down, shares(m, x))


# The sizes of all groups but the stream's, by hand; units of a family once.
READS: dict[str, tuple[Callable[[Experts, Tensor], Tensor], list[int]]] = {
    "loop": (loop, [6, 6, 6]),
    "einsum": (einsum, [6, 6, 6]),
    "batched": (batched, [6, 6, 6]),
    "halves": (halves, [6, 6, 6]),
    "interleaved": (interleaved, [6, 6, 6]),
    "routed": (routed, [6, 6, 6]),
    "rolled": (rolled, [6]),  # no notation: places of one stack stand in another order in the other
    "same second matrix": (same_second, [6]),
    "one of them read alone": (one_alone, [6, 6, 6]),
    "two of them tied": (two_tied, [6]),  # no notation: two places with one group
    "heads": (attention, [2, 2, 2, 3, 3, 3]),
}


@pytest.mark.parametrize("name", READS)
def test_each_expert_has_the_units_that_it_has(name: str) -> None:
    read, expected = READS[name]
    model = Experts(read)
    graph = trace(model, X)
    keeps_function(model, graph, (X,), (X[:2],), (torch.cat([X, X.flip(1)]),), draws=5)
    assert sorted(group.size for name, group in graph.groups.items() if name != "inp") == expected
    assert graph.provenance.unknown_ops == ()


def test_the_spec_of_experts_names_their_stack() -> None:
    spec = trace(Experts(one_alone), X).spec()
    stack = "layer.up.stack"
    assert spec["up"] == f"={stack} layer.up[{stack}] inp"
    assert spec["down"] == f"={stack} inp layer.up[{stack}]"
    assert spec["probe.weight"] == "inp layer.up.1"


class Picked(nn.Module):
    """Tokens pick their expert by a computed position, and the first token is read by a layer of its own."""

    def __init__(self, pick: Callable[[Tensor], Tensor], real: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.up, self.down = nn.Parameter(torch.randn(3, 6, 5)), nn.Parameter(torch.randn(3, 2, 6))
        self.router, self.probe = nn.Linear(5, 3, bias=False), nn.Linear(6, 2)
        self.pick, self.real = pick, real

    def forward(self, x: Tensor) -> Tensor:
        if self.real:
            assert float(x.detach().abs().sum()) > 0  # depends on values, so that the run is on real tensors
        experts = self.pick(self.router(x))
        hidden = torch.bmm(self.up[experts], x[..., None])[..., 0].relu()
        return torch.cat([torch.bmm(self.down[experts], hidden[..., None])[..., 0], self.probe(hidden[:1])])


PICKS: dict[str, Callable[[Tensor], Tensor]] = {
    "argmax": lambda scores: scores.argmax(-1),
    "topk": lambda scores: scores.topk(2).indices[:, 1],
    "numbers": lambda scores: torch.tensor([int(row.argmax()) for row in scores]),
    "a list": lambda scores: torch.tensor(scores.argmax(-1).tolist()),
    "a sum": lambda scores: (scores > 0).sum(-1).clamp(max=2),
}


@pytest.mark.parametrize("real", [False, True])
@pytest.mark.parametrize("pick", PICKS)
def test_positions_that_a_run_computes_are_not_those_of_another(pick: str, real: bool) -> None:
    x = torch.randn(60, 5, generator=torch.Generator().manual_seed(1))
    model = Picked(PICKS[pick], real)
    graph = trace(model, x)
    assert len(set(model.pick(model.router(x)).tolist())) == 3
    keeps_function(model, graph, *[(x[i:],) for i in range(0, 60, 7)])
