"""Signs of which some mentions of a unit are free and others not: recurrent cells, norms with gains that stay."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import product

import pytest
import torch
from torch import Tensor, nn

import alignkit
from alignkit import Alignment, SymmetryGraph
from alignkit.graph.proof.perturb import perturbed
from alignkit.graph.rewrites import AxisOf
from alignkit.tracing.reading.sign_families import add_sign_families
from helpers.gauge_nets import Attention, Block, Decoder, GatedMLP, RMSNorm

STEPS = torch.randn(5, 4, 3, generator=torch.Generator().manual_seed(2))


class Layers(nn.Module):
    """A recurrent layer of torch, whose states a head reads."""

    def __init__(self, layer: type[nn.RNNBase], **options: bool | int) -> None:
        super().__init__()
        self.cells = layer(3, 4, batch_first=True, **options)
        width = self.cells.weight_hh_l0.shape[1] * (1 + self.cells.bidirectional)
        self.head = nn.Linear(width, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.cells(x)[0])


class Cell(nn.Module):
    """A cell of torch in a loop."""

    def __init__(self, cell: type[nn.RNNCellBase]) -> None:
        super().__init__()
        self.cell, self.head = cell(3, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        state = None
        for step in x.unbind(1):
            state = self.cell(step, state)
        return self.head(state[0] if isinstance(state, tuple) else state)


class HandLSTM(nn.Module):
    """An LSTM with a layer for each gate."""

    def __init__(self) -> None:
        super().__init__()
        self.i, self.f, self.g, self.o = (nn.Linear(3 + 4, 4) for _ in range(4))
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = c = torch.zeros(len(x), 4, dtype=x.dtype)
        for step in x.unbind(1):
            seen = torch.cat([step, h], -1)
            c = self.f(seen).sigmoid() * c + self.i(seen).sigmoid() * self.g(seen).tanh()
            h = self.o(seen).sigmoid() * c.tanh()
        return self.head(h)


class HandGRU(nn.Module):
    """A GRU whose reset gate acts before the product."""

    def __init__(self) -> None:
        super().__init__()
        self.z, self.r, self.n = (nn.Linear(3 + 4, 4) for _ in range(3))
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.zeros(len(x), 4, dtype=x.dtype)
        for step in x.unbind(1):
            seen = torch.cat([step, h], -1)
            z, r = self.z(seen).sigmoid(), self.r(seen).sigmoid()
            h = (1 - z) * self.n(torch.cat([step, r * h], -1)).tanh() + z * h
        return self.head(h)


def normed() -> nn.Module:
    layers = nn.Conv1d(3, 4, 1), nn.BatchNorm1d(4), nn.Tanh(), nn.Flatten(), nn.Linear(16, 2)
    return nn.Sequential(Transposed(), *layers)


class Transposed(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mT


RECURRENT: Mapping[str, Callable[[], nn.Module]] = {
    "lstm": lambda: Layers(nn.LSTM),
    "two layers": lambda: Layers(nn.LSTM, num_layers=2),
    "both ways": lambda: Layers(nn.LSTM, bidirectional=True),
    "no biases": lambda: Layers(nn.LSTM, bias=False),
    "gru": lambda: Layers(nn.GRU),
    "gru, two layers": lambda: Layers(nn.GRU, num_layers=2),
    "lstm cell": lambda: Cell(nn.LSTMCell),
    "gru cell": lambda: Cell(nn.GRUCell),
    "lstm by hand": HandLSTM,
    "gru by hand": HandGRU,
}
NETS = {**RECURRENT, "batch norm": normed}


def network(name: str) -> tuple[nn.Module, SymmetryGraph]:
    torch.manual_seed(0)
    model = perturbed(NETS[name]()).double().eval()
    return model, alignkit.trace(model, STEPS[:2].double(), symmetries="all")


def answer(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return model(STEPS.double())


@pytest.mark.parametrize("name", NETS)
def test_units_own_a_sign(name: str) -> None:
    model, graph = network(name)
    plain = alignkit.trace(model, STEPS[:2].double())
    signs = [group for group in graph.groups if group.endswith(".sign")]
    assert {graph.groups[sign].parent for sign in signs} == set(plain.groups)
    assert all(graph.groups[sign].kind == "signed" and graph.groups[sign].size == 1 for sign in signs)
    assert graph.order == plain.order * 2 ** sum(graph.instances(sign) for sign in signs)
    moved = Alignment.random(graph, 3)
    torch.testing.assert_close(answer(moved.apply(model)), answer(model), rtol=0, atol=1e-12)
    assert any(int((moved.elements[sign] < 0).sum()) for sign in signs)
    assert SymmetryGraph.from_spec(graph.spec(), model) == SymmetryGraph(graph.tensors, graph.groups)
    assert SymmetryGraph.from_json(graph.to_json()) == graph
    assert f"-{signs[0]}" in graph.report()


def test_rows_of_other_gates_have_no_sign() -> None:
    _, graph = network("lstm")
    rows = "cells.l0+cells.l0+(cells.l0 -cells.l0.sign[cells.l0])+cells.l0"
    assert graph.tensors["cells.weight_hh_l0"].notation() == f"{rows} (cells.l0 -cells.l0.sign[cells.l0])"
    assert graph.tensors["cells.bias_ih_l0"].notation() == rows
    assert graph.tensors["head.weight"].notation() == ". (cells.l0 -cells.l0.sign[cells.l0])"


@pytest.mark.parametrize(("name", "gates"), [("lstm", 4), ("gru", 3), ("lstm cell", 4), ("gru cell", 3)])
def test_no_other_signs_are_free(name: str, gates: int) -> None:
    """All ways to change the signs of one unit, by gate and by reader, are tried. What changes nothing is found."""
    model, graph = network(name)
    size, unit, wanted = 4, 1, answer(model)
    recurrent = [n for n, _ in model.named_parameters() if "_hh" in n and "weight" in n]

    def flipped(signs: tuple[int, ...]) -> nn.Module:
        other = perturbed(model, 0)
        other.load_state_dict(model.state_dict())
        with torch.no_grad():
            for key, tensor in other.named_parameters():
                if key.startswith("cell"):
                    for gate in range(gates):
                        tensor[gate * size + unit] *= signs[gate]
            for key in recurrent:
                other.get_parameter(key)[:, unit] *= signs[gates]
            other.get_parameter("head.weight")[:, unit] *= signs[gates + 1]
        return other

    exact = [
        signs
        for signs in product((1, -1), repeat=gates + 2)
        if float((answer(flipped(signs)) - wanted).abs().max()) < 1e-10
    ]
    element = dict(Alignment.identity(graph).elements)
    (sign,) = (group for group in graph.groups if group.endswith(".sign"))
    element[sign][unit] = ~element[sign][unit]
    found = Alignment(graph, element).apply(model)
    assert len(exact) == 2  # none at all, and the one that is found
    for key, tensor in flipped(exact[1]).state_dict().items():
        torch.testing.assert_close(found.state_dict()[key], tensor, rtol=0, atol=0)


@pytest.mark.parametrize("solver", ["weight_matching", "frank_wolfe", "activation_matching"])
@pytest.mark.parametrize("name", NETS)
def test_a_planted_element_is_undone(name: str, solver: str) -> None:
    model, graph = network(name)
    planted = Alignment.random(graph, 7)
    moved = planted.apply(model)
    data = {"task": alignkit.Task(model, (STEPS.double(), answer(model)), "mse")} if "activation" in solver else {}
    solution = alignkit.solve(graph, model, moved, solver=solver, **data)
    assert solution.objective_after <= 1e-18 * max(1.0, solution.objective_before)
    assert solution.alignment == planted.inverse()


def test_distance_names_signs() -> None:
    model, graph = network("lstm")
    moved = Alignment.random(graph, 7).apply(model)
    assert alignkit.distance(graph, model, moved).verdict == "the same up to permutation and signs"
    plain = alignkit.trace(model, STEPS[:2].double())
    assert not alignkit.distance(plain, model, moved).same


def test_a_stream_whose_gains_stay_has_signs() -> None:
    torch.manual_seed(0)
    model = Decoder(Block(RMSNorm, Attention(), GatedMLP()), RMSNorm(6), tied=True)
    ids = torch.randint(7, (1, 5))
    graph = alignkit.trace(model, ids, symmetries="all", keep_tied=True)
    assert graph.groups["tokens.sign"].parent == "tokens"
    gains = [name for name, node in graph.tensors.items() if "norm" in name and node.groups]
    assert gains and all(graph.tensors[name].notation() == "tokens" for name in gains)
    folded = alignkit.fold(perturbed(model), graph).network
    graph.verify(folded, ids)


@pytest.mark.parametrize(
    ("layout", "place", "written"),
    [
        ("h+h", AxisOf("w", 0, 0, 3), "(h -h.sign[h])+h"),
        ("h+h", AxisOf("w", 0), "(h -h.sign[h])+(h -h.sign[h])"),
        ("2+(h 4)", AxisOf("w", 0, 2), "2+(h -h.sign[h] 4)"),
        ("(2 (h+1))", AxisOf("w", 0, 0, 3, 4), "(2 ((h -h.sign[h])+1))"),
        ("(5 h)", AxisOf("w", 0, 0, 3, 3), "(5 h -h.sign[h])"),
        ("(5 h)", AxisOf("w", 0, 0, 3), "(5 h)"),  # one of five copies: it has no notation
        ("(2 (h+1))", AxisOf("w", 0, 0, 3), "(2 (h+1))"),
    ],
)
def test_signs_are_written_where_they_are(layout: str, place: AxisOf, written: str) -> None:
    size = {"h+h": 6, "2+(h 4)": 14, "(2 (h+1))": 8, "(5 h)": 15}[layout]
    layouts, sizes = add_sign_families({"w": layout}, {"h": 3}, {"w": (size,)}, {"h": [place]})
    assert layouts["w"] == written
    assert ("h.sign" in sizes) == ("sign" in written)
