"""Scales and gains of units: folded in all places that share them, or in none; and signs beside folded ones."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import alignkit

FOLDED: dict[str, Callable[[Scaled, Tensor], Tensor]] = {
    "two layers": lambda s, x: s.c(torch.tanh(s.v * s.b(torch.tanh(s.v * s.a(x))))),
    "two layers that rectify": lambda s, x: s.c(torch.relu(s.v * s.b(torch.relu(s.v * s.a(x))))),
    "behind another scale": lambda s, x: s.c(torch.tanh(s.w * (s.v * s.b(torch.tanh(s.v * s.a(x)))))),
    "two branches": lambda s, x: s.c(torch.tanh(s.v * s.a(x))) + s.e(torch.tanh(s.v * s.d(x))),
}
KEPT: dict[str, Callable[[Scaled, Tensor], Tensor]] = {
    "also a bias": lambda s, x: s.c(torch.tanh(s.v * s.b(torch.tanh(s.a(x) + s.v)))),
    "also behind a function": lambda s, x: s.c(torch.tanh(s.v * s.b(s.v * torch.tanh(s.a(x))))),
    "around a function": lambda s, x: s.c(s.v * torch.tanh(s.v * s.a(x))),
    "also in the output": lambda s, x: s.c(torch.tanh(s.v * s.a(x))) + s.v.square().sum(),
    "also as a power": lambda s, x: s.c(torch.tanh(s.v.exp() * s.b(torch.tanh(s.v * s.a(x))))),
    "a layer that is read without it": lambda s, x: s.c(torch.tanh(s.b(torch.tanh(s.v * s.b(torch.tanh(s.a(x))))))),
}


class Scaled(nn.Module):
    """Layers whose units a vector scales in more than one place."""

    def __init__(self, function: Callable[[Scaled, Tensor], Tensor], sizes: tuple[int, ...]) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(2, 6), nn.Linear(6, 6), nn.Linear(6, 3)
        self.d, self.e = nn.Linear(2, 6), nn.Linear(6, 3)
        self.v, self.w = nn.Parameter(1 + torch.rand(sizes)), nn.Parameter(1 + torch.rand(6))
        self.norm = nn.LayerNorm(6)
        nn.init.uniform_(self.norm.weight, 0.5, 1.5)
        nn.init.normal_(self.norm.bias)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


@pytest.mark.parametrize("sizes", [(6,), (1,), (1, 6)], ids=str)
@pytest.mark.parametrize("case", [*FOLDED, *KEPT])
def test_that_a_shared_scale_is_folded_everywhere_or_nowhere(case: str, sizes: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    model, x = Scaled({**FOLDED, **KEPT}[case], sizes).double(), torch.randn(16, 2, dtype=torch.float64)
    graph = alignkit.trace(model, x, symmetries="all")
    folded = alignkit.fold(model, graph).network
    torch.testing.assert_close(folded(x), model(x), rtol=1e-9, atol=1e-9)
    graph.verify(folded, x)
    moved = alignkit.Alignment.random(graph, 1).apply(folded)
    torch.testing.assert_close(moved(x), model(x), rtol=1e-9, atol=1e-9)
    if sizes != (1,):
        assert bool((folded.v == 1).all()) == (case in FOLDED)


EVEN: dict[str, Callable[[Scaled, Tensor], Tensor]] = {
    "a norm of squares": lambda s, x: s.c(s.norm(s.a(x).square())),
    "a norm of products": lambda s, x: s.c(s.norm(s.a(x) * s.d(x))),
    "a scaled square": lambda s, x: s.c(s.v * torch.tanh(s.a(x)).square()),
    "scaled products": lambda s, x: s.c(s.v * (s.w * s.a(x) * s.d(x) * s.d(x))),
    "a norm of a scaled square": lambda s, x: s.c(s.norm(s.v * s.a(x).square())),
}


@pytest.mark.parametrize("case", EVEN)
def test_that_what_folds_leave_at_one_has_no_sign(case: str) -> None:
    torch.manual_seed(1)
    model, x = Scaled(EVEN[case], (6,)).double(), torch.randn(16, 2, dtype=torch.float64)
    graph = alignkit.trace(model, x, symmetries="all")
    folded = alignkit.fold(model, graph).network
    moved = alignkit.Alignment.random(graph, 1).apply(folded)
    torch.testing.assert_close(moved(x), model(x), rtol=1e-9, atol=1e-9)
    for fold in graph.folds:
        for name in (getattr(fold, "gain", None), getattr(fold, "scale", None)):
            if name is not None:
                assert bool((moved.get_parameter(name) == 1).all())
    distance = alignkit.distance(graph, model, moved)
    assert distance.same, distance.explain()
