"""An optimiser goes on in another order of units as if nothing had happened."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import alignkit
from alignkit import Alignment, transport_optimizer
from alignkit.errors import MergeError
from alignkit.graph.kinds import KINDS
from alignkit.graph.phases import move_phases
from alignkit.jobs import carry_optimizer
from alignkit.testing import KIND_ARCHITECTURES

MADE: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, 0.05, momentum=0.9, nesterov=True),
    "adam": lambda parameters: torch.optim.Adam(parameters, 0.01, amsgrad=True),
    "adamw": lambda parameters: torch.optim.AdamW(parameters, 0.01, weight_decay=0.1),
    "adamax": lambda parameters: torch.optim.Adamax(parameters, 0.01),
    "nadam": lambda parameters: torch.optim.NAdam(parameters, 0.01),
    "radam": lambda parameters: torch.optim.RAdam(parameters, 0.01),
    "adagrad": lambda parameters: torch.optim.Adagrad(parameters, 0.01),
    "adadelta": lambda parameters: torch.optim.Adadelta(parameters, 0.5),
    "rmsprop": lambda parameters: torch.optim.RMSprop(parameters, 0.01, momentum=0.5, centered=True),
    "rprop": lambda parameters: torch.optim.Rprop(parameters, 0.01),
    "asgd": lambda parameters: torch.optim.ASGD(parameters, 0.05),
}


def network(activation: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 7), activation, nn.Linear(7, 6), activation, nn.Linear(6, 2)).double()


def train(model: nn.Module, optimiser: torch.optim.Optimizer, start: int, steps: int) -> None:
    generator = torch.Generator().manual_seed(start)
    for _ in range(steps):
        x = torch.randn(16, 4, generator=generator, dtype=torch.float64)
        optimiser.zero_grad()
        (model(x) - x[:, :2].sin()).square().mean().backward()
        optimiser.step()


@pytest.mark.parametrize("activation", [nn.GELU(), nn.Tanh()], ids=["permuted", "signed"])
@pytest.mark.parametrize("name", MADE)
def test_training_goes_on_in_the_other_order(name: str, activation: nn.Module) -> None:
    model = network(activation)
    graph = alignkit.trace(model, torch.randn(2, 4).double(), symmetries="all")
    optimiser = MADE[name](model.parameters())
    train(model, optimiser, 1, 4)
    symmetry = Alignment.random(graph, 5)
    other = symmetry.apply(model)
    carried = MADE[name](other.parameters())
    carried.load_state_dict(transport_optimizer(optimiser.state_dict(), symmetry))
    train(model, optimiser, 2, 4)
    train(other, carried, 2, 4)
    for key, tensor in symmetry.apply(model).state_dict().items():
        torch.testing.assert_close(other.state_dict()[key], tensor, rtol=1e-9, atol=1e-11)


class Sine(nn.Module):
    """A module that takes the sine."""

    def forward(self, x: Tensor) -> Tensor:
        return x.sin()


@pytest.mark.parametrize("noise", [0.0, 0.01])
@pytest.mark.parametrize("activation", [nn.ReLU(), nn.LeakyReLU(), Sine()], ids=["relu", "leaky", "sine"])
def test_networks_that_differ_by_scales_or_phases_are_refused(activation: nn.Module, noise: float) -> None:
    model = network(activation)
    optimiser = torch.optim.AdamW(model.parameters())
    train(model, optimiser, 1, 2)
    graph = alignkit.trace(model, torch.randn(2, 4).double(), symmetries="all")
    weights = {name: tensor + noise * torch.randn_like(tensor) for name, tensor in model.state_dict().items()}
    twin = Alignment.random(graph, 3).apply(weights)
    carried = carry_optimizer(graph, model.state_dict(), twin, state=optimiser.state_dict(), names=[*weights])
    assert carried.alignment == Alignment.random(graph, 3).inverse()
    apart = {name: tensor.clone() for name, tensor in twin.items()}
    if isinstance(activation, Sine):
        move_phases(graph, graph.balances, apart, torch.Generator().manual_seed(0))
    else:
        apart["0.weight"], apart["0.bias"], apart["2.weight"] = (
            factor * apart[name] for factor, name in ((3, "0.weight"), (3, "0.bias"), (1 / 3, "2.weight"))
        )
    with pytest.raises(MergeError, match=r"differ by scales or phases of layer\.0"):
        carry_optimizer(
            graph, model.state_dict(), apart, state=optimiser.state_dict(), names=[*weights],
            alignment=carried.alignment,
        )  # fmt: skip


@pytest.mark.parametrize("named", [True, False])
def test_groups_of_parameters_have_their_own_order(named: bool) -> None:
    model = network(nn.Tanh())
    graph = alignkit.trace(model, torch.randn(2, 4).double(), symmetries="all")
    symmetry = Alignment.random(graph, 5)

    def made(net: nn.Module) -> torch.optim.Optimizer:
        by_name = list(net.named_parameters())
        parts = [[(n, p) for n, p in by_name if (p.ndim < 2) == flat] for flat in (True, False)]
        groups = [
            {"params": part if named else [p for _, p in part], "weight_decay": 0.1 * i} for i, part in enumerate(parts)
        ]
        return torch.optim.AdamW(groups, 0.01)

    optimiser = made(model)
    train(model, optimiser, 1, 3)
    other = symmetry.apply(model)
    carried = made(other)
    order = [n for flat in (True, False) for n, p in model.named_parameters() if (p.ndim < 2) == flat]
    if not named:
        with pytest.raises(MergeError, match=r"Give names= \(--names\) in the order"):
            transport_optimizer(optimiser.state_dict(), symmetry)
    carried.load_state_dict(transport_optimizer(optimiser.state_dict(), symmetry, names=None if named else order))
    train(model, optimiser, 2, 3)
    train(other, carried, 2, 3)
    for key, tensor in symmetry.apply(model).state_dict().items():
        torch.testing.assert_close(other.state_dict()[key], tensor, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("kind", [kind for kind in KIND_ARCHITECTURES if KINDS[kind].rotates])
def test_momentum_rotates_and_second_moments_are_refused(kind: str) -> None:
    architecture = KIND_ARCHITECTURES[kind]()
    model, graph = architecture.model, architecture.graph()
    symmetry, inputs = Alignment.random(graph, 3), architecture.inputs(seed=1)

    def step(net: nn.Module, optimiser: torch.optim.Optimizer) -> None:
        optimiser.zero_grad()
        net(inputs).square().mean().backward()
        optimiser.step()

    optimiser = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)
    step(model, optimiser)
    other = symmetry.apply(model)
    carried = torch.optim.SGD(other.parameters(), 0.01, momentum=0.9)
    names = [n for n, _ in model.named_parameters()]
    carried.load_state_dict(transport_optimizer(optimiser.state_dict(), symmetry, names=names))
    step(model, optimiser)
    step(other, carried)
    wanted = symmetry.apply(model).state_dict()
    assert all(torch.allclose(other.state_dict()[n], wanted[n], atol=1e-10) for n in names)
    adam = torch.optim.Adam(model.parameters())
    step(model, adam)
    with pytest.raises(MergeError, match=r"'exp_avg_sq' of .* the mean square of a sum is not made of"):
        transport_optimizer(adam.state_dict(), symmetry, names=names)


def test_what_is_not_known_is_refused() -> None:
    model = network(nn.Tanh())
    graph = alignkit.trace(model, torch.randn(2, 4).double(), symmetries="all")
    symmetry = Alignment.random(graph, 5)
    optimiser = torch.optim.Adam(model.parameters())
    train(model, optimiser, 1, 1)
    state = optimiser.state_dict()

    def with_entry(key: str, value: Tensor) -> dict[str, Any]:
        return {**state, "state": {0: {key: value}}}

    for wrong, says in (
        ({"model": {}}, "not the state of an optimiser"),
        (
            with_entry("curvature", torch.ones(7, 4)),
            "'curvature' of '0.weight' .* not known whether",
        ),
        (with_entry("exp_avg_sq_row", torch.ones(7)), "has shape"),
        ({**state, "state": {99: {}}}, "parameter 99"),
        ({**state, "param_groups": [{"params": [0, 1]}]}, "2 parameters, 6 names"),
    ):
        with pytest.raises(MergeError, match=says):
            transport_optimizer(wrong, symmetry)
    with pytest.raises(MergeError, match="no tensors 'x'"):
        transport_optimizer(state, symmetry, names=["x"] * 6)
    permuted = alignkit.trace(model, torch.randn(2, 4).double())
    moved = transport_optimizer(with_entry("curvature", torch.ones(7, 4)), Alignment.identity(permuted))
    assert torch.equal(moved["state"][0]["curvature"], torch.ones(7, 4))
