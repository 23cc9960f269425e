"""Loops of which a run shows one step: what a state of zeros meets stays, and is told."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from alignkit.tracing import trace
from helpers.trace_checks import keeps_function


def steps(count: int, *shape: int) -> Tensor:
    shape = shape or (5,)
    return torch.arange(2.0 * count * torch.Size(shape).numel()).sin().reshape(2, count, *shape)


class Highway(nn.Module):
    """A recurrent highway cell: two products with the state, which starts from zeros."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inputs, self.state, self.gate = nn.Linear(5, 6), nn.Linear(6, 6, bias=False), nn.Linear(6, 6)
        self.out = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = x.new_zeros(len(x), 6)
        for step in x.unbind(1):
            gate = self.gate(h).sigmoid()
            h = gate * torch.tanh(self.inputs(step) + self.state(h)) + (1 - gate) * h
        return self.out(h)


class Joined(nn.Module):
    """Input and state laid end to end, the state in front."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.cell, self.out = nn.Linear(6 + 5, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.zeros(len(x), 6, dtype=x.dtype)
        for step in x.unbind(1):
            h = self.cell(torch.cat([h, step], 1)).tanh()
        return self.out(h)


class JoinedMaps(nn.Module):
    """A convolutional state that starts from ones, beside the image."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.cell, self.out = nn.Conv2d(2 + 6, 6, 3, padding=1), nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.ones(len(x), 6, *x.shape[3:], dtype=x.dtype)
        for step in x.unbind(1):
            h = self.cell(torch.cat([step, h], 1)).relu()
        return self.out(h)


class Transposed(nn.Module):
    """Columns of states, multiplied from the left."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.out = (nn.Parameter(torch.randn(*size)) for size in ((6, 6), (6, 5), (2, 6)))

    def forward(self, x: Tensor) -> Tensor:
        h = torch.zeros(6, len(x), dtype=x.dtype)
        for step in x.unbind(1):
            h = torch.tanh(self.a @ h + self.b @ step.T)
        return (self.out @ h).T


LOOPS: dict[str, tuple[type[nn.Module], tuple[int, ...], set[str], dict[str, str]]] = {
    "two products": (
        Highway,
        (5,),
        {"state.weight, axis 1: 0 to 5", "gate.weight, axis 1: 0 to 5"},
        {"inputs.weight": "h .", "inputs.bias": "h", "state.weight": "h h", "gate.weight": "h h", "out.weight": ". h"},
    ),
    "joined": (
        Joined,
        (5,),
        {"cell.weight, axis 1: 0 to 5"},
        {"cell.weight": "h h+5", "cell.bias": "h", "out.weight": ". h"},
    ),
    "joined maps": (
        JoinedMaps,
        (2, 4, 4),
        {"cell.weight, axis 1: 2 to 7"},
        {"cell.weight": "h 2+h . .", "cell.bias": "h", "out.weight": ". h . ."},
    ),
    "from the left": (Transposed, (5,), {"a, axis 1: 0 to 5"}, {"a": "h h", "b": "h .", "out": ". h"}),
}


@pytest.mark.parametrize("name", LOOPS)
def test_one_step_frees_nothing_that_two_tie_and_says_so(name: str) -> None:
    build, shape, told, _ = LOOPS[name]
    model = build()
    graph = trace(model, steps(1, *shape))
    assert not graph.groups
    assert {str(positions) for positions in graph.provenance.single_step} == told
    for line in told:
        assert line in graph.report()
    assert "trace two steps" in graph.report()


@pytest.mark.parametrize("name", LOOPS)
def test_two_steps_find_the_units(name: str) -> None:
    build, shape, _, expected = LOOPS[name]
    model = build()
    graph = trace(model, steps(2, *shape))
    assert not graph.provenance.single_step
    (units,) = graph.groups
    assert graph.groups[units].size == 6
    assert {key: graph.spec()[key] for key in expected} == {k: v.replace("h", units) for k, v in expected.items()}
    keeps_function(model, graph, *[(steps(count, *shape),) for count in (1, 2, 3, 5)])


def test_a_constant_beside_other_things_pins_nothing_more() -> None:
    class Start(nn.Module):
        """A first layer that meets ones only, in a model that also has other hidden units."""

        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.start, self.mix = nn.Linear(4, 6), nn.Linear(6, 7)
            self.inputs, self.out = nn.Linear(5, 7), nn.Linear(7, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(torch.tanh(self.mix(self.start(x.new_ones(1, 4)).exp()) + self.inputs(x)))

    model = Start()
    graph = trace(model, steps(1)[:, 0])
    assert [group.size for group in graph.groups.values()] == [7]
    assert [str(positions) for positions in graph.provenance.single_step] == ["start.weight, axis 1: 0 to 3"]
    keeps_function(model, graph, (steps(1)[:, 0],))


@pytest.mark.parametrize("layer", [nn.RNN, nn.LSTM])
def test_layers_of_torch_need_one_step(layer: type[nn.RNNBase]) -> None:
    class Reads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.layer, self.out = layer(5, 6, batch_first=True), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.layer(x)[0])

    model = Reads()
    graph = trace(model, steps(1))
    assert [group.size for group in graph.groups.values()] == [6]
    assert not graph.provenance.single_step
    keeps_function(model, graph, (steps(1),), (steps(3),))
