"""`verify`: right graphs pass, wrong ones name the guilty group."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from alignkit import SymmetryGraph
from alignkit.errors import AlignmentError, VerificationError
from alignkit.graph.proof.verify import same_function

X = torch.linspace(-1, 1, 12).reshape(4, 3)


def mlp() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2))


SPEC = {
    "0.weight": "h .", "0.bias": "h",
    "1.weight": "h", "1.bias": "h", "1.running_mean": "h", "1.running_var": "h",
    "3.weight": "k h", "3.bias": "k",
    "5.weight": ". k", "5.bias": ".",
}  # fmt: skip


def alive(model: nn.Module) -> nn.Module:
    """Statistics and norms that differ from unit to unit, as after training."""
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name.startswith("1.") and tensor.is_floating_point():
                tensor.copy_(torch.rand_like(tensor) + 0.5)
    return model


def graph_with(**changes: str) -> SymmetryGraph:
    return SymmetryGraph.from_spec(SPEC | {name.replace("_", ".", 1): text for name, text in changes.items()}, mlp())


class Wrapped(nn.Module):
    """One hidden layer whose output goes through a function."""

    def __init__(self, after: Callable[[Tensor], object]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.one, self.two = nn.Linear(3, 4), nn.Linear(4, 2)
        self.after = after

    def forward(self, x: Tensor) -> object:
        return self.after(self.two(torch.relu(self.one(x))))


HIDDEN = {"one.weight": "h .", "one.bias": "h", "two.weight": ". h", "two.bias": "."}


def check(after: Callable[[Tensor], object], **spec: str) -> None:
    model = Wrapped(after)
    SymmetryGraph.from_spec(HIDDEN | {k.replace("_", "."): v for k, v in spec.items()}, model).verify(model, X)


def test_a_right_graph_passes_in_float64() -> None:
    result = graph_with().verify(alive(mlp()), X, draws=5)
    assert result.dtype == "float64"
    assert result.error <= result.tolerance == 1e-9
    assert result.draws == 5


def test_the_model_is_left_as_it_is() -> None:
    model = alive(mlp()).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    graph_with().verify(model, X)
    assert model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert model[0].weight.dtype == torch.float32


@pytest.mark.parametrize(
    ("changes", "guilty", "innocent"),
    [
        ({"0_bias": "."}, "h", "k"),
        ({"3_bias": "."}, "k", "h"),
        ({"5_weight": ". ."}, "k", "h"),
        ({"1_running_var": "."}, "h", "k"),
        ({"5_bias": "o", "5_weight": "o k"}, "o", "h"),
    ],
)
def test_a_wrong_graph_names_the_guilty_group(changes: dict[str, str], guilty: str, innocent: str) -> None:
    with pytest.raises(VerificationError) as caught:
        graph_with(**changes).verify(alive(mlp()), X)
    assert f"- {guilty!r}, which acts on" in str(caught.value)
    assert f"- {innocent!r}" not in str(caught.value)
    assert "tolerance 1e-09 in float64" in str(caught.value)


def test_a_wrong_family_is_told_from_its_right_parent() -> None:
    class Heads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(1)
            self.up, self.down = nn.Linear(3, 6, bias=False), nn.Linear(6, 2, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.down(torch.cumsum(self.up(x).reshape(-1, 3, 2), -1).reshape(-1, 6))

    model = Heads()
    spec = {"up.weight": "(heads d[heads]) .", "down.weight": ". (heads d[heads])"}
    graph = SymmetryGraph.from_spec(spec, model, sizes={"heads": 3})
    with pytest.raises(VerificationError, match=r"- 'd', which acts on up\.weight, down\.weight") as caught:
        graph.verify(model, X)
    assert "- 'heads'" not in str(caught.value)


def test_groups_that_are_wrong_only_together() -> None:
    class Product(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Parameter(torch.tensor([0.0, 0.0, 1.0])), nn.Parameter(torch.tensor([1.0, 1.0, 2.0]))

        def forward(self) -> Tensor:
            return (self.a.sort().values * self.b.sort().values).sum() + (self.a != 1).logical_or(self.b != 2).sum()

    model = Product()
    graph = SymmetryGraph.from_spec({"a": "g", "b": "k"}, model)
    with pytest.raises(VerificationError, match="'g'"):
        graph.verify(model, seed=0, draws=20)


def test_outputs_of_every_kind_are_compared() -> None:
    @dataclass
    class Output:
        logits: Tensor

    for after in (
        lambda y: {"a": [y, (y,)]},
        lambda y: Output(y),
        lambda y: (y.argmax(), torch.complex(y, y)),
        lambda y: (y, torch.zeros(0)),
    ):
        check(after)
        with pytest.raises(VerificationError, match="'h'"):
            check(after, two_weight=". .")


def test_a_change_in_the_second_output_is_seen() -> None:
    class Two(Wrapped):
        def forward(self, x: Tensor) -> object:
            hidden = torch.relu(self.one(x))
            return self.two(hidden), hidden

    model = Two(lambda y: y)
    with pytest.raises(VerificationError, match="'h'"):
        SymmetryGraph.from_spec(HIDDEN, model).verify(model, X)


def test_inputs_by_name_and_inputs_that_are_changed_in_place() -> None:
    class InPlace(Wrapped):
        def forward(self, x: Tensor, *, scale: Tensor) -> object:
            return super().forward(x.mul_(scale))

    model, x = InPlace(lambda y: y), X.clone()
    SymmetryGraph.from_spec(HIDDEN, model).verify(model, x, scale=torch.tensor(2.0))
    assert torch.equal(x, X)


def test_a_random_model_is_named_as_such() -> None:
    with pytest.raises(VerificationError, match="the model is random: two runs of it differ"):
        check(lambda y: y + torch.rand(()))


def test_a_random_model_is_not_taken_for_two_that_differ() -> None:
    model = Wrapped(lambda y: y + torch.rand(()))
    with pytest.raises(VerificationError, match="the model is random: two runs of it differ"):
        same_function(model, model, X)
    plain, other = Wrapped(lambda y: y), Wrapped(lambda y: y + 1)
    other.load_state_dict(plain.state_dict())
    assert same_function(plain, plain, X).same and not same_function(plain, other, X).same


def test_a_model_that_is_nan_now_and_then_is_random() -> None:
    calls = iter(range(100))
    with pytest.raises(VerificationError, match="the model is random"):
        check(lambda y: (y, y * float("nan") if next(calls) else y))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_outputs_without_a_number_cannot_be_compared(bad: float) -> None:
    with pytest.raises(VerificationError, match="returns NaN or infinity"):
        check(lambda y: y * bad)


def test_nan_that_a_symmetry_brings_is_a_failure() -> None:
    class Root(Wrapped):
        def forward(self, x: Tensor) -> object:
            return super().forward(x), (self.one.bias[0] - 3.5).sqrt()

    model = Root(lambda y: y)
    model.one.bias.data = torch.tensor([4.0, 3.0, 2.0, 1.0])
    with pytest.raises(VerificationError, match="largest relative change nan"):
        SymmetryGraph.from_spec(HIDDEN, model).verify(model, X, draws=10)


def test_a_model_without_floating_outputs_cannot_be_compared() -> None:
    with pytest.raises(VerificationError, match="no floating-point tensor"):
        check(lambda y: y.argmax(-1))


def refuse_float64(y: Tensor) -> Tensor:
    if y.dtype == torch.float64:
        raise RuntimeError("not implemented for 'Double'")
    return y


def test_float32_where_float64_is_refused() -> None:
    model = Wrapped(refuse_float64)
    result = SymmetryGraph.from_spec(HIDDEN, model).verify(model, X)
    assert (result.dtype, result.tolerance) == ("float32", 2e-4)
    with pytest.raises(VerificationError, match="in float32"):
        check(refuse_float64, two_weight=". .")


def test_the_models_own_error_is_shown() -> None:
    with pytest.raises(VerificationError, match=r"does not run on these inputs: .*shapes cannot be multiplied"):
        graph_with().verify(mlp(), torch.ones(2, 9))
    with pytest.raises(VerificationError, match=r"does not run on these inputs: TypeError: .*'unknown'"):
        graph_with().verify(mlp(), X, unknown=1)


def test_a_model_of_another_architecture_is_refused() -> None:
    other = nn.Sequential(nn.Linear(3, 7))
    with pytest.raises(AlignmentError, match=r"'0.weight' has shape \(7, 3\)"):
        graph_with().verify(other, X)


def test_a_graph_without_groups_passes() -> None:
    model = nn.Linear(3, 2)
    assert SymmetryGraph.from_spec({"weight": ". .", "bias": "."}, model).verify(model, X).error == 0
