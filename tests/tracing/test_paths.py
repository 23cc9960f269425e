"""Code that chooses by values sees one path: the report says where. Widths that are defaults are tried."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from alignkit.graph import SymmetryGraph
from alignkit.tracing import trace
from helpers.trace_checks import keeps_function, sizes

TITLE = "Code that reads values of tensors"


class Chooses(nn.Module):
    """Takes one of three layers, or all of them, by what it finds in its input."""

    def __init__(self, choose: Callable[[nn.ModuleList, Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inp, self.layers, self.out = (
            nn.Linear(5, 8),
            nn.ModuleList(nn.Linear(8, 8) for _ in range(3)),
            nn.Linear(8, 2),
        )
        self.choose = choose

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.choose(self.layers, self.inp(x).tanh()).tanh())


def halting(layers: nn.ModuleList, h: Tensor) -> Tensor:
    for layer in layers:
        h = layer(h)
        if h.abs().mean() > 0.1:
            break
    return h


CHOOSES: dict[str, Callable[[nn.ModuleList, Tensor], Tensor]] = {
    "int": lambda layers, h: layers[int(h.sum(0)[:3].argmax())](h),
    "item": lambda layers, h: layers[h.sum(0)[:3].argmax().item()](h),
    "tolist": lambda layers, h: layers[h.sum(0)[:3].argmax().tolist()](h),
    "array": lambda layers, h: layers[h.sum(0)[:3].detach().numpy().argmax()](h),
    "index": lambda layers, h: layers[h.sum(0)[:3].argmax()](h),
    "truth": lambda layers, h: layers[0](h) if h.sum() > 0 else layers[1](h),
    "equal": lambda layers, h: layers[0](h) if torch.equal(h[0], h[1]) else layers[1](h),
    "close": lambda layers, h: layers[0](h) if torch.allclose(h[0], h[1]) else layers[1](h),
    "halting": halting,
    "a loop": lambda layers, h: sum(layers[e](h) for e in h[0, :3].sort().indices),
}
DOES_NOT: dict[str, Callable[[nn.ModuleList, Tensor], Tensor]] = {
    "shape": lambda layers, h: layers[len(h) % 3](h) if h.shape[0] > 1 else h,
    "a mask": lambda layers, h: torch.where(h > 0, layers[0](h), layers[1](h)),
    "a weighted sum": lambda layers, h: sum(
        w[:, None] * layer(h) for w, layer in zip(h[:, :3].softmax(-1).unbind(1), layers, strict=True)
    ),
    "positions by tensors": lambda layers, h: layers[0](h)[h.sum(1).argmax()] + layers[0](h),
    "made numbers": lambda layers, h: layers[int(torch.arange(3).max())](h),
}


@pytest.mark.parametrize("name", CHOOSES)
def test_a_report_names_the_code_that_chooses_by_values(name: str) -> None:
    graph = trace(nn.Sequential(Chooses(CHOOSES[name])), torch.randn(2, 5))
    assert graph.provenance.choosing == ("0",)
    assert TITLE in graph.report()
    assert SymmetryGraph.from_json(graph.to_json()).provenance == graph.provenance


@pytest.mark.parametrize("name", DOES_NOT)
def test_nothing_is_told_of_code_that_chooses_by_shapes_or_not_at_all(name: str) -> None:
    graph = trace(Chooses(DOES_NOT[name]), torch.randn(2, 5))
    assert graph.provenance.choosing == ()
    assert TITLE not in graph.report()


class Defaults(nn.Module):
    """A width, a share or a depth that is the default of an argument."""

    def __init__(self, cut: Callable[[nn.Module, Tensor, float], Tensor], default: float, named: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inp, self.a, self.norm, self.out = nn.Linear(5, 4), nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 2)
        self.cut = cut
        if named:
            self.forward = lambda x, *, width=default: self._run(x, width)
        else:
            self.forward = lambda x, width=default: self._run(x, width)

    def _run(self, x: Tensor, width: float) -> Tensor:
        return self.cut(self, self.inp(x).tanh(), width)


def by_weights(m: Any, h: Tensor, width: float) -> Tensor:
    n = int(width * 8) if width <= 1 else int(width)
    h = F.linear(h, m.a.weight[:n], m.a.bias[:n]).tanh()
    return F.linear(h, m.out.weight[:, :n], m.out.bias)


def by_units(m: Any, h: Tensor, width: float) -> Tensor:
    n = int(width * 8) if width <= 1 else int(width)
    return F.linear(m.norm(m.a(h))[..., :n], m.out.weight[:, :n], m.out.bias)


@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize("cut", [by_weights, by_units])
@pytest.mark.parametrize("default", [8, 1.0, 5, 0.5])
def test_widths_that_the_call_leaves_out_or_gives_are_cut_at_others_too(
    cut: Callable[[nn.Module, Tensor, float], Tensor], default: float, named: bool
) -> None:
    model, x = Defaults(cut, default, named), torch.randn(3, 5)
    widths = (0.25, 0.5, 0.75, 1.0) if isinstance(default, float) else (2, 5, 8)
    for graph in (trace(model, x), trace(model, x, width=default)):
        assert sorted(sizes(graph).values()) == [4]
        spec = graph.spec()
        for width in widths:
            keeps_function(Defaults(cut, width, named), graph, (x,))
        assert spec["a.weight"].split()[0] == "." and spec["out.weight"] == ". ."


def test_defaults_that_cut_nothing_fix_nothing() -> None:
    model = Defaults(lambda m, h, width: m.out(m.a(h).tanh() * width), 1.0, named=False)
    assert sorted(sizes(trace(model, torch.randn(3, 5))).values()) == [4, 8]
