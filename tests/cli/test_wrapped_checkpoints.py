"""Checkpoints as training scripts write them: nested, with a prefix of a wrapper, with an average beside them."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from helpers.command_line import run
from helpers.weight_files import SPEC, weights

A, B, C = weights(0), weights(1), weights(2)
State = dict[str, Tensor]


def prefixed(state: State, prefix: str) -> State:
    return {prefix + name: tensor for name, tensor in state.items()}


def lightning(state: State) -> Any:
    return {"state_dict": prefixed(state, "model."), "epoch": 3, "hyper_parameters": argparse.Namespace(lr=0.1)}


FORMS = {
    "plain.pt": lambda state: state,
    "ddp.pt": lambda state: {"state_dict": prefixed(state, "module.")},
    "compiled.pth": lambda state: {"model": prefixed(state, "_orig_mod.")},
    "both.pth.tar": lambda state: {"net": prefixed(state, "_orig_mod.module."), "best": 0.9},
    "lightning.ckpt": lightning,
}


@pytest.fixture
def merged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> State:
    """What two plain files merge to."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "spec.json").write_text(json.dumps(SPEC))
    torch.save(A, "a.pt")
    torch.save(B, "b.pt")
    run("merge", "a.pt", "b.pt", "-o", "expected.pt", "--spec", "spec.json")
    return torch.load("expected.pt", weights_only=True)


@pytest.mark.parametrize("form", FORMS)
def test_wrapped_networks_merge_like_plain_ones(form: str, merged: State) -> None:
    suffix = "".join(Path(form).suffixes)
    for name, state in {"x": A, "y": B}.items():
        torch.save(FORMS[form](state), f"{name}{suffix}")
    text = run("merge", f"x{suffix}", f"y{suffix}", "-o", f"m{suffix}", "--spec", "spec.json")
    assert ("Note:" in text) == (form != "plain.pt")
    content = torch.load(f"m{suffix}", weights_only=True)
    expected = FORMS[form](merged)
    if form != "plain.pt":  # in the form of the input, without what else it holds
        (content,) = content.values()
        expected = next(value for value in expected.values() if isinstance(value, dict))
    assert content.keys() == expected.keys()
    assert all(torch.equal(content[name], expected[name]) for name in expected)


def test_networks_of_different_forms_merge(merged: State) -> None:
    torch.save(FORMS["lightning.ckpt"](B), "y.ckpt")
    run("merge", "a.pt", "y.ckpt", "-o", "m.pt", "--spec", "spec.json")
    content = torch.load("m.pt", weights_only=True)
    assert all(torch.equal(content[name], merged[name]) for name in merged)


def test_an_average_is_chosen_by_its_key(merged: State) -> None:
    torch.save({"state_dict": C, "state_dict_ema": A}, "x.pt")
    torch.save({"state_dict": C, "state_dict_ema": B}, "y.pt")
    text = run("merge", "x.pt", "y.pt", "-o", "m.pt", "--spec", "spec.json", "--key", "state_dict_ema")
    assert "state_dict_ema" in text
    content = torch.load("m.pt", weights_only=True)["state_dict_ema"]
    assert all(torch.equal(content[name], merged[name]) for name in merged)
    assert "no-such" in run("distance", "x.pt", "y.pt", "--spec", "spec.json", "--key", "no-such", code=1)


def test_what_is_beside_a_prefix_stays_as_it_is(merged: State) -> None:
    loss = {"loss.weight": torch.ones(2)}
    torch.save({**prefixed(A, "model."), **loss}, "x.pt")
    torch.save({**prefixed(B, "model."), **loss}, "y.pt")
    assert "shares no name" in run("merge", "x.pt", "y.pt", "-o", "m.pt", "--spec", "spec.json", code=1)
    text = run("merge", "x.pt", "y.pt", "-o", "m.pt", "--spec", "spec.json", "--prefix", "model.")
    assert "Not part of the model, kept as they are in the first input: loss.weight" in text
    content = torch.load("m.pt", weights_only=True)
    expected = {**prefixed(merged, "model."), **loss}
    assert content.keys() == expected.keys()
    assert all(torch.equal(content[name], expected[name]) for name in expected)
    wrong = run("merge", "x.pt", "y.pt", "-o", "n.pt", "--spec", "spec.json", "--prefix", "net.", code=1)
    assert "starts with 'net.'" in wrong


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod."])
def test_a_model_that_is_wrapped_takes_plain_and_wrapped_files(prefix: str, model_modules: Path) -> None:
    (model_modules / "wrapped.py").write_text(
        "import torch\nfrom torch import nn\nfrom unittest import mock\n"
        "def net():\n    net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))\n"
        "    with mock.patch('torch.nn.parallel.data_parallel._get_available_device_type', return_value=None):\n"
        "        return nn.DataParallel(net), torch.randn(5, 4)\n"
    )
    torch.save(prefixed(A, prefix), "a.pt")
    torch.save(prefixed(B, prefix), "b.pt")
    assert "Function check of" in run("merge", "a.pt", "b.pt", "-o", "m.pt", "--model", "wrapped:net")
    net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    written = torch.load("m.pt", weights_only=True)
    assert all(name.startswith(prefix) for name in written)
    net.load_state_dict({name.removeprefix(prefix): tensor for name, tensor in written.items()})
