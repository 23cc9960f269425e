"""The average keeps what models share, and names what they do not."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from alignkit.errors import MergeError
from alignkit.jobs.average import average, slerp


def states(count, seed=0):
    torch.manual_seed(seed)
    return [{"w": torch.randn(4, 3), "b": torch.randn(4)} for _ in range(count)]


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(5, 3)
        self.norm = nn.BatchNorm1d(3)
        self.head = nn.Linear(3, 5, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens):
        return self.head(self.norm(self.embed(tokens)))


# ---------------------------------------------------------------------- averages


@given(st.lists(st.floats(0, 10), min_size=1, max_size=5).filter(lambda shares: sum(shares) > 1e-3))
def test_average_is_the_weighted_mean(shares):
    models = states(len(shares))
    averaged = average(models, shares)
    for name in ("w", "b"):
        expected = sum(s * m[name].double() for s, m in zip(shares, models, strict=True)) / sum(shares)
        assert torch.allclose(averaged[name].double(), expected, atol=1e-6)


def test_equal_shares_without_weights():
    models = states(3)
    assert torch.allclose(average(models)["w"], torch.stack([m["w"] for m in models]).mean(0), atol=1e-7)


def test_modules_give_a_module_and_stay_as_they_are():
    models = [Tied(), Tied()]
    before = [{n: t.clone() for n, t in m.state_dict().items()} for m in models]
    models[1].norm.num_batches_tracked.fill_(7)
    before[1]["norm.num_batches_tracked"].fill_(7)
    averaged = average(models, [3, 1])
    assert isinstance(averaged, Tied)
    assert averaged.head.weight is averaged.embed.weight, "tied tensors were torn apart"
    expected = 0.75 * models[0].embed.weight + 0.25 * models[1].embed.weight
    assert torch.allclose(averaged.embed.weight, expected, atol=1e-6)
    assert int(averaged.norm.num_batches_tracked) == 7
    assert averaged.embed.weight.requires_grad
    for model, kept in zip(models, before, strict=True):
        assert all(torch.equal(t, kept[n]) for n, t in model.state_dict().items())


def test_mapping_keeps_ties_and_dtypes():
    state = Tied().half().state_dict()
    averaged = average([state, {n: t.clone() for n, t in state.items()}])
    assert averaged["embed.weight"].data_ptr() == averaged["head.weight"].data_ptr()
    assert {n: t.dtype for n, t in averaged.items()} == {n: t.dtype for n, t in state.items()}
    assert all(torch.equal(t, state[n]) for n, t in averaged.items()), "the mean of a model with itself moved"


def test_half_precision_sums_do_not_overflow():
    big = {"w": torch.full((2,), 60000.0, dtype=torch.float16)}
    assert torch.equal(average([big, big, big])["w"], big["w"])


# ---------------------------------------------------------------------- on the arc


@given(st.floats(0, 1), st.integers(0, 50))
def test_slerp_keeps_length_and_speed(t, seed):
    generator = torch.Generator().manual_seed(seed)
    a, b = (torch.randn(6, generator=generator, dtype=torch.float64) for _ in range(2))
    a, b = a / a.norm(), b / b.norm()
    averaged = slerp(a, b, t)
    angle = torch.acos((a @ b).clamp(-1, 1))
    assert math.isclose(float(averaged.norm()), 1, abs_tol=1e-9)
    assert math.isclose(float(torch.acos((a @ averaged).clamp(-1, 1))), t * float(angle), abs_tol=1e-6)


def test_slerp_ends_at_the_models_and_averages_statistics():
    models = [nn.BatchNorm1d(4), nn.BatchNorm1d(4)]
    for seed, model in enumerate(models):
        torch.manual_seed(seed)
        for tensor in (model.weight.data, model.bias.data, model.running_mean):
            tensor.normal_()
        model.running_var.uniform_(1, 2)
    ends = [average(models, [1 - end, end], "slerp").state_dict() for end in (0, 1)]
    for end, model in zip(ends, models, strict=True):
        assert all(torch.allclose(end[n], t) for n, t in model.state_dict().items())
    middle = average(models, method="slerp")
    assert torch.allclose(middle.running_var, (models[0].running_var + models[1].running_var) / 2)
    assert middle.weight.norm() > average(models).weight.norm()


@pytest.mark.parametrize("other", [torch.tensor([2.0, 0]), torch.tensor([-1.0, 0]), torch.zeros(2)])
def test_slerp_without_an_arc_is_the_line(other):
    a = torch.tensor([1.0, 0])
    assert torch.allclose(average([{"w": a}, {"w": other}], method="slerp")["w"], (a + other) / 2)


# ---------------------------------------------------------------------- what cannot be merged


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.pop("b"), "'b' is missing in model 1"),
        (lambda m: m.update(c=torch.zeros(1)), "'c' of model 1 is not in model 0"),
        (lambda m: m.update(w=torch.zeros(4, 2)), r"'w' has shape \(4, 2\) in model 1, model 0 says \(4, 3\)"),
        (lambda m: m.update(b=torch.zeros(4, dtype=torch.int64)), "'b' is torch.int64 in model 1"),
        (lambda m: m["w"].fill_(float("nan")), "'w' of model 1 holds NaN"),
    ],
)
def test_errors_name_model_and_tensor(change, message):
    models = states(2)
    change(models[1])
    with pytest.raises(MergeError, match=message):
        average(models)


def test_whole_numbers_have_to_agree():
    models = [{"ids": torch.tensor([1, 2])}, {"ids": torch.tensor([1, 2])}, {"ids": torch.tensor([1, 3])}]
    assert torch.equal(average(models[:2])["ids"], models[0]["ids"])
    with pytest.raises(MergeError, match=r"'ids' holds whole numbers .* model 2 differs"):
        average(models)


def test_ties_have_to_agree():
    tied, loose = Tied().state_dict(), {n: t.clone() for n, t in Tied().state_dict().items()}
    loose["head.weight"] += 1
    with pytest.raises(MergeError, match="tied in model 0 but differ in model 1"):
        average([tied, loose])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"models": []}, "no models"),
        ({"models": states(2), "weights": [1]}, "1 weight for 2 models"),
        ({"models": states(2), "weights": [1, -1]}, r"weights\[1\] is -1"),
        ({"models": states(2), "weights": [1, math.nan]}, r"weights\[1\] is nan"),
        ({"models": states(2), "weights": [0, 0]}, "all weights are 0"),
        ({"models": states(3), "method": "slerp"}, "found 3 models"),
        ({"models": [nn.Linear(2, 2), nn.Linear(2, 2).state_dict()]}, "a module, a mapping"),
    ],
)
def test_wrong_calls_are_refused(arguments, message):
    with pytest.raises(MergeError, match=message):
        average(**arguments)
