"""`verify` on models that do more inside than compute: cast to narrower types, keep what they computed."""

from __future__ import annotations

import gc
from typing import Any, ClassVar
from weakref import WeakSet

import pytest
import torch
from torch import Tensor, nn

from alignkit import SymmetryGraph
from alignkit.errors import VerificationError

X = torch.linspace(-1, 1, 12).reshape(4, 3)
SPEC = {"one.weight": "h .", "one.bias": "h", "scale": "h", "two.weight": ". h", "two.bias": "."}


class Hidden(nn.Module):
    """A hidden layer with a scale for each unit."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.one, self.two = nn.Linear(3, 8), nn.Linear(8, 2)
        self.scale = nn.Parameter(torch.rand(8) + 0.5)

    def scaled(self, x: Tensor) -> Tensor:
        return x * self.scale

    def forward(self, x: Tensor) -> Tensor:
        return self.two(torch.tanh(self.scaled(self.one(x))))


class Narrow(Hidden):
    """Normalises in float32, or in half precision, whatever its weights are, as language models do."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def scaled(self, x: Tensor) -> Tensor:
        wide = x.dtype
        x = x.to(self.dtype)
        return (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True))).to(wide) * self.scale


class Caching(Hidden):
    """Keeps its squared scale from the first run on, as some attention layers keep their biases."""

    def __init__(self) -> None:
        super().__init__()
        self.cache: dict[str, Tensor] = {}

    def scaled(self, x: Tensor) -> Tensor:
        if "scale" not in self.cache:
            self.cache["scale"] = self.scale**2
        return x * self.cache["scale"]

    def _apply(self, *args: object, **kwargs: object) -> nn.Module:
        self.cache = {}
        return super()._apply(*args, **kwargs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_casts_inside_do_not_count_as_errors(dtype: torch.dtype) -> None:
    model = Narrow(dtype)
    proof = SymmetryGraph.from_spec(SPEC, model).verify(model, X)
    assert proof.dtype == "float64"
    assert proof.error < 1e-12


def test_casts_inside_do_not_hide_errors() -> None:
    model = Narrow(torch.bfloat16)
    wrong = SPEC | {"scale": "."}
    with pytest.raises(VerificationError, match="'h'"):
        SymmetryGraph.from_spec(wrong, model).verify(model, X)


def test_models_that_keep_what_they_computed() -> None:
    model = Caching()
    with torch.no_grad():
        model(X)
    assert SymmetryGraph.from_spec(SPEC, model).verify(model, X).error < 1e-12


class Counted(Hidden):
    """Counts its living copies whenever it is copied."""

    living: ClassVar[WeakSet[Counted]] = WeakSet()
    most = 0

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        gc.collect()
        self.living.add(self)
        Counted.most = max(Counted.most, len(self.living))


def test_no_more_than_two_copies_of_a_model_are_held() -> None:
    model = Counted()
    SymmetryGraph.from_spec(SPEC, model).verify(model, X)
    assert Counted.most == 2


class RefusesFloat64(Counted):
    """Fails in float64, as some kernels do and as the lack of memory does."""

    def scaled(self, x: Tensor) -> Tensor:
        if x.dtype == torch.float64:
            raise RuntimeError("no kernel")
        return super().scaled(x)


def test_copies_in_float64_are_let_go_before_float32_is_tried() -> None:
    Counted.most = 0
    assert SymmetryGraph.from_spec(SPEC, model := RefusesFloat64()).verify(model, X).dtype == "float32"
    assert Counted.most == 2
