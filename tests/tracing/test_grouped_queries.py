"""Query heads that share heads of keys and values: all heads and units are found, however positions rotate them."""

from __future__ import annotations

from collections.abc import Callable
from math import inf

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from alignkit.tracing import trace
from helpers.trace_checks import keeps_function, sizes

WIDTH = 6
Turn = Callable[[Tensor, Tensor], Tensor]
Mix = Callable[[Tensor, Tensor, Tensor], Tensor]


def halves(x: Tensor, angles: Tensor) -> Tensor:
    a, b = x.chunk(2, -1)
    return torch.cat((a * angles.cos() - b * angles.sin(), b * angles.cos() + a * angles.sin()), -1)


def turned_half(x: Tensor, angles: Tensor) -> Tensor:
    a, b = x[..., : WIDTH // 2], x[..., WIDTH // 2 :]
    both = torch.cat((angles, angles), -1)
    return x * both.cos() + torch.cat((-b, a), -1) * both.sin()


def neighbours(x: Tensor, angles: Tensor) -> Tensor:
    a, b = x[..., ::2], x[..., 1::2]
    return torch.stack((a * angles.cos() - b * angles.sin(), b * angles.cos() + a * angles.sin()), -1).flatten(-2)


def complex_numbers(x: Tensor, angles: Tensor) -> Tensor:
    numbers = torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous())
    return torch.view_as_real(numbers * torch.polar(torch.ones_like(angles), angles)).flatten(-2)


def a_part(x: Tensor, angles: Tensor) -> Tensor:
    return torch.cat((neighbours(x[..., :2], angles[:, :1]), x[..., 2:]), -1)


# How positions rotate queries and keys, and how many units of a head they leave free.
TURNS: dict[str, tuple[Turn, int]] = {
    "no positions": (lambda x, angles: x, WIDTH),
    "halves": (halves, 0),
    "turned half": (turned_half, 0),
    "neighbours": (neighbours, 0),
    "complex numbers": (complex_numbers, 0),
    "a part": (a_part, WIDTH - 2),
}


def by_hand(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    later = torch.full((q.shape[-2], k.shape[-2]), -inf).triu(1)
    return (q @ k.mT / 2 + later).softmax(-1) @ v


def fused(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


def interleaved(mix: Mix) -> Mix:
    def repeat(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        times = q.shape[1] // k.shape[1]
        return mix(q, k.repeat_interleave(times, 1), v.repeat_interleave(times, 1))

    return repeat


def expanded(mix: Mix) -> Mix:
    def repeat(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        times = q.shape[1] // k.shape[1]
        return mix(q, *(x[:, :, None].expand(-1, -1, times, -1, -1).flatten(1, 2) for x in (k, v)))

    return repeat


def nested(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    apart = q.unflatten(1, (k.shape[1], -1))
    scores = torch.einsum("bgrtd,bgsd->bgrts", apart, k)
    return torch.einsum("bgrts,bgsd->bgrtd", scores.softmax(-1), v).flatten(1, 2)


MIXES: dict[str, Mix] = {
    "repeat_interleave, by hand": interleaved(by_hand),
    "repeat_interleave, fused": interleaved(fused),
    "expand, by hand": expanded(by_hand),
    "expand, fused": expanded(fused),
    "einsum": nested,
}


class Decoder(nn.Module):
    """One layer of attention on a residual stream."""

    def __init__(self, turn: Turn, mix: Mix, heads: int, shared: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.turn, self.mix = turn, mix
        self.inp, self.head = nn.Linear(3, 8), nn.Linear(8, 2)
        self.q, self.k, self.v = (nn.Linear(8, count * WIDTH) for count in (heads, shared, shared))
        self.out = nn.Linear(heads * WIDTH, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.inp(x)
        angles = torch.arange(float(x.shape[1])).to(x)[:, None] * 10 ** -torch.arange(WIDTH / 2).to(x)
        q, k, v = (y(x).unflatten(-1, (-1, WIDTH)).transpose(1, 2) for y in (self.q, self.k, self.v))
        mixed = self.mix(self.turn(q, angles), self.turn(k, angles), v)
        return self.head(x + self.out(mixed.transpose(1, 2).flatten(2)))


@pytest.mark.parametrize(("heads", "shared"), [(6, 2), (3, 3), (4, 1)])
@pytest.mark.parametrize("turn", TURNS)
@pytest.mark.parametrize("mix", MIXES)
def test_all_heads_and_their_units_are_found(mix: str, turn: str, heads: int, shared: int) -> None:
    rotate, free = TURNS[turn]
    model = Decoder(rotate, MIXES[mix], heads, shared)
    families = [heads // shared, free, WIDTH] if shared > 1 else [heads, free, WIDTH]
    expected = sorted([8, *(n for n in (shared, *families) if n > 1)])
    calls = [torch.arange(3.0 * n * t).square().sin().reshape(n, t, 3) for n, t in ((1, 5), (2, 4), (2, 1))]
    for x in calls[:2]:
        graph = trace(model, x)
        assert sorted(sizes(graph).values()) == expected
        nested_groups = [group for group in graph.groups.values() if group.parent is not None]
        assert len(nested_groups) == (len(expected) - 2 if shared > 1 else 0)
    keeps_function(model, graph, *((x,) for x in calls), draws=2)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("spread", [False, True])
def test_a_dimension_that_is_alike_in_each_sample_of_a_batch_joins_it(batch: int, spread: bool) -> None:
    class Masked(nn.Module):
        """Heads whose scores lie in one dimension with the samples, to which a mask of each sample is added."""

        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.q, self.v, self.out = nn.Linear(3, 8), nn.Linear(3, 8), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            q, v = (y(x).unflatten(-1, (4, 2)).transpose(1, 2).flatten(0, 1) for y in (self.q, self.v))
            mask = x[:, :, :1].mT[:, None].expand(-1, 4, x.shape[1], -1)
            scores = q @ q.mT
            scores = scores + mask.flatten(0, 1) if spread else (scores.unflatten(0, (-1, 4)) + mask).flatten(0, 1)
            return self.out((scores.softmax(-1) @ v).unflatten(0, (-1, 4)).transpose(1, 2).flatten(2))

    calls = [torch.arange(9.0 * n).square().sin().reshape(n, 3, 3) for n in (batch, 2)]
    model = Masked()
    graph = trace(model, calls[0])
    assert graph.spec()["out.weight"] == ". (heads:4 v[heads])"
    keeps_function(model, graph, *((x,) for x in calls))
