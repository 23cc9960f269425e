"""`alignkit transport --optimizer`: training goes on in the order of another network."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import alignkit
from alignkit import Alignment, SymmetryGraph, write_weights
from alignkit.checkpoints import read_optimizer
from helpers.command_line import run
from helpers.weight_files import GIVEN, SPEC, net

CALL = ("transport", "net.safetensors", "state.pt", "twin.safetensors", "-o", "out.pt", "--optimizer")
MODEL = ("--model", "job_nets:net")
OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "momentum": lambda parameters: torch.optim.SGD(parameters, 0.05, momentum=0.9),
    "adamw": lambda parameters: torch.optim.AdamW(parameters, 0.01, amsgrad=True),
}
KEPT: dict[str, Callable[[dict[str, Any]], Any]] = {
    "alone": lambda state: state,
    "training script": lambda state: {"epoch": 3, "optimizer": state, "args": argparse.Namespace(lr=0.1)},
    "lightning": lambda state: {"state_dict": {"x": torch.ones(2)}, "optimizer_states": [state]},
}


def train(model: nn.Module, optimizer: torch.optim.Optimizer, seed: int, steps: int = 4) -> None:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(16, 4, generator=generator)).square().mean().backward()
        optimizer.step()


def trained(name: str, keep: Callable[[dict[str, Any]], Any]) -> tuple[nn.Module, torch.optim.Optimizer, nn.Module]:
    """Train a network, and write it, what its optimiser remembers, and its twin in another order of units."""
    torch.manual_seed(0)
    model = net()
    optimizer = OPTIMIZERS[name](model.parameters())
    train(model, optimizer, 1)
    twin = Alignment.random(SymmetryGraph.from_spec(SPEC, like=model), 5).apply(model)
    write_weights("net.safetensors", model.state_dict())
    write_weights("twin.safetensors", twin.state_dict())
    torch.save(keep(optimizer.state_dict()), "state.pt")
    return model, optimizer, twin


WAYS = [(*GIVEN, "--names", "names.json"), MODEL, (*MODEL, "--symmetries", "all")]


@pytest.mark.parametrize("given", [*WAYS, *((*way, "--memory", "20MB") for way in WAYS)])
@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("kept", KEPT)
def test_training_goes_on_in_the_order_of_the_twin(folder: Path, kept: str, name: str, given: tuple[str, ...]) -> None:
    model, optimizer, twin = trained(name, KEPT[kept])
    Path("names.json").write_text(json.dumps([name for name, _ in model.named_parameters()]))
    said = run(*CALL, *given, "--save-alignment", "p.safetensors")
    assert "State of 4 parameters carried" in said
    other = OPTIMIZERS[name](twin.parameters())
    other.load_state_dict(torch.load("out.pt", weights_only=True))
    train(model, optimizer, 2)
    train(twin, other, 2)
    x = torch.randn(8, 4)
    torch.testing.assert_close(twin(x), model(x), rtol=1e-4, atol=1e-5)
    before = read_optimizer("out.pt")
    run(*CALL, *given, "--alignment", "p.safetensors", "--force", "--report", "r.md")
    again = read_optimizer("out.pt")
    assert before["param_groups"] == again["param_groups"]
    for number, entries in before["state"].items():
        assert all(
            torch.equal(torch.as_tensor(v), torch.as_tensor(again["state"][number][k])) for k, v in entries.items()
        )


def test_parameters_in_an_order_of_their_own_have_names(folder: Path) -> None:
    model, _, _ = trained("adamw", KEPT["alone"])
    names = ["2.bias", "0.weight", "2.weight", "0.bias"]
    own = dict(model.named_parameters())
    optimizer = OPTIMIZERS["adamw"]([own[name] for name in names])
    train(model, optimizer, 1)
    torch.save(optimizer.state_dict(), "state.pt")
    assert "Give names= (--names) in the order" in run(*CALL, *MODEL, code=1)
    assert "made from a file or a mapping" in run(*CALL, *GIVEN, code=1)
    assert not Path("out.pt").exists()
    Path("names.json").write_text(json.dumps(names))
    facts = json.loads(run(*CALL, *MODEL, "--names", "names.json", "--json"))
    assert facts["entries"]["exp_avg"] == 4
    state = read_optimizer("out.pt")["state"]
    assert [tuple(state[i]["exp_avg"].shape) for i in range(4)] == [tuple(own[name].shape) for name in names]


def test_what_cannot_be_carried_is_refused_and_nothing_is_written(folder: Path) -> None:
    trained("adamw", KEPT["alone"])
    state = read_optimizer("state.pt")
    for wrong, says in (
        ({"model": {}}, "holds no state of an optimiser"),
        ({"optimizer_states": [state, state]}, "holds the states of 2 optimisers"),
        ({**state, "state": {0: {"curvature": argparse.Namespace()}}}, "which is not read"),
    ):
        torch.save(wrong, "wrong.pt")
        call = ("transport", "net.safetensors", "wrong.pt", *CALL[3:], *MODEL)
        assert says in run(*call, code=1)
    write_weights("plain.safetensors", {"x": torch.ones(2)})
    assert "plain.safetensors" in run("transport", "net.safetensors", "plain.safetensors", *CALL[3:], *MODEL, code=1)
    assert "End it in .pt" in run(*CALL[:5], "out.safetensors", "--optimizer", *MODEL, code=2)
    assert "--scale does not go with --optimizer" in run(*CALL, *MODEL, "--scale", "2", code=2)
    assert "--layouts does not go with --optimizer" in run(*CALL, *MODEL, "--layouts", "@0", code=2)
    assert "it goes with --optimizer" in run(*CALL[:-1], *MODEL, "--names", "names.json", code=2)
    for text, says in (("{}", "one JSON list of strings"), ("[", "not JSON"), (None, "cannot be read")):
        if text is not None:
            Path("names.json").write_text(text)
        assert says in run(*CALL, *MODEL, "--names", "names.json" if text else "nowhere.json", code=1)
    assert not Path("out.pt").exists() and not Path("out.safetensors").exists()


def test_rotated_second_moments_are_refused_with_the_reason(folder: Path) -> None:
    # The graph folds norms here: what the optimiser remembers belongs to the weights as they were trained.
    module = "import torch\nfrom torch import nn\n\ndef net():\n    layers = nn.Linear(4, 6), nn.Linear(6, 3)\n"
    Path("linear_nets.py").write_text(module + "    return nn.Sequential(*layers), torch.randn(5, 4)\n")
    model = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 3))
    optimizer = torch.optim.Adam(model.parameters())
    train(model, optimizer, 1)
    write_weights("net.safetensors", model.state_dict())
    write_weights("twin.safetensors", model.state_dict())
    torch.save(optimizer.state_dict(), "state.pt")
    said = run(*CALL, "--model", "linear_nets:net", "--symmetries", "all", code=1)
    assert "the mean square of a sum is not made of the mean squares of its parts" in said
    assert not Path("out.pt").exists()


def test_in_python(folder: Path) -> None:
    _, optimizer, _ = trained("adamw", KEPT["alone"])
    a, b = (alignkit.read_weights(f"{name}.safetensors") for name in ("net", "twin"))
    graph = SymmetryGraph.from_spec(SPEC, like=a)
    names = [name for name, _ in net().named_parameters()]
    carried = alignkit.jobs.carry_optimizer(graph, a, b, state=optimizer.state_dict(), names=names)
    expected = alignkit.transport_optimizer(optimizer.state_dict(), carried.alignment.inverse(), names=names)
    assert all(torch.equal(carried.state["state"][i]["exp_avg"], expected["state"][i]["exp_avg"]) for i in range(4))
    assert carried.facts()["parameters"] == 4 and "exp_avg" in carried.explain()
