"""A network folded: it computes the same, fits its graph, and says what became of it."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import alignkit
from alignkit import SymmetryGraph, fold
from alignkit.errors import AlignmentError, BindError, FoldError, VerificationError
from alignkit.graph import Blocked, Gain, TracedInput, Untie
from alignkit.reports import write_report
from helpers.folding_nets import NETS, Net


def differ(left: nn.Module, right: nn.Module, inputs: tuple[Tensor, ...]) -> float:
    with torch.no_grad():
        a, b = left(*inputs), right(*inputs)
    return float((a - b).abs().max() / a.abs().max())


def with_folds(net: Net, **changes: Any) -> SymmetryGraph:
    graph = net.graph
    rewrites = {"folds": graph.folds, "balances": graph.balances, "blocked": graph.blocked} | changes
    provenance = rewrites.pop("provenance", graph.provenance)
    return SymmetryGraph(graph.tensors, graph.groups, provenance, **rewrites)


@pytest.mark.parametrize("balance", [True, False])
@pytest.mark.parametrize("name", NETS)
def test_a_module_computes_the_same_and_fits_its_graph(name: str, balance: bool) -> None:
    net = NETS[name]()
    before = {key: tensor.clone() for key, tensor in net.model.state_dict().items()}
    folded = fold(net.model, net.graph, *net.inputs, balance=balance)
    assert differ(net.model, folded.network, net.inputs) < 1e-12
    assert folded.check is not None and folded.check.exact.same and folded.check.rounded.error < 1e-12
    assert all(torch.equal(tensor, before[key]) for key, tensor in net.model.state_dict().items())
    assert type(folded.network) is type(net.model)
    assert net.graph.verify(folded.network, *net.inputs).error < 1e-9
    net.graph.bind(folded.network, folded.network)
    if net.graph.folds:
        with pytest.raises(BindError, match="fold both models first"):
            net.graph.bind(net.model, folded.network)
        with pytest.raises(AlignmentError, match="fold the weights first"):
            net.graph.verify(net.model, *net.inputs)


@pytest.mark.parametrize("name", NETS)
def test_a_mapping_becomes_what_the_module_becomes(name: str) -> None:
    net = NETS[name]()
    state = net.model.state_dict()
    folded = fold(state, net.graph)
    assert isinstance(folded.network, dict) and list(folded.network) == list(state)
    assert folded.check is None and "not done" in folded.explain()
    module = fold(net.model, net.graph).network
    assert all(torch.equal(tensor, module.state_dict()[key]) for key, tensor in folded.network.items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_weights_are_rounded_once_to_their_dtype_and_the_error_is_told(dtype: torch.dtype) -> None:
    net = NETS["vit"]()
    narrow = net.model.to(dtype)
    exact = fold(net.model.double().state_dict(), net.graph).network
    folded = fold(narrow.to(dtype), net.graph, *net.inputs)
    for key, tensor in folded.network.state_dict().items():
        assert tensor.dtype == dtype
        assert torch.equal(tensor, exact[key].to(dtype)), key
    assert folded.check.exact.error < 1e-12
    unit = torch.finfo(dtype).eps
    assert unit / 100 < folded.check.rounded.error < 100 * unit
    assert folded.facts()["rounding_error"] == folded.check.rounded.error
    assert f"{folded.check.rounded.error:.1g} once the weights are rounded" in folded.explain()


@pytest.mark.parametrize("name", ["gpt", "llama, tied", "gemma"])
class TestTiedHeads:
    def test_a_head_is_untied_visibly(self, name: str) -> None:
        net = NETS[name]()
        head, source = next((f.tensor, f.source) for f in net.graph.folds if isinstance(f, Untie))
        net.model.config = type("Config", (), {"tie_word_embeddings": True})()
        folded = fold(net.model, net.graph)
        own = folded.network.state_dict(keep_vars=True)
        assert own[head] is not own[source] and own[head].data_ptr() != own[source].data_ptr()
        assert net.model.state_dict()[head].data_ptr() == net.model.state_dict()[source].data_ptr()
        assert folded.network.config.tie_word_embeddings is False and net.model.config.tie_word_embeddings is True
        assert folded.added == own[head].numel() == folded.facts()["numbers_added"]
        assert f"{head} is no longer tied to {source}: {folded.added} numbers more." in folded.explain()
        again = fold(folded.network, net.graph)
        assert again.untied == {} and again.added == 0 and "no longer tied" not in again.explain()

    def test_a_file_without_the_head_gets_one(self, name: str) -> None:
        net = NETS[name]()
        head, source = next((f.tensor, f.source) for f in net.graph.folds if isinstance(f, Untie))
        state = {key: tensor.bfloat16() for key, tensor in net.model.state_dict().items() if key != head}
        folded = fold(state, net.graph).network
        assert list(folded) == [*state, head]
        assert folded[head].dtype == state[source].dtype
        whole = fold({**state, head: state[source]}, net.graph).network
        assert all(torch.equal(tensor, whole[key]) for key, tensor in folded.items())


@pytest.mark.parametrize(
    "name", [n for n, make in NETS.items() if any(isinstance(f, Gain) for f in make().graph.folds)]
)
def test_a_graph_that_is_wrong_about_a_fold_is_refused_by_its_name(name: str) -> None:
    net = NETS[name]()
    wrong = next(fold for fold in net.graph.folds if isinstance(fold, Gain))
    changed = replace(wrong, offset=wrong.offset + 0.5)
    graph = with_folds(net, folds=[changed if one is wrong else one for one in net.graph.folds])
    with pytest.raises(VerificationError, match=f"wrong about this fold: {changed.gain} into"):
        fold(net.model, graph, *net.inputs)


@pytest.mark.parametrize("name", ["llama", "mlp, squared", "lora", "batchnorm"])
def test_a_graph_that_is_wrong_about_a_balance_is_refused(name: str) -> None:
    net = NETS[name]()
    first, *rest = net.graph.balances
    wrong = replace(first, kind="scaled", degree=first.degree + 1)
    graph = with_folds(net, balances=[wrong, *rest])
    with pytest.raises(VerificationError, match="wrong about what it balances"):
        fold(net.model, graph, *net.inputs)
    assert fold(net.model, graph, *net.inputs, balance=False).spaces == ()


def test_inputs_of_a_trace_are_drawn_anew() -> None:
    net = NETS["gpt"]()
    traced = replace(net.graph.provenance, inputs=(TracedInput(None, (3, 5), "int64", 0, 10),))
    folded = fold(net.model, with_folds(net, provenance=traced))
    assert folded.check is not None and folded.check.exact.error < 1e-12


def test_average_of_folded_networks_is_unfolded_with_the_gains_of_one() -> None:
    one, two = NETS["vit"](), NETS["vit"](seed=1)
    left, right = (fold(net.model, net.graph, balance=False) for net in (one, two))
    same = left.unfold()
    for key, tensor in one.model.state_dict().items():
        torch.testing.assert_close(same.state_dict()[key], tensor, rtol=1e-11, atol=1e-11)
    average = alignkit.average([left.network, right.network])
    unfolded = left.unfold(average)
    assert differ(average, unfolded, one.inputs) < 1e-11
    torch.testing.assert_close(unfolded.norm.weight, one.model.norm.weight)
    as_mapping = left.unfold(average.state_dict())
    assert all(torch.equal(tensor, unfolded.state_dict()[key]) for key, tensor in as_mapping.items())


def test_networks_that_do_not_fit_are_refused() -> None:
    net = NETS["llama"]()
    state = net.model.state_dict()
    with pytest.raises(FoldError, match=r"'norm\.weight' is missing in the network"):
        fold({key: tensor for key, tensor in state.items() if key != "norm.weight"}, net.graph)
    with pytest.raises(FoldError, match=r"'norm\.weight' of the network holds NaN"):
        fold({**state, "norm.weight": state["norm.weight"] * torch.nan}, net.graph)
    with pytest.raises(FoldError, match=r"'norm\.weight' has shape \(7,\)"):
        fold({**state, "norm.weight": torch.ones(7)}, net.graph)
    with pytest.raises(FoldError, match="overflows"):
        fold(
            {**state, "norm.weight": state["norm.weight"] * 1e200, "head.weight": state["head.weight"] * 1e200},
            net.graph,
        )


def test_what_is_done_is_told_as_text_as_values_and_as_a_report(tmp_path) -> None:
    net = NETS["gpt"]()
    graph = with_folds(net, blocked=[Blocked("ln_f.bias", "no_bias", "lm_head.weight")])
    net.model.h[0].c_attn.weight.data[:, 0] = 0
    net.model.h[0].c_attn.bias.data[0] = 0
    folded = fold(net.model, graph, *net.inputs)
    text = folded.explain()
    assert text.startswith("15 folds: 1 Untie, 4 Shift, 5 Gain, 2 Zero, 2 Through, 1 Mean.")
    assert "4 spaces balanced" in text and "1 unit or direction had an empty side" in text
    assert "ln_f.bias stays: lm_head.weight reads it" in text
    facts = json.loads(json.dumps(folded.facts()))
    assert len(facts["folds"]) == 15 and [one["group"] for one in facts["balanced"]] == ["qk0", "vo0", "qk1", "vo1"]
    assert facts["balanced"][0]["empty"] == 1
    pytest.importorskip("matplotlib")
    write_report(folded.report("Folded", facts={"network": "gpt"}), tmp_path / "report.md")
    written = (tmp_path / "report.md").read_text().replace("\\", "")
    assert all(str(one) in written for one in folded.graph.folds)
    assert "Folded(15 folds, 4 balanced spaces)" in repr(folded)
    nothing = fold(NETS["mlp, relu"]().model, with_folds(NETS["mlp, relu"](), balances=()), balance=False)
    assert nothing.explain().startswith("0 folds.")
    write_report(nothing.report(), tmp_path / "none.md")
