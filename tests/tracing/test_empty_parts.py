"""Parts without elements, as the rest behind rotary positions that turn all units, tie nothing to each other."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from alignkit.tracing import trace
from helpers.trace_checks import counts, keeps_function

LAYERS, HEADS, SIZE = 3, 2, 4
Pass = Callable[[Tensor], Tensor]

EMPTY: dict[str, Pass] = {
    "rest of a slice": lambda t: torch.cat([t[..., :SIZE].tanh(), t[..., SIZE:]], -1),
    "rest in front": lambda t: torch.cat([t[..., :0], t.tanh()], -1),
    "piece of a split": lambda t: torch.cat([part.tanh() for part in t.split([SIZE, 0], -1)], -1),
    "empty sums": lambda t: t.tanh() + t[..., SIZE:].sum(-1, keepdim=True),
    "empty heads": lambda t: torch.cat([t.tanh(), t[:, HEADS:]], 1),
    "empty positions": lambda t: torch.cat([t[:, :, :0], t.tanh()], 2),
    "narrow": lambda t: torch.cat([t.narrow(-1, 0, SIZE).sin(), t.narrow(-1, SIZE, 0)], -1),
}


class Layers(nn.Module):
    """Attention layers on a residual stream, whose queries and keys pass through a function."""

    def __init__(self, change: Pass) -> None:
        super().__init__()
        torch.manual_seed(0)
        width = HEADS * SIZE
        self.inp, self.out, self.change = nn.Linear(5, 6), nn.Linear(6, 2), change
        self.q, self.k, self.v = (nn.ModuleList(nn.Linear(6, width) for _ in range(LAYERS)) for _ in range(3))
        self.o = nn.ModuleList(nn.Linear(width, 6) for _ in range(LAYERS))

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        x = self.inp(x)
        for *projections, o in zip(self.q, self.k, self.v, self.o, strict=True):
            q, k, v = (f(x).view(b, n, HEADS, SIZE).transpose(1, 2) for f in projections)
            y = F.scaled_dot_product_attention(self.change(q), self.change(k), v)
            x = x + o(y.transpose(1, 2).flatten(2))
        return self.out(x)


@pytest.mark.parametrize("name", EMPTY)
def test_layers_keep_heads_of_their_own(name: str) -> None:
    model = Layers(EMPTY[name])
    x = torch.linspace(-1, 1, 30).reshape(1, 6, 5).sin()
    graph = trace(model, x)
    assert counts(graph) == (1 + LAYERS, 2 * LAYERS)
    tensors = {name: set(graph.tensors_of(name)) for name, group in graph.groups.items() if group.size == HEADS}
    expected = [{f"{p}.{i}.weight" for p in "qkvo"} | {f"{p}.{i}.bias" for p in "qkv"} for i in range(LAYERS)]
    assert sorted(map(sorted, tensors.values())) == sorted(map(sorted, expected))
    keeps_function(model, graph, (x,), (torch.cat([x, x.flip(1)]),), (x[:, :3],))
