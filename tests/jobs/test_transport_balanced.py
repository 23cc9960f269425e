"""A fine-tune on a network that was folded and balanced: the task vector is what was tuned, and nothing else.

The copies here differ from their networks by everything that leaves the function as it is: orders, signs, rotations,
phases, scales of units and matrices inside heads.
"""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor, nn

import alignkit
from alignkit.errors import FoldError
from alignkit.jobs import Folded
from alignkit.rewriting import module_with
from helpers.fine_tunes import between, copied, tuned_of
from helpers.folding_nets import NETS, Net
from helpers.gauge_nets import GatedMLP

Weights = Mapping[str, Tensor]


def answer(network: nn.Module, net: Net) -> Tensor:
    with torch.no_grad():
        return network(*net.inputs)


def close(left: Tensor, right: Tensor) -> bool:
    return float((left - right).abs().max()) <= 1e-7 * float(right.abs().max())


def whole(folded: Folded) -> nn.Module:
    assert isinstance(folded.network, nn.Module)
    return folded.network


@pytest.mark.parametrize("name", NETS)
def test_a_fine_tune_arrives_at_a_copy_of_its_base(name: str) -> None:
    net = NETS[name]()
    tuned = tuned_of(net.model)
    base_b = copied(net, net.model, 3)
    a, b = alignkit.fold(net.model, net.graph), alignkit.fold(base_b, net.graph)
    carried = alignkit.transport(net.graph, a, b, tuned=tuned)
    assert close(answer(carried.network, net), answer(tuned, net))
    # It is what the copy of the fine-tune is, once it follows the copy of the base.
    wanted = whole(alignkit.fold(copied(net, tuned, 3), net.graph, like=b)).state_dict()
    for key, tensor in carried.network.state_dict().items():
        torch.testing.assert_close(tensor, wanted[key], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", NETS)
def test_half_a_fine_tune_is_the_half_of_it(name: str) -> None:
    """Folds multiply tensors, so the line between two folded networks begins where they are folded, not balanced."""
    net = NETS[name]()
    base, tuned = (whole(alignkit.fold(x, net.graph, balance=False)) for x in (net.model, tuned_of(net.model)))
    a, b = alignkit.fold(base, net.graph), alignkit.fold(copied(net, base, 3), net.graph)
    carried = alignkit.transport(net.graph, a, b, tuned=tuned, scale=0.5)
    assert close(answer(carried.network, net), answer(between(base, tuned, 0.5), net))


def test_units_that_are_empty_in_the_base_live_in_the_fine_tune() -> None:
    for name, net in ((n, build()) for n, build in NETS.items()):
        for balance in net.graph.balances:
            base = module_with(net.model, {})
            for place in balance.reads:
                net_tensor = dict(base.named_parameters())[place.tensor]
                positions = list(place.positions({place.tensor: tuple(net_tensor.shape)}))
                net_tensor.data.movedim(place.axis, -1)[..., positions[0]] = 0.0
            tuned = tuned_of(base)
            a = alignkit.fold(base, net.graph)
            followed = alignkit.fold(tuned, net.graph, like=a)
            assert close(answer(whole(followed), net), answer(tuned, net)), (name, balance)


def test_a_sign_that_tuning_would_change_stays_that_of_the_base() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 6), nn.Tanh(), GatedMLP()).double()
    x = torch.randn(5, 3).double()
    graph = alignkit.trace(model, x, symmetries="all")
    tuned = tuned_of(model, 0.8)  # far enough that balancing alone would give some units another sign
    base = alignkit.fold(model, graph)
    alone, followed = alignkit.fold(tuned, graph), alignkit.fold(tuned, graph, like=base)
    signs = [[space.write.sign() for space in folded.spaces] for folded in (base, alone, followed)]
    assert any(not torch.equal(left, right) for left, right in zip(signs[0], signs[1], strict=True))
    assert all(torch.equal(left, right) for left, right in zip(signs[0], signs[2], strict=True))

    def apart(other: Folded) -> float:
        return sum(
            float((t - whole(other).state_dict()[n]).square().sum()) for n, t in whole(base).state_dict().items()
        )

    assert apart(followed) < apart(alone)


def test_a_base_of_another_graph_is_refused() -> None:
    model = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 2))
    x = torch.randn(5, 3)
    graph = alignkit.trace(model, x, symmetries="all")
    other = alignkit.fold(model, alignkit.trace(model, x))
    with pytest.raises(FoldError, match="folded for another graph"):
        alignkit.fold(model, graph, like=other)
