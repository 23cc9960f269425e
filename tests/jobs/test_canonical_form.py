"""A form without a reference: the same for all equals of a network, and told where there is none."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import alignkit
from alignkit import Alignment, SymmetryGraph, canonical_form
from alignkit.errors import AlignmentError, BindError
from alignkit.testing import ARCHITECTURES, KIND_ARCHITECTURES
from alignkit.testing.problems import ProblemArchitecture
from helpers.folding_nets import NETS
from helpers.gauge_cases import CASES

ALL: dict[str, Callable[[], ProblemArchitecture]] = {**ARCHITECTURES, **KIND_ARCHITECTURES}


def drawn(architecture: ProblemArchitecture) -> nn.Module:
    """Return a network in float64 no two units of which are alike."""
    torch.manual_seed(4)
    model = architecture.model.double()
    with torch.no_grad():
        for tensor in (*model.parameters(), *(b for b in model.buffers() if b.is_floating_point())):
            tensor.copy_(torch.randn_like(tensor).abs() + 0.2 if tensor.ndim == 1 else torch.randn_like(tensor))
    return model


def near(left: dict[str, Tensor], right: dict[str, Tensor], tolerance: float = 1e-9) -> bool:
    return all(torch.allclose(t.double(), right[n].double(), rtol=tolerance, atol=tolerance) for n, t in left.items())


@pytest.mark.parametrize("name", ALL)
def test_all_equals_of_a_network_have_one_form(name: str) -> None:
    architecture = ALL[name]()
    model, graph = drawn(architecture), architecture.graph()
    formed = canonical_form(model, graph)
    assert not formed.ties, formed.explain()
    for seed in range(3):
        other = canonical_form(Alignment.random(graph, seed).apply(model), graph)
        assert near(other.network.state_dict(), formed.network.state_dict())
    again = canonical_form(formed.network, graph)
    assert again.alignment.is_identity or near(again.network.state_dict(), formed.network.state_dict())
    inputs = architecture.inputs(seed=1)
    inputs = inputs.double() if isinstance(inputs, Tensor) and inputs.is_floating_point() else inputs
    with torch.no_grad():
        torch.testing.assert_close(formed.network(inputs), model(inputs), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["relu", "tanh", "swiglu", "lstm", "llama", "gpt with a bias", "post-LN", "lora"])
def test_traced_networks_are_folded_balanced_and_formed(name: str) -> None:
    torch.manual_seed(0)
    case = CASES[name]
    model, batch = case.build().double().eval(), case.batch()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    batch = batch.double() if batch.is_floating_point() else batch
    graph = alignkit.trace(model, batch[:1], symmetries="all")
    formed = canonical_form(model, graph)
    assert not formed.ties, formed.explain()
    folded = alignkit.fold(model, graph)
    moved = Alignment.random(graph, 3).apply(folded.network)
    assert near(canonical_form(moved, graph).network.state_dict(), formed.network.state_dict(), 1e-6)
    assert near(canonical_form(folded, graph).network.state_dict(), formed.network.state_dict(), 1e-6)
    with torch.no_grad():
        torch.testing.assert_close(formed.network(batch[:4]), model(batch[:4]), rtol=1e-7, atol=1e-7)


def test_scales_do_not_matter() -> None:
    net = NETS["mlp, relu"]()
    scaled = {n: t.clone() for n, t in net.model.state_dict().items()}
    (balance, *_) = net.graph.balances
    factors = torch.linspace(0.2, 5, net.graph.groups[balance.group].size).double()
    for places, power in ((balance.writes, 1), (balance.reads, -1)):
        for place in places:
            scaled[place.tensor] = (scaled[place.tensor].movedim(place.axis, -1) * factors**power).movedim(
                -1, place.axis
            )
    forms = [canonical_form(weights, net.graph).network for weights in (dict(net.model.state_dict()), scaled)]
    assert isinstance(forms[0], dict) and near(forms[0], forms[1])


def test_signs_make_more_of_the_weight_positive() -> None:
    architecture = KIND_ARCHITECTURES["signed"]()
    state = canonical_form(drawn(architecture), architecture.graph()).network.state_dict()
    incoming = torch.cat([state["0.weight"], state["0.bias"][:, None]], 1)
    assert bool(((incoming * incoming.abs()).sum(1) > 0).all())


def test_principal_axes_are_those_of_the_weights() -> None:
    architecture = KIND_ARCHITECTURES["orthogonal"]()
    network = canonical_form(drawn(architecture), architecture.graph()).network
    (graph, state) = architecture.graph(), network.state_dict()
    spread = torch.zeros(5, 5).double()
    for use in graph.uses["model"]:
        part = use.unfold(use.block.view(state[use.tensor]))[0]
        spread += part @ part.T
    values = spread.diagonal()
    assert bool((values.diff() < 0).all())
    assert float((spread - torch.diag(values)).abs().max()) < 1e-9 * float(values[0])


class TestTies:
    GRAPH = SymmetryGraph.from_spec({"w": "-h .", "b": "h2", "v": ". ~r"}, {"w": (3, 2), "b": (3,), "v": (4, 3)})

    def form(self, **tensors: Tensor) -> dict[str, int]:
        weights = {
            "w": torch.tensor([[1.0, 2.0], [3.0, 1.0], [0.5, 4.0]]),
            "b": torch.tensor([1.0, 2.0, 3.0]),
            "v": torch.tensor([[1.0, 0.2, 0.1], [0.3, 2.0, 0.4], [0.1, 0.5, 3.0], [0.4, 0.1, 0.6]]),
        }
        formed = canonical_form({**weights, **tensors}, self.GRAPH)
        assert ("Tied" in formed.explain()) == bool(formed.ties)
        return formed.ties

    def test_units_that_nothing_tells_apart(self) -> None:
        assert self.form() == {}
        assert self.form(b=torch.tensor([1.0, 2.0, 2.0])) == {"h2": 2}

    def test_signs_of_units_that_lean_nowhere(self) -> None:
        assert self.form(w=torch.tensor([[1.0, -1.0], [3.0, 1.0], [0.5, 4.0]])) == {"h": 1}
        assert self.form(w=torch.zeros(3, 2)) == {"h": 6}  # neither order nor sign

    def test_axes_of_one_variance(self) -> None:
        ties = self.form(v=torch.cat([torch.eye(3), torch.zeros(1, 3)]))
        assert ties["r"] >= 3

    def test_a_group_that_meets_only_open_ones(self) -> None:
        graph = SymmetryGraph.from_spec({"w": "-a -b"}, {"w": (2, 3)})
        formed = canonical_form({"w": torch.randn(2, 3)}, graph)
        assert formed.ties == {"a": 2, "b": 3}
        assert "nothing" in formed.explain().lower()


def test_what_makes_no_sense_is_refused() -> None:
    architecture = KIND_ARCHITECTURES["signed"]()
    graph = architecture.graph()
    with pytest.raises(AlignmentError, match="from 0 on"):
        canonical_form(architecture.model, graph, tolerance=-1.0)
    with pytest.raises(BindError, match=r"'0.weight' is missing"):
        canonical_form({}, graph)


def test_results_are_told() -> None:
    architecture = KIND_ARCHITECTURES["signed"]()
    formed = canonical_form(drawn(architecture), architecture.graph())
    assert formed.facts()["moved"] == formed.alignment.moved()
    assert "Every unit has its place" in formed.explain()
    assert formed.report().sections
