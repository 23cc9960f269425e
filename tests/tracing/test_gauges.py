"""What the second pass finds in networks of many families: kinds, reasons, folds, and its proof."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import alignkit
from alignkit import SymmetryGraph
from alignkit.graph.proof.perturb import perturbed
from alignkit.tracing.gauges.proof import refute
from helpers.gauge_cases import CASES, TOLD, Case
from helpers.gauge_nets import MLP, VOCABULARY, Attention, Block, Decoder, GatedMLP, RMSNorm
from helpers.gauge_oracle import found, nullity

BY_NAME = {**CASES, **TOLD}


def example(case: Case) -> tuple[nn.Module, Tensor]:
    """Return a network in float64 no two units of which are alike, with a batch."""
    torch.manual_seed(0)
    model, batch = perturbed(case.build()).double().eval(), case.batch()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model, batch.double() if batch.is_floating_point() else batch


@pytest.mark.parametrize("name", BY_NAME)
def test_each_space_has_its_kind_and_its_reason(name: str) -> None:
    case = BY_NAME[name]
    model, batch = example(case)
    graph = alignkit.trace(model, batch[:1], symmetries="all", keep_tied=True)
    limits = {limit.group: limit for limit in graph.provenance.limits}
    expected = {group: case.kinds.get(group, "permutation") for group in limits}
    assert {group: limit.kind for group, limit in limits.items()} == expected
    for group, reason in case.reasons.items():
        assert reason in limits[group].reason
        assert str(limits[group]) in graph.report()
    assert graph.provenance.proved


@pytest.mark.parametrize("name", BY_NAME)
def test_folded_networks_compute_the_same_under_random_elements(name: str) -> None:
    model, batch = example(BY_NAME[name])
    graph = alignkit.trace(model, batch[:1], symmetries="all", keep_tied=True)
    folded = alignkit.fold(model, graph).network
    torch.testing.assert_close(folded(batch[:2]), model(batch[:2]), rtol=0, atol=1e-9)
    graph.verify(folded, batch[:1])


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_all_continuous_symmetries_are_found(name: str) -> None:
    case = CASES[name]
    model, batch = example(case)
    graph = alignkit.trace(model, batch[:1], symmetries="all", keep_tied=True)
    assert nullity(model, batch) == found(graph) + sum(case.uncounted.values()), graph.report()


@pytest.mark.parametrize("name", ["llama", "tanh", "batch norm", "vit", "norms of queries"])
def test_permutations_stay_those_of_the_first_pass(name: str) -> None:
    # Spaces of every kind hold all permutations that the first pass found, with the same groups around them.
    model, batch = example(CASES[name])
    plain, full = (alignkit.trace(model, batch[:1], symmetries=s) for s in ("permutation", "all"))
    assert plain.provenance.proved is None and not plain.folds
    assert {name: group.size for name, group in plain.groups.items()}.items() <= {
        name: group.size for name, group in full.groups.items()
    }.items()


def llama() -> nn.Module:
    return Decoder(Block(RMSNorm, Attention(rotary="halves"), GatedMLP()), RMSNorm(6))


def test_a_model_without_weights_is_not_proved_and_says_so() -> None:
    ids = torch.zeros(1, 5, dtype=torch.int64)
    graph = alignkit.trace(llama().to("meta"), ids.to("meta"), symmetries="all")
    assert graph.provenance.proved is False
    assert "not proved" in graph.report()
    assert graph == alignkit.trace(llama(), ids, symmetries="all")


def test_eager_and_fused_attention_have_the_same_symmetries() -> None:
    ids = torch.zeros(1, 5, dtype=torch.int64)
    models = (
        Decoder(Block(RMSNorm, Attention(rotary="halves", eager=e, groups=2), GatedMLP()), RMSNorm(6))
        for e in (True, False)
    )
    eager, fused = (alignkit.trace(model, ids, symmetries="all") for model in models)
    assert eager == fused


@pytest.mark.parametrize(
    ("wrong", "right"), [("~up", "-up"), ("^up", "-up"), ("-up", "up")], ids=["orthogonal", "centred", "signed"]
)
def test_what_changes_the_outputs_is_refuted(wrong: str, right: str) -> None:
    activation: Callable[[Tensor], Tensor] = torch.tanh if right == "-up" else nn.GELU()
    model, x = MLP(activation, width=4, out=2), torch.randn(3, 4)
    graph = SymmetryGraph.from_spec(
        {"up.weight": f"{wrong} .", "up.bias": wrong, "down.weight": f". {wrong}", "down.bias": "."}, model
    )
    assert refute(graph, model, (x,), {}) == {"up": frozenset((graph.groups["up"].kind,))}
    assert alignkit.trace(model, x, symmetries="all").spec()["up.bias"] == right


def test_a_kind_that_a_wrong_law_lets_through_is_taken_back_and_told(monkeypatch: pytest.MonkeyPatch) -> None:
    from alignkit.tracing.gauges import second_pass
    from alignkit.tracing.gauges.laws import movement

    wrong = {**second_pass.BUILT_IN, "gelu": movement.rename}
    monkeypatch.setattr(second_pass, "BUILT_IN", wrong)
    model = MLP(nn.GELU(), width=4, out=2)
    graph = alignkit.trace(model, torch.randn(3, 4), symmetries="all")
    assert graph.groups["up"].kind == "permutation"
    assert not graph.balances
    assert "as orthogonal it changes the outputs" in graph.report()


def test_untied_weights_of_a_tied_architecture_do_not_bind() -> None:
    ids = torch.randint(VOCABULARY, (1, 5))
    graph = alignkit.trace(llama(), ids, symmetries="all")
    with pytest.raises(alignkit.AlignkitError, match="fold"):
        graph.bind(perturbed(llama()), perturbed(llama(), 1))


def test_a_graph_with_kinds_survives_json() -> None:
    graph = alignkit.trace(llama(), torch.randint(VOCABULARY, (1, 5)), symmetries="all")
    again = SymmetryGraph.from_json(graph.to_json())
    assert again == graph
    assert again.provenance == graph.provenance


def test_verification_refuses_unfolded_weights() -> None:
    model, ids = perturbed(llama()), torch.randint(VOCABULARY, (1, 5))
    graph = alignkit.trace(model, ids, symmetries="all")
    with pytest.raises(alignkit.AlignkitError, match="fold"):
        graph.verify(model, ids)


@pytest.mark.parametrize("activation", [nn.GELU(), nn.Tanh(), nn.ReLU()], ids=["gelu", "tanh", "relu"])
@pytest.mark.parametrize("numbers", [6, 1])
def test_scales_that_are_folded_are_not_balanced(activation: nn.Module, numbers: int) -> None:
    """A LayerScale in a stream that does not rotate goes into its writer, and stays 1."""

    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inp, self.up, self.down, self.out = nn.Linear(4, 6), nn.Linear(6, 5), nn.Linear(5, 6), nn.Linear(6, 3)
            self.scale = nn.Parameter(torch.linspace(0.3, 2, numbers))

        def forward(self, x: Tensor) -> Tensor:
            x = activation(self.inp(x))
            return self.out(activation(x + self.scale * self.down(activation(self.up(x)))))

    model, x = perturbed(Scaled()).double(), torch.randn(5, 4).double()
    graph = alignkit.trace(model, x, symmetries="all")
    folded = alignkit.fold(model, graph, x).network
    assert not graph.folds or bool((folded.scale == 1).all())
    graph.verify(folded, x)
    torch.testing.assert_close(alignkit.fold(folded, graph, x).network.state_dict(), folded.state_dict())
