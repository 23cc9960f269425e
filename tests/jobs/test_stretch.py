"""Scales and matrices that are moved until an average is better: B computes the same, and the average what both do."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import alignkit
from alignkit import Task, fold, stretch
from alignkit.errors import BindError, FoldError, MergeError, TaskError
from alignkit.graph import Balance
from alignkit.reports import write_report
from helpers.fine_tunes import gauged
from helpers.folding_nets import NETS, Net

FREE = [name for name, build in NETS.items() if any(isinstance(b, Balance) for b in build().graph.balances)]
every_net = pytest.mark.parametrize("name", FREE)


def outputs(model: nn.Module, net: Net) -> Tensor:
    with torch.no_grad():
        result: Tensor = model(*net.inputs)
    return result


def task_of(net: Net) -> Task:
    wanted = torch.zeros_like(outputs(net.model, net))
    return Task(net.model, [(net.inputs if len(net.inputs) > 1 else net.inputs[0], wanted)], "mse")


def folded(name: str, seed: int = 0) -> nn.Module:
    net = NETS[name](seed)
    network = fold(net.model, net.graph).network
    assert isinstance(network, nn.Module)
    return network


@every_net
def test_b_computes_the_same_and_the_average_is_no_worse(name: str) -> None:
    net, a, b = NETS[name](), folded(name), folded(name, 1)
    moved = stretch(net.graph, a, b, task=task_of(net), steps=30, rate=0.1)
    assert torch.allclose(outputs(moved.network, net), outputs(b, net), rtol=1e-9, atol=1e-9)
    assert moved.after <= moved.before
    assert bool(moved.spaces) == (moved.after < moved.before)
    if moved.spaces:
        assert moved.largest > 1
        assert any(not torch.equal(t, b.state_dict()[n]) for n, t in moved.network.state_dict().items())


@every_net
def test_planted_scales_and_matrices_hurt_an_average_less(name: str) -> None:
    net, a = NETS[name](), folded(name)
    b = gauged(a, net.graph, 3)
    moved = stretch(net.graph, a, b, task=task_of(net), steps=120, rate=0.1)
    assert torch.allclose(outputs(moved.network, net), outputs(a, net), rtol=1e-8, atol=1e-8)
    assert moved.after < 0.75 * moved.before


def test_labels_are_followed_where_they_are_asked_for() -> None:
    net, a, b = NETS["mlp, relu"](), folded("mlp, relu"), folded("mlp, relu", 1)
    task = task_of(net)  # the targets are 0
    by_labels, by_outputs = (
        stretch(net.graph, a, b, task=task, steps=100, rate=0.1, objective=goal) for goal in ("labels", "outputs")
    )
    losses = [task.evaluate(alignkit.average([a, moved.network])).loss for moved in (by_labels, by_outputs)]
    assert losses[0] < losses[1]
    assert losses[0] == pytest.approx(by_labels.after, rel=1e-5)


def test_a_seed_decides_and_nothing_given_is_changed() -> None:
    net, a, b = NETS["llama"](), folded("llama"), folded("llama", 1)
    before = {name: tensor.clone() for name, tensor in b.state_dict().items()}
    first, second = (stretch(net.graph, a, b, task=task_of(net), steps=10).network for _ in range(2))
    assert all(torch.equal(t, second.state_dict()[n]) for n, t in first.state_dict().items())
    assert all(torch.equal(t, before[n]) for n, t in b.state_dict().items())


def test_state_dicts_and_pairs_are_taken() -> None:
    net, a, b = NETS["gpt"](), folded("gpt"), folded("gpt", 1)
    module = stretch(net.graph, a, b, task=task_of(net), steps=10).network
    by_dict = stretch(net.graph, a.state_dict(), b.state_dict(), task=task_of(net), steps=10).network
    by_pair = stretch(net.graph.bind(a, b), task=task_of(net), steps=10).network
    assert isinstance(module, nn.Module)
    assert isinstance(by_dict, dict)
    for name, tensor in module.state_dict().items():
        assert torch.equal(tensor, by_dict[name])
        assert torch.equal(tensor, by_pair.state_dict()[name])


def test_a_merge_stretches_aligned_b() -> None:
    net, a, b = NETS["gpt"](), folded("gpt"), folded("gpt", 1)
    task = task_of(net)
    plain = alignkit.merge(net.graph, a, b, task=task)
    merged = alignkit.merge(net.graph, a, b, task=task, stretch=50)
    by_hand = stretch(net.graph, a, plain.aligned[1], task=task, steps=50)
    assert merged.stretched is not None
    assert merged.stretched.after == by_hand.after < by_hand.before
    assert all(torch.equal(t, merged.aligned[1].state_dict()[n]) for n, t in by_hand.network.state_dict().items())
    assert torch.allclose(outputs(merged.aligned[1], net), outputs(b, net), rtol=1e-9, atol=1e-9)
    assert by_hand.explain() in merged.explain()
    assert merged.facts()["stretched"]["spaces"] == len(by_hand.spaces)
    assert plain.stretched is None


def test_reports_name_the_spaces(tmp_path: Any) -> None:
    net, a, b = NETS["gpt"](), folded("gpt"), folded("gpt", 1)
    moved = stretch(net.graph, a, b, task=task_of(net), steps=20)
    write_report(moved.report(), tmp_path / "report.md")
    said = (tmp_path / "report.md").read_text()
    assert all(space.balance.group in said for space in moved.spaces)


def test_what_cannot_be_stretched_is_refused() -> None:
    net, a, b = NETS["gpt"](), folded("gpt"), folded("gpt", 1)
    task = task_of(net)
    plain = alignkit.trace(net.model, *net.inputs)
    with pytest.raises(FoldError, match='no scale or matrix of this graph is free: trace it with symmetries="all"'):
        stretch(plain, a, b, task=task)
    for wrong in ({"steps": 0}, {"rate": 0.0}, {"rate": float("nan")}, {"rate": 2.0}, {"batch_size": 0}):
        with pytest.raises(FoldError, match="steps and samples in each are 1 or more"):
            stretch(net.graph, a, b, task=task, **wrong)
    with pytest.raises(BindError, match="two networks"):
        stretch(net.graph, a, task=task)
    with pytest.raises(BindError, match="two networks"):
        stretch(net.graph, a, b, b, task=task)
    broken = {n: t * float("nan") for n, t in b.state_dict().items()}
    with pytest.raises((TaskError, BindError)):
        stretch(net.graph, a.state_dict(), broken, task=task)


def test_merges_that_cannot_be_stretched_are_refused_before_they_are_solved() -> None:
    net, a, b = NETS["gpt"](), folded("gpt"), folded("gpt", 1)
    task = task_of(net)
    cases: list[tuple[tuple[nn.Module, ...], dict[str, Any], str]] = [
        ((a, b), {"stretch": 5}, "give a task"),
        ((a, b), {"stretch": -1, "task": task}, "give a number of steps"),
        ((a, b, b), {"stretch": 5, "task": task}, "is for two networks"),
        ((a, b), {"stretch": 5, "task": task, "method": "ties"}, "is for two networks"),
        ((a, b), {"stretch": 5, "memory": "1GB"}, "not stretched"),
    ]
    for networks, given, said in cases:
        with pytest.raises(MergeError, match=said):
            alignkit.merge(net.graph, *networks, solver="no such solver", **given)
    with pytest.raises(FoldError, match="no scale or matrix"):
        alignkit.merge(alignkit.trace(net.model, *net.inputs), a, b, task=task, stretch=5, solver="no such solver")
