"""What a trace could not free is told: the axis, the op, the module."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from alignkit.tracing import trace
from helpers.trace_models import Rotary

X = torch.linspace(-1, 1, 10).reshape(2, 5)


class Picks(nn.Module):
    """Adds units up by position."""

    def forward(self, x: Tensor) -> Tensor:
        return x.cumsum(1)


class Spare(nn.Module):
    """Has a layer that never runs, and one whose result is thrown away."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(5, 8), nn.Linear(8, 3)
        self.spare, self.thrown = nn.Linear(4, 4), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        self.thrown(h)
        return self.b(h)


def pins(model: nn.Module, x: Tensor) -> dict[tuple[str, int], tuple[str, str]]:
    return {(p.tensor, p.axis): (p.op, p.where) for p in trace(model, x).provenance.pinned}


def test_inputs_and_outputs_pin_the_ends() -> None:
    pinned = pins(nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3)), X)
    assert pinned == {
        ("0.weight", 1): ("aten.addmm", "0"),
        ("2.weight", 0): ("output", ""),
        ("2.bias", 0): ("output", ""),
    }


def test_an_op_that_tells_positions_apart_is_named_with_its_module() -> None:
    pinned = pins(nn.Sequential(nn.Linear(5, 8), Picks(), nn.Linear(8, 3)), X)
    assert pinned["0.weight", 0] == ("aten.cumsum", "1")


UNSEEN = " (what it writes is read through a view of other parts)"
CULPRITS: dict[str, tuple[Callable[[Tensor], Tensor], str, str]] = {
    "an op without a rule": (torch.special.bessel_j0, "special_bessel_j0", ""),
    "a write of zeros": (lambda h: [h, h.as_strided((3,), (7,)).zero_()][0], "zero_", UNSEEN),
    "a write over rows": (lambda h: [h, h.view(4, 4)[1:3].fill_(2)][0], "fill_", UNSEEN),
}


@pytest.mark.parametrize("name", CULPRITS)
def test_what_meets_a_fixed_tensor_is_pinned_by_what_fixed_it(name: str) -> None:
    read, op, reason = CULPRITS[name]

    class Reads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(5, 8), nn.Linear(8, 3), nn.Parameter(torch.randn(8))

        def forward(self, x: Tensor) -> Tensor:
            h = read(self.a(x))
            return self.b((torch.relu(h) * self.c).tanh() + 1)

    graph = trace(Reads(), X)
    pinned = {(pin.tensor, pin.axis): pin.op for pin in graph.provenance.pinned}
    assert pinned["b.weight", 1] == pinned["c", 0] == f"aten.{op}"
    assert graph.provenance.unknown_ops == (f"aten::{op}{reason}",)


def test_units_inside_rotary_heads_are_told_though_the_heads_move() -> None:
    torch.manual_seed(0)
    pinned = pins(Rotary(), torch.linspace(-1, 1, 30).reshape(1, 6, 5))
    assert pinned["q.weight", 0] == ("aten.mul", "")


def test_what_never_ran_is_unused_and_fixed() -> None:
    graph = trace(Spare(), X)
    assert graph.provenance.unused == ("spare.weight", "spare.bias", "thrown.weight", "thrown.bias")
    assert graph.spec()["spare.weight"] == ". ."
    assert list(graph.groups) == ["a"]


def test_the_report_says_all_of_it() -> None:
    text = trace(Spare(), X).report()
    assert "aten.addmm" in text
    assert "spare.weight" in text
