"""Every fold keeps the function, one by one, and can be undone."""

from __future__ import annotations

import pytest
import torch

from alignkit.errors import FoldError
from alignkit.graph import AxisOf, Gain, OutputScale
from alignkit.graph.folded import what_is_unfolded
from alignkit.rewriting import WideWeights, fold_weights, unfold_weights
from helpers.folding_nets import NETS, outputs

FOLDING = [name for name, make in NETS.items() if make().graph.folds]


def error(left: torch.Tensor, right: torch.Tensor) -> float:
    return float((left - right).abs().max() / right.abs().max())


@pytest.mark.parametrize("name", FOLDING)
def test_each_fold_keeps_the_function_and_changes_weights(name: str) -> None:
    model, graph, inputs = NETS[name]()
    weights, before = WideWeights(dict(model.state_dict())), outputs(model, {}, inputs)
    for fold in graph.folds:
        old = {key: tensor.clone() for key, tensor in weights.wide.items()}
        fold_weights(weights, [fold])
        assert error(outputs(model, weights.wide, inputs), before) < 1e-12, fold
        changed = [k for k, t in weights.wide.items() if not torch.equal(t, old.get(k, model.state_dict()[k]))]
        assert changed or type(fold).__name__ == "Untie", fold
    assert not list(what_is_unfolded(graph.folds, {**model.state_dict(), **weights.wide}))


@pytest.mark.parametrize("name", FOLDING)
def test_folds_are_undone_by_what_they_took(name: str) -> None:
    model, graph, inputs = NETS[name]()
    own = dict(model.state_dict())
    weights = WideWeights(own)
    taken = fold_weights(weights, graph.folds)
    unfold_weights(weights, taken)
    for key, tensor in weights.wide.items():
        torch.testing.assert_close(tensor, own[key], rtol=1e-12, atol=1e-12)
    # What was taken from one network can be put into another one: its function stays, too.
    other = NETS[name](seed=1).model
    weights = WideWeights(dict(other.state_dict()))
    fold_weights(weights, graph.folds)
    unfold_weights(weights, taken)
    assert error(outputs(other, weights.wide, inputs), outputs(other, {}, inputs)) < 1e-12


@pytest.mark.parametrize("name", FOLDING)
def test_folding_twice_is_folding_once(name: str) -> None:
    model, graph, _ = NETS[name]()
    once = WideWeights(dict(model.state_dict()))
    fold_weights(once, graph.folds)
    twice = WideWeights(once.wide)
    fold_weights(twice, graph.folds)
    for key, tensor in twice.wide.items():
        torch.testing.assert_close(tensor, once.wide[key], rtol=1e-14, atol=1e-14)


def test_a_gain_of_0_folds_and_has_no_inverse() -> None:
    model, graph, inputs = NETS["llama"]()
    model.norm.weight.data[2] = 0
    weights = WideWeights(dict(model.state_dict()))
    taken = fold_weights(weights, graph.folds)
    assert error(outputs(model, weights.wide, inputs), outputs(model, {}, inputs)) < 1e-12
    with pytest.raises(FoldError, match=r"'norm\.weight' was 0 at position 2"):
        unfold_weights(weights, taken)


def test_a_shift_that_stays_is_not_divided_by_0() -> None:
    model, graph, inputs = NETS["gpt"]()
    model.ln_f.weight.data[3] = 0
    with pytest.raises(FoldError, match=r"'ln_f\.weight' is 0 at position 3, where 'ln_f\.bias' is not"):
        fold_weights(WideWeights(dict(model.state_dict())), graph.folds)
    model.ln_f.bias.data[3] = 0
    weights = WideWeights(dict(model.state_dict()))
    fold_weights(weights, graph.folds)
    assert error(outputs(model, weights.wide, inputs), outputs(model, {}, inputs)) < 1e-12


def test_weights_that_are_whole_numbers_are_refused() -> None:
    codes = {"gain": torch.ones(3), "codes": torch.zeros(2, 3, dtype=torch.int8)}
    with pytest.raises(FoldError, match=r"'codes' holds int8.*Dequantise"):
        fold_weights(WideWeights(codes), [Gain("gain", (AxisOf("codes", 1),))])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_results_are_rounded_once_and_refused_where_they_overflow(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    own = {
        "scale": torch.randn(3, generator=generator).to(dtype),
        "weight": torch.randn(3, 4, generator=generator).to(dtype),
    }
    weights = WideWeights(own)
    fold_weights(weights, [OutputScale("scale", (AxisOf("weight", 0),))])
    exact = own["weight"].double() * own["scale"].double()[:, None]
    assert torch.equal(weights.rounded()["weight"], exact.to(dtype))
    largest = torch.finfo(dtype).max
    large = {"scale": torch.full((3,), 2.0, dtype=dtype), "weight": torch.full((3, 4), largest, dtype=dtype)}
    weights = WideWeights(large)
    fold_weights(weights, [OutputScale("scale", (AxisOf("weight", 0),))])
    with pytest.raises(FoldError, match="'weight' overflows"):
        weights.rounded()
