"""Signs that may stand on either side of a space are chosen alike in copies that differ by them."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import alignkit
from alignkit.rewriting import module_with
from helpers.planted import copied
from helpers.random_layers import Activation, Channels, Combined, Gated, Modulation, Recurrent, Scale, Shift
from helpers.random_networks import RandomNetwork, draw_weights


def vector(width: int) -> nn.Parameter:
    return nn.Parameter(torch.empty(width))


def chain(*modules: nn.Module) -> RandomNetwork:
    steps = [(at, (at,)) for at in range(len(modules) - 1)]
    return RandomNetwork(modules[:-1], steps, {len(steps): modules[-1]})


def kernels(width: int) -> nn.Module:
    """One kernel for each channel."""
    return Channels(nn.Conv1d(width, width, 3, padding=1, groups=width, bias=False))


def gain_and_product() -> RandomNetwork:
    """A gain that stays, since a product reads the stream, beside a bias that another space flips."""
    parts = [nn.Linear(3, 4, bias=False), Scale(vector(4)), nn.RMSNorm(4, eps=1e-6), nn.Linear(4, 4)]
    parts += [Combined("product")]
    steps = [(0, (0,)), (1, (1,)), (2, (2,)), (3, (2,)), (4, (2, 4))]
    return RandomNetwork(parts, steps, {3: nn.Linear(4, 2), 5: nn.Linear(4, 2)})


def modulated_state() -> RandomNetwork:
    """Weights between units of a state whose signs are chosen, beside recurrent ones whose signs stay."""
    parts = [Recurrent(nn.RNN(3, 4, batch_first=True)), Scale(vector(4)), Modulation(4, 4)]
    return RandomNetwork(parts, [(0, (0,)), (1, (1,)), (2, (2, 2))], {3: nn.Linear(4, 2, bias=False)})


NETS: dict[str, Callable[[], RandomNetwork]] = {
    "a scale behind a function": lambda: chain(
        nn.Linear(3, 5), Activation("sigmoid"), Scale(vector(5)), nn.Linear(5, 2)
    ),
    "a scale behind a sine": lambda: chain(nn.Linear(3, 5), Activation("sine"), Scale(vector(5)), nn.Linear(5, 2)),
    "two scales behind a function": lambda: chain(
        nn.Linear(3, 5), Activation("gelu"), Scale(vector(5)), Shift(vector(5)), Scale(vector(5)), nn.Linear(5, 2)
    ),
    "kernels and a scale": lambda: chain(nn.Linear(3, 5), kernels(5), Scale(vector(5)), nn.Linear(5, 2)),
    "kernels before a function": lambda: chain(nn.Linear(3, 5), kernels(5), Activation("silu"), nn.Linear(5, 2)),
    "a gate of cosines": lambda: chain(Gated(3, 5, 4, "cosine", True), nn.Linear(4, 2)),
    "a gate of absolute values": lambda: chain(Gated(3, 5, 4, "abs", False), nn.Linear(4, 2)),
    "a gate of tanh": lambda: chain(Gated(3, 5, 4, "tanh", False), nn.Linear(4, 2)),
    "a gate of cosines between sines": lambda: chain(
        nn.Linear(3, 6), Activation("sine"), Gated(6, 4, 4, "cosine", False), nn.Linear(4, 2)
    ),
    "a state that modulates itself": modulated_state,
    "a gain and a product": gain_and_product,
}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", NETS)
def test_copies_with_other_signs_are_the_same(name: str, seed: int) -> None:
    net = NETS[name]().double().eval()
    draw_weights(net, random.Random(seed))
    x = torch.randn(3, 4, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    graph = alignkit.trace(net, x, symmetries="all")
    folded = alignkit.fold(net.state_dict(), graph).network
    copy, element = copied(graph, {key: folded[key] for key in graph.tensors}, seed)
    torch.testing.assert_close(run(net, copy, x), run(net, folded, x), rtol=1e-9, atol=1e-9)
    for name, tensor in alignkit.fold(folded, graph).network.items():
        torch.testing.assert_close(tensor, folded[name], rtol=1e-8, atol=1e-8)
    back = element.inverse().apply(alignkit.fold(copy, graph).network)
    torch.testing.assert_close(run(net, back, x), run(net, folded, x), rtol=1e-9, atol=1e-9)
    measured = alignkit.distance(graph, net.state_dict(), copy)
    assert measured.same, measured.explain()


def run(net: nn.Module, weights: dict[str, Tensor], x: Tensor) -> Tensor:
    with torch.no_grad():
        result: Tensor = module_with(net, weights)(x)
    return result
