"""Phases of sine units: wrapped without a change of the function, and then planted moves are found."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from alignkit import Alignment, solve, trace
from alignkit.errors import FoldError
from alignkit.rewriting import wrap_phases
from alignkit.zoo.modules import Sine


def siren(widths, frequency, seed=0, activation=None):
    torch.manual_seed(seed)
    layers, before = [], 2
    for width in widths:
        layers += [nn.Linear(before, width), activation or Sine(frequency)]
        before = width
    model = nn.Sequential(*layers, nn.Linear(before, 3))
    for layer in model[::2]:
        layer.weight.data /= 1 if frequency == 1 else frequency**0.5
    return model


def moved_by_half_periods(model, frequency, seed=0):
    """The same function with other phases: each bias by some half periods, what reads the unit by as many signs."""
    copy = siren([layer.out_features for layer in model[:-1:2]], frequency)
    copy.load_state_dict(model.state_dict())
    generator = torch.Generator().manual_seed(seed)
    for layer, reader in zip(copy[:-1:2], copy[2::2], strict=True):
        turns = torch.randint(-3, 4, layer.bias.shape, generator=generator)
        layer.bias.data += turns * math.pi / frequency
        reader.weight.data *= 1 - 2 * (turns % 2)
    return copy


@pytest.mark.parametrize("widths", [(8,), (10, 12), (6, 9, 7)])
@pytest.mark.parametrize("frequency", [1.0, 30.0])
def test_planted_phases_signs_and_orders_are_found(widths, frequency):
    model, x = siren(widths, frequency), torch.randn(64, 2)
    graph = trace(model, x, symmetries="all")
    assert {group.kind for group in graph.groups.values()} == {"signed"}
    other = Alignment.random(graph, 3).apply(moved_by_half_periods(model, frequency))
    assert torch.allclose(model(x), other(x), atol=1e-3)
    a, b = (wrap_phases(network, graph, x) for network in (model, other))
    assert torch.allclose(a(x), model(x), atol=1e-3)
    for name, tensor in a.state_dict().items():
        if name.endswith("bias") and name in {f"{2 * at}.bias" for at in range(len(widths))}:
            assert float(tensor.abs().max()) <= math.pi / 2 / frequency + 1e-6
    assert solve(graph, a, b, restarts=9).objective_after < 1e-6 * solve(graph, model, other).objective_before


@pytest.mark.parametrize("frequency", [-3.0, 0.5, 2 * math.pi])
def test_each_layer_may_have_its_own_frequency(frequency):
    model, x = siren((10, 12), 3.0), torch.randn(64, 2)
    model[3] = Sine(frequency)
    for layer in model[:-1:2]:
        layer.bias.data += torch.linspace(-9, 9, len(layer.bias))
    wrapped = wrap_phases(model, trace(model, x, symmetries="all"), x)
    assert torch.allclose(wrapped(x), model(x), atol=1e-4)
    for layer, own in ((wrapped[0], 3.0), (wrapped[2], abs(frequency))):
        assert float(layer.bias.detach().abs().max()) <= math.pi / 2 / own + 1e-6


def test_phases_follow_those_of_another_network():
    model, x = siren((10, 12), 3.0), torch.randn(64, 2)
    graph = trace(model, x, symmetries="all")
    other = moved_by_half_periods(model, 3.0, seed=5)
    again = wrap_phases(other, graph, x, like=model)
    for name, tensor in model.state_dict().items():
        assert torch.allclose(again.state_dict()[name], tensor, atol=1e-5)


@pytest.mark.parametrize("activation", [nn.Tanh(), nn.Softsign()])
@pytest.mark.parametrize("places", [(1, 3), (1,), (3,)])
def test_units_that_are_not_sines_are_refused(activation, places):
    model, x = siren((10, 12), 1.0), torch.randn(64, 2)
    for place in places:
        model[place] = activation
    with pytest.raises(FoldError, match="are no sines"):
        wrap_phases(model, trace(model, x, symmetries="all"), x)


def test_a_graph_without_signs_is_refused():
    model, x = siren((10, 12), 3.0), torch.randn(64, 2)
    with pytest.raises(FoldError, match='symmetries="all"'):
        wrap_phases(model, trace(model, x), x)
