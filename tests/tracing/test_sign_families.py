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
    layouts, sizes, unwritten = add_sign_families({"w": layout}, {"h": 3}, {"w": (size,)}, {"h": [[place]]})
    assert layouts["w"] == written
    assert ("h.sign" in sizes) == ("sign" in written) == (not unwritten)


def test_a_sign_has_a_name_of_its_own() -> None:
    layouts = {"w": "h", "h.sign.weight": "h"}
    signs = {"h": [[AxisOf("w", 0)], [AxisOf("w", 0), AxisOf("h.sign.weight", 0)]]}
    written, sizes, _ = add_sign_families(layouts, {"h": 3, "h.sign2": 4}, dict.fromkeys(layouts, (3,)), signs)
    assert written["w"] == "(h -h.sign.2[h] -h.sign2.2[h])"
    assert written["h.sign.weight"] == "(h -h.sign2.2[h])"
    assert sizes["h.sign.2"] == sizes["h.sign2.2"] == 1


class Product(nn.Module):
    """Units that are products of odd functions, and of what a gate lets through."""

    def __init__(self, factors: int, gates: int = 0, readers: int = 1) -> None:
        super().__init__()
        self.factors, self.gates = (nn.ModuleList(nn.Linear(3, 4) for _ in range(n)) for n in (factors, gates))
        self.readers = nn.ModuleList(nn.Linear(4, 2) for _ in range(readers))

    def forward(self, x: Tensor) -> Tensor:
        units = torch.stack([*(f(x).tanh() for f in self.factors), *(g(x).sigmoid() for g in self.gates)]).prod(0)
        return torch.cat([reader(units) for reader in self.readers], -1)


class Written(Product):
    """The same, multiplied one by one."""

    def forward(self, x: Tensor) -> Tensor:
        units = torch.ones(4, dtype=x.dtype)
        for factor in self.factors:
            units = units * factor(x).tanh()
        for gate in self.gates:
            units = units * gate(x).sigmoid()
        return torch.cat([reader(units) for reader in self.readers], -1)


def in_order(results: Tensor) -> Tensor:
    """Return a sum in which each has a share of its own."""
    return sum((i + 1) * result for i, result in enumerate(results))


class Stacked(nn.Module):
    """Units of experts in one tensor, with an order that matters and signs of some of their mentions."""

    def __init__(self, factors: int, *, alone: bool = False, places: int = 3) -> None:
        super().__init__()
        self.up = nn.ParameterList(torch.randn(places, 3, 4) for _ in range(factors))
        self.gate = nn.Parameter(torch.randn(places, 3, 4))
        self.down = nn.Parameter(torch.randn(places, 4, 2))
        self.probe = nn.Linear(4, 2) if alone else None

    def forward(self, x: Tensor) -> Tensor:
        seen = x.expand(len(self.gate), *x.shape)
        units = torch.bmm(seen, self.gate).sigmoid()
        for up in self.up:
            units = units * torch.bmm(seen, up).tanh()
        result = in_order(torch.bmm(units, self.down))
        return result if self.probe is None else result + self.probe(units[1])


OWNERS: Mapping[str, tuple[Callable[[], nn.Module], int]] = {
    "two factors": (lambda: Written(2), 2),
    "three factors": (lambda: Written(3), 3),
    "two factors and a gate": (lambda: Written(2, 1), 2),
    "two readers": (lambda: Written(2, 1, 2), 2),
    "stack": (lambda: Stacked(1), 1),
    "stack, two factors": (lambda: Stacked(2), 2),
    "stack, read alone": (lambda: Stacked(1, alone=True), 1),
    "stack, two factors, read alone": (lambda: Stacked(2, alone=True), 2),
}
"""Networks, and how many signs each of their units has."""
ROWS = torch.randn(40, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def owners(name: str) -> tuple[nn.Module, SymmetryGraph]:
    torch.manual_seed(0)
    model = perturbed(OWNERS[name][0]()).double().eval()
    return model, alignkit.trace(model, ROWS[:2], symmetries="all")


@pytest.mark.parametrize("name", OWNERS)
def test_each_unit_owns_all_of_its_signs(name: str) -> None:
    model, graph = owners(name)
    signs = {group for group in graph.groups if graph.groups[group].kind == "signed"}
    units = {graph.groups[sign].parent for sign in signs}
    assert {sum(graph.groups[sign].parent == unit for sign in signs) for unit in units} == {OWNERS[name][1]}
    assert units == {limit.group for limit in graph.provenance.limits} & {*graph.groups}
    with torch.no_grad():
        for seed in range(3):
            torch.testing.assert_close(Alignment.random(graph, seed).apply(model)(ROWS), model(ROWS))
    assert SymmetryGraph.from_spec(graph.spec(), model) == SymmetryGraph(graph.tensors, graph.groups)
    assert SymmetryGraph.from_json(graph.to_json()) == graph
    graph.verify(model, ROWS[:2])


@pytest.mark.parametrize("name", [name for name in OWNERS if "stack" not in name])
def test_all_signs_of_a_product_are_found(name: str) -> None:
    """All ways to change the signs of one unit are tried: as many change nothing as elements of its families say."""
    model, _ = owners(name)
    weights = dict(model.named_parameters())
    places = [n for n in weights if n.startswith(("factors", "gates")) and "weight" in n]
    readers = [n for n in weights if n.startswith("readers") and "weight" in n]
    wanted, exact = model(ROWS).detach(), 0
    for signs in product((1, -1), repeat=len(places) + len(readers)):
        other = perturbed(model, 0)
        other.load_state_dict(model.state_dict())
        with torch.no_grad():
            for place, sign in zip(places + readers, signs, strict=True):
                other.get_parameter(place)[(slice(None), 1) if place in readers else (1,)] *= sign
                if place not in readers:
                    other.get_parameter(place.replace("weight", "bias"))[1] *= sign
            exact += float((other(ROWS) - wanted).abs().max()) < 1e-10
    assert exact == 2 ** OWNERS[name][1]


@pytest.mark.parametrize("solver", ["weight_matching", "frank_wolfe", "sinkhorn", "activation_matching"])
@pytest.mark.parametrize("name", OWNERS)
def test_several_planted_signs_are_undone(name: str, solver: str) -> None:
    model, graph = owners(name)
    planted = Alignment.random(graph, 7)
    task = alignkit.Task(model, [(ROWS, model(ROWS).detach())], "mse") if solver == "activation_matching" else None
    solution = alignkit.solve(graph, model, planted.apply(model), solver=solver, task=task)
    assert solution.objective_after <= 1e-18 * max(1.0, solution.objective_before)
    assert solution.alignment == planted.inverse()


class Unlike(Stacked):
    """A stack of which one place has a reader of its own behind a function that is not odd."""

    def forward(self, x: Tensor) -> Tensor:
        seen = x.expand(len(self.gate), *x.shape)
        units = torch.bmm(seen, self.gate).sigmoid() * torch.bmm(seen, self.up[0]).tanh()
        return in_order(torch.bmm(units, self.down)) + self.probe(units[1].relu())


def test_places_of_a_stack_that_differ_have_no_signs_and_the_report_says_so() -> None:
    torch.manual_seed(0)
    model = perturbed(Unlike(1, alone=True)).double()
    graph = alignkit.trace(model, ROWS[:2], symmetries="all")
    assert not any(group.kind == "signed" for group in graph.groups.values())
    assert "the groups of a stack have one kind" in graph.report()
    graph.verify(model, ROWS[:2])
