"""Scales of units that a tensor writes and reads at once: balanced to the least sum of squares, and undone."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.functional import leaky_relu

import alignkit
from alignkit import SymmetryGraph
from alignkit.graph import AxisOf, Balance
from alignkit.rewriting import WideWeights, balance_weights
from alignkit.rewriting.recurrent import READS, WRITES, recurrent_scales

UNITS = 5
POWERS = st.sampled_from([(WRITES, READS), (WRITES, WRITES), (READS, READS)])


class Layers(nn.Module):
    """Recurrent layers of torch that rectify; all their states are read."""

    def __init__(self, **options: bool | int) -> None:
        super().__init__()
        self.cells = nn.RNN(3, UNITS, nonlinearity="relu", batch_first=True, **options)
        self.head = nn.Linear(UNITS * (2 if options.get("bidirectional") else 1), 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.cells(x)[0])


class Loop(nn.Module):
    """One layer in a loop, from what another one writes: a cell written by hand, or a network of shared layers."""

    def __init__(self, step: Callable[[Loop, Tensor, Tensor], Tensor], convolve: bool = False) -> None:
        super().__init__()

        def layer(inputs: int, outputs: int) -> nn.Module:
            return nn.Conv1d(inputs, outputs, 3, padding=1) if convolve else nn.Linear(inputs, outputs)

        self.read, self.again, self.head = layer(3, UNITS), layer(UNITS, UNITS), layer(UNITS, 2)
        self.scale = nn.Parameter(torch.rand(1) + 0.5)
        self.step = step

    def forward(self, x: Tensor) -> Tensor:
        state = self.read(x).relu()
        for _ in range(3):
            state = self.step(self, state, x)
        return self.head(state)


class Paired(nn.Module):
    """Weights that only write the units on both of their axes, with a tied head, or only read them, in a form."""

    def __init__(self, tied: bool) -> None:
        super().__init__()
        self.tied = tied
        self.head, self.gate = nn.Linear(3, UNITS, bias=False), nn.Linear(UNITS, UNITS)
        self.shift, self.mix = nn.Linear(UNITS, UNITS), nn.Linear(UNITS, UNITS)

    def forward(self, x: Tensor) -> Tensor:
        units = self.head(x)
        if self.tied:
            return self.mix(units * self.gate(units).sigmoid() + self.shift(units)) @ self.head.weight
        units = units.relu()
        return (self.mix(units) * units).sum(-1) + self.gate(units).sigmoid().sum(-1)


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "one layer": (Layers, (4, 6, 3)),
    "two layers": (lambda: Layers(num_layers=2), (4, 6, 3)),
    "both ways": (lambda: Layers(bidirectional=True), (4, 6, 3)),
    "no bias": (lambda: Layers(bias=False), (4, 6, 3)),
    "by hand": (lambda: Loop(lambda s, h, x: (s.again(h) + s.read(x)).relu()), (8, 3)),
    "leaky": (lambda: Loop(lambda s, h, _: leaky_relu(s.again(h))), (8, 3)),
    "residual": (lambda: Loop(lambda s, h, _: h + s.again(h).relu()), (8, 3)),
    "scaled": (lambda: Loop(lambda s, h, _: (s.scale * s.again(h)).relu()), (8, 3)),
    "written twice": (lambda: Paired(tied=True), (8, 3)),
    "read twice": (lambda: Paired(tied=False), (8, 3)),
    "convolved": (lambda: Loop(lambda s, h, _: s.again(h).relu(), convolve=True), (4, 3, 7)),
}


def with_scales(model: nn.Module, graph: SymmetryGraph) -> nn.Module:
    """Return a copy of a network whose units have other scales, and what reads them the inverse of these."""
    generator = torch.Generator().manual_seed(5)
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert graph.balances
    for balance in graph.balances:
        size = graph.groups[balance.group].size
        scales = 10 ** (2 * torch.rand(size, generator=generator, dtype=torch.float64) - 1)
        for places, factor in ((balance.writes, scales), (balance.reads, 1 / scales)):
            for at in places:
                positions = list(at.positions({at.tensor: tuple(weights[at.tensor].shape)}))
                weights[at.tensor].movedim(at.axis, -1)[..., positions] *= factor
    moved = copy.deepcopy(model)
    moved.load_state_dict(weights)
    return moved


@pytest.mark.parametrize("name", MODELS)
def test_that_scales_of_recurrent_units_are_found_and_undone(name: str) -> None:
    build, shape = MODELS[name]
    torch.manual_seed(0)
    model, x = build().double(), torch.randn(shape, dtype=torch.float64)
    graph = alignkit.trace(model, x, symmetries="all")
    other = with_scales(model, graph)
    torch.testing.assert_close(other(x), model(x))
    assert not torch.allclose(other.head.weight, model.head.weight)
    distance = alignkit.distance(graph, model, alignkit.Alignment.random(graph, 3).apply(other))
    assert distance.same, distance.explain()
    folded = [alignkit.fold(network, graph).network for network in (model, other)]
    twice = alignkit.fold(folded[0], graph).network
    for first, second, again in zip(*(network.parameters() for network in (*folded, twice)), strict=True):
        torch.testing.assert_close(first, second, rtol=1e-9, atol=1e-11)
        torch.testing.assert_close(first, again, rtol=1e-9, atol=1e-11)


def test_that_scales_of_units_inside_heads_are_undone() -> None:
    generator = torch.Generator().manual_seed(0)
    sizes = {"first": (6, 3), "state": (6, 6), "each": (2, 3, 3), "last": (4, 6)}
    weights = {name: torch.randn(size, generator=generator, dtype=torch.float64) for name, size in sizes.items()}
    spec = {
        "first": "(heads d[heads]) .",
        "state": "(heads d[heads]) (heads d[heads])",
        "each": "heads d[heads] d[heads]",
        "last": ". (heads d[heads])",
    }
    places = [AxisOf("first", 0), AxisOf("state", 0), AxisOf("each", 1)], [AxisOf(n, 1) for n in ("last", "state")]
    balance = Balance("d", tuple(places[0]), (*places[1], AxisOf("each", 2)), "scaled")
    graph = SymmetryGraph.from_spec(spec, sizes, balances=(balance,))
    scales = torch.exp(torch.randn(6, generator=generator, dtype=torch.float64))
    inside = scales.view(2, 3)
    other = {
        "first": scales[:, None] * weights["first"],
        "state": scales[:, None] * weights["state"] / scales,
        "each": inside[:, :, None] * weights["each"] / inside[:, None],
        "last": weights["last"] / scales,
    }

    def computed(tensors: dict[str, Tensor]) -> Tensor:
        step = tensors["state"] + torch.block_diag(*tensors["each"])
        return tensors["last"] @ step @ step @ tensors["first"]

    balanced = []
    for tensors in (weights, other):
        wide = WideWeights(tensors)
        balance_weights(wide, graph)
        balanced.append(wide.rounded())
        torch.testing.assert_close(computed(balanced[-1]), computed(weights))
    torch.testing.assert_close(*balanced)
    assert not torch.allclose(balanced[0]["state"], weights["state"])


@given(seed=st.integers(0, 10_000), units=st.integers(1, 7), share=st.floats(0, 1), powers=st.sets(POWERS))
def test_that_scales_make_the_sum_of_squares_the_least(
    seed: int, units: int, share: float, powers: set[tuple[int, int]]
) -> None:
    generator = torch.Generator().manual_seed(seed)

    def drawn(*sizes: int) -> Tensor:
        values = 10 ** (4 * torch.rand(sizes, generator=generator, dtype=torch.float64) - 2)
        return torch.where(torch.rand(sizes, generator=generator) < share, 0.0, values)

    written, read, between = drawn(units), drawn(units), {each: drawn(units, units) for each in powers}
    scales, empty = recurrent_scales(written, read, between)
    used = scales > 0
    assert empty == int((~used).sum())
    assert not bool((written > 0)[~used].logical_and((read > 0)[~used]).any())
    inverse = torch.where(used, 1 / torch.where(used, scales, 1.0), 0.0)
    by_power = {WRITES: scales.square(), READS: inverse.square()}
    writes, reads = written * by_power[WRITES], read * by_power[READS]
    for (row, column), squares in between.items():
        scaled = by_power[row][:, None] * squares * by_power[column]
        for power, sums in ((row, scaled.sum(1)), (column, scaled.sum(0))):
            writes, reads = (writes + sums, reads) if power == WRITES else (writes, reads + sums)
    torch.testing.assert_close(writes, reads, rtol=1e-8, atol=1e-10)
