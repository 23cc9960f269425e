"""Biases that move by half periods: which a trace finds, and that every move of them leaves the function as it is."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import alignkit
from alignkit import SymmetryGraph
from alignkit.errors import VerificationError
from alignkit.graph import AxisOf, Phase
from alignkit.graph.phases import move_phases, phases_in
from alignkit.graph.proof.perturb import perturbed
from alignkit.rewriting import module_with
from alignkit.tracing.gauges.proof import refute
from helpers.sine_nets import FAMILIES, MOVES, STAYS, SineCase

CASES = {**MOVES, **STAYS}


def example(case: SineCase, seed: int = 0) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(seed)
    return perturbed(case.build().double().eval(), seed), case.example().double()


@pytest.mark.parametrize("name", CASES)
def test_the_biases_that_move_and_their_frequencies_are_found(name: str) -> None:
    case = CASES[name]
    model, x = example(case)
    graph = alignkit.trace(model, x, symmetries="all")
    found = {phase.bias.tensor: (phase.frequency, phase.factors) for phase in phases_in(graph)}
    assert found == case.phases, graph.report()
    assert case.reason in graph.report()
    # Laws alone say the same: nothing that they let through was taken back by the proof.
    assert alignkit.trace(case.build().eval().to("meta"), x.float().to("meta"), symmetries="all") == graph


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("name", MOVES)
def test_planted_half_periods_are_undone_by_folding(name: str, seed: int) -> None:
    model, x = example(MOVES[name], seed)
    graph = alignkit.trace(model, x, symmetries="all")
    moved = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    move_phases(graph, phases_in(graph), moved, torch.Generator().manual_seed(seed))
    copy = module_with(model, moved)
    assert any(not torch.equal(moved[bias], model.state_dict()[bias]) for bias in MOVES[name].phases)
    torch.testing.assert_close(copy(x), model(x), rtol=0, atol=1e-9)
    one, other = (alignkit.fold(network, graph, x).network for network in (model, copy))
    torch.testing.assert_close(other.state_dict(), one.state_dict(), rtol=0, atol=1e-9)
    assert "half periods of" in graph.verify(one, x).explain()


@pytest.mark.parametrize("name", FAMILIES)
def test_networks_of_other_shapes(name: str) -> None:
    build, shape, count = FAMILIES[name]
    torch.manual_seed(0)
    model, x = perturbed(build().double().eval()), torch.randn(shape).double()
    graph = alignkit.trace(model, x, symmetries="all")
    assert len(phases_in(graph)) == count, graph.report()
    moved = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    move_phases(graph, phases_in(graph), moved, torch.Generator().manual_seed(1))
    one, other = (alignkit.fold(network, graph, x).network for network in (model, module_with(model, moved)))
    torch.testing.assert_close(other.state_dict(), one.state_dict(), rtol=0, atol=1e-9)
    graph.verify(one, x)
    assert alignkit.trace(build().eval().to("meta"), x.float().to("meta"), symmetries="all") == graph


@pytest.mark.parametrize("name", MOVES)
def test_graphs_with_phases_are_written_and_read(name: str) -> None:
    model, x = example(MOVES[name])
    graph = alignkit.trace(model, x, symmetries="all")
    again = SymmetryGraph.from_json(graph.to_json())
    assert again == graph and again.balances == graph.balances
    assert all(str(phase) in graph.report() for phase in phases_in(graph))


WRONG = {
    "a wrong frequency": Phase("h", AxisOf("first.bias", 0), (AxisOf("last.weight", 1),), 2.0),
    "no signs": Phase("h", AxisOf("first.bias", 0), ()),
    "signs of what writes": Phase("h", AxisOf("first.bias", 0), (AxisOf("first.weight", 0),)),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_phases_are_refuted_and_do_not_pass_a_verification(wrong: str) -> None:
    model, x = example(SineCase(lambda m, u: torch.sin(3 * u), {}))
    spec = {"first.weight": "-h .", "first.bias": "-h", "last.weight": ". -h", "last.bias": "."}
    graph = SymmetryGraph.from_spec(spec, model, balances=[WRONG[wrong]])
    assert refute(graph, model, (x,), {}) == {"h": frozenset(("phases",))}
    with pytest.raises(VerificationError, match="half periods changes the outputs"):
        graph.verify(model, x)
    with pytest.raises(VerificationError, match="graph is wrong"):
        alignkit.fold(module_with(model, {"first.bias": model.state_dict()["first.bias"] + 4}), graph, x)


UNFIT = {
    "no such tensor": (Phase("h", AxisOf("none", 0), ()), "no tensor 'none'"),
    "a matrix": (Phase("h", AxisOf("first.weight", 0), ()), "does not fit"),
    "another space": (Phase("h", AxisOf("last.bias", 0), ()), "does not act on"),
    "a factor of another size": (Phase("h", AxisOf("first.bias", 0), (), 1.0, ("last.bias",)), "does not fit"),
    "no frequency": (Phase("h", AxisOf("first.bias", 0), (), 0.0), "frequency 0.0"),
    "both sides": (Phase("h", AxisOf("first.bias", 0), (AxisOf("first.bias", 0),)), "twice"),
}


@pytest.mark.parametrize("unfit", UNFIT)
def test_phases_that_do_not_fit_their_graph_are_refused(unfit: str) -> None:
    spec = {"first.weight": "-h .", "first.bias": "-h", "last.weight": ". -h", "last.bias": "."}
    phase, words = UNFIT[unfit]
    with pytest.raises(alignkit.AlignkitError, match=words):
        SymmetryGraph.from_spec(spec, MOVES["sine"].build(), balances=[phase])


def test_a_law_that_lets_a_bias_through_is_taken_back_and_told(monkeypatch: pytest.MonkeyPatch) -> None:
    from alignkit.tracing.gauges import bias_trails

    monkeypatch.setattr(bias_trails, "_PERIODIC", {"sin", "cos", "tanh"})
    model, x = example(STAYS["tanh"])
    graph = alignkit.trace(model, x, symmetries="all")
    assert not graph.balances and graph.groups["first"].kind == "signed"
    assert "its phases change the outputs" in graph.report()
