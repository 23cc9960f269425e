"""Derivatives inside a model, fake quantisation, packed sequences and pooling along one of two dimensions."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from alignkit.tracing import trace
from helpers.trace_checks import keeps_function, layouts, sizes
from helpers.trace_models import Parts

ROWS = [(torch.arange(3.0 * n).square().sin().reshape(n, 3),) for n in (4, 6)]
FREE = {"a.weight": "a .", "a.bias": "a", "o.weight": ". a"}


def by_autograd(energy: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        (slope,) = torch.autograd.grad(energy(x).sum(), x, create_graph=True)
    return slope.detach()


def by_func(energy: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    return torch.func.grad(lambda y: energy(y).sum())(x)


@pytest.mark.parametrize("differentiate", [by_autograd, by_func])
@pytest.mark.parametrize(
    "activation", [nn.Tanh, nn.Softplus, nn.SiLU, nn.GELU, nn.ELU, nn.ReLU, nn.Mish, nn.Softmax, nn.Sigmoid]
)
def test_hidden_units_of_an_energy_move_where_its_slope_is_the_output(
    activation: type[nn.Module], differentiate: Callable[[Callable[[Tensor], Tensor], Tensor], Tensor]
) -> None:
    torch.manual_seed(0)
    act = activation(-1) if activation is nn.Softmax else activation()
    energy = nn.Sequential(nn.Linear(3, 6), act, nn.LayerNorm(6), nn.Linear(6, 5), act, nn.Linear(5, 1))
    model = Parts(lambda net, x: differentiate(net.energy, x), energy=energy)
    graph = trace(model, *ROWS[0])
    one, two = graph.groups
    assert layouts(graph) == {
        "energy.0.weight": f"{one} .",
        "energy.0.bias": one,
        "energy.2.weight": one,
        "energy.2.bias": one,
        "energy.3.weight": f"{two} {one}",
        "energy.3.bias": two,
        "energy.5.weight": f". {two}",
    }
    assert sorted(sizes(graph).values()) == [5, 6]
    keeps_function(model, graph, *ROWS)


QUANTISED: dict[str, Callable[[Tensor], Tensor]] = {
    "one grid": lambda h: torch.fake_quantize_per_tensor_affine(h, 0.1, 3, -128, 127),
    "a grid in tensors": lambda h: torch.fake_quantize_per_tensor_affine(
        h.float(), torch.tensor(0.1), torch.tensor(3, dtype=torch.int32), -128, 127
    ).to(h.dtype),
    "a grid for each row": lambda h: torch.fake_quantize_per_channel_affine(
        h.float(), torch.linspace(0.1, 0.2, len(h)), torch.zeros(len(h), dtype=torch.int32), 0, -128, 127
    ).to(h.dtype),
}


@pytest.mark.parametrize("name", QUANTISED)
def test_fake_quantisation_does_not_tell_units_apart(name: str) -> None:
    torch.manual_seed(0)
    model = Parts(lambda net, x: net.o(QUANTISED[name](net.a(x))), a=nn.Linear(3, 6), o=nn.Linear(6, 2))
    graph = trace(model, *ROWS[0])
    assert layouts(graph) == FREE
    keeps_function(model, graph, *ROWS)


@pytest.mark.parametrize("kind", [nn.RNN, nn.LSTM, nn.GRU])
@pytest.mark.parametrize(("layers", "both"), [(1, False), (2, True)])
def test_units_of_packed_sequences_move(kind: type[nn.RNNBase], layers: int, both: bool) -> None:
    def run(net: Parts, x: Tensor, lengths: Tensor) -> Tensor:
        packed = pack_padded_sequence(net.enter(x), lengths, batch_first=True, enforce_sorted=False)
        states, _ = pad_packed_sequence(net.cell(packed)[0], batch_first=True, padding_value=0.5)
        return net.leave(states).sum(1)

    torch.manual_seed(0)
    cell = kind(4, 5, num_layers=layers, bidirectional=both, batch_first=True)
    model = Parts(run, enter=nn.Linear(3, 4), cell=cell, leave=nn.Linear(5 * (1 + both), 2))
    examples = [
        (torch.arange(3.0 * b * t).square().sin().reshape(b, t, 3), torch.tensor(lengths))
        for b, t, lengths in ((3, 4, [2, 4, 1]), (2, 6, [6, 3]))
    ]
    graph = trace(model, *examples[0])
    assert sorted(sizes(graph).values()) == [4] + [5] * layers * (1 + both)
    assert layouts(graph)["enter.weight"] == "enter ."
    gates = {nn.RNN: 1, nn.LSTM: 4, nn.GRU: 3}[kind]
    for layer in range(layers):
        for end in ("", "_reverse")[: 1 + both]:
            rows, state = layouts(graph)[f"cell.weight_hh_l{layer}{end}"].split()
            assert rows == "+".join([state] * gates)
    keeps_function(model, graph, *examples)


POOLED: dict[str, Callable[[Tensor], Tensor]] = {
    "avg_pool2d": lambda h: F.avg_pool2d(h[:, None], (2, 1))[:, 0],
    "max_pool2d": lambda h: F.max_pool2d(h[:, None], (3, 1), (1, 1), (1, 0))[:, 0],
    "adaptive": lambda h: F.adaptive_max_pool2d(h[:, None], (2, 6))[:, 0],
    "reflection": lambda h: F.pad(h[:, None], (0, 0, 1, 2), "reflect")[:, 0],
    "replication": lambda h: F.pad(h[:, None, None], (0, 0, 1, 1, 0, 0), "replicate")[:, 0, 0],
}


@pytest.mark.parametrize("name", POOLED)
def test_a_dimension_that_pooling_leaves_alone_passes_through(name: str) -> None:
    torch.manual_seed(0)
    model = Parts(lambda net, x: net.o(POOLED[name](net.a(x))), a=nn.Linear(3, 6), o=nn.Linear(6, 2))
    examples = [(torch.arange(3.0 * b * t).sin().reshape(b, t, 3),) for b, t in ((1, 6), (2, 9))]
    graph = trace(model, *examples[0])
    assert layouts(graph) == FREE
    keeps_function(model, graph, *examples)


def test_pooling_over_units_keeps_them() -> None:
    torch.manual_seed(0)
    model = Parts(
        lambda net, x: net.o(F.avg_pool2d(net.a(x)[:, None], (1, 2))[:, 0]), a=nn.Linear(3, 6), o=nn.Linear(3, 2)
    )
    graph = trace(model, torch.arange(18.0).sin().reshape(1, 6, 3))
    assert not layouts(graph)
