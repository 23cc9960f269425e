"""Tensors of outputs are found in any object, or the object is refused."""

from __future__ import annotations

import functools
from collections import deque, namedtuple
from collections.abc import Callable
from dataclasses import dataclass
from types import MappingProxyType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import alignkit
from alignkit.errors import OutputError, VerificationError
from alignkit.graph import SymmetryGraph

X = torch.linspace(-1, 1, 20).reshape(4, 5).sin()


class Slots:
    __slots__ = ("__hidden", "unset")

    def __init__(self, hidden: Tensor) -> None:
        self.__hidden = hidden


class SlotsBelow(Slots):
    """Has a dict as well."""


@dataclass(slots=True)
class SlottedData:
    hidden: Tensor


class Cache:
    """A cache of the user's own: what it holds is an output."""

    def __init__(self, hidden: Tensor) -> None:
        self.hidden = hidden


class Keeps(nn.Module):
    def __init__(self, hidden: Tensor) -> None:
        super().__init__()
        self.hidden, self.weight = hidden, nn.Parameter(torch.zeros(3))


Pair = namedtuple("Pair", "first second")


def in_an_array(hidden: Tensor) -> np.ndarray:
    array = np.empty(1, dtype=object)
    array[0] = hidden
    return array


FOUND: dict[str, Callable[[Tensor], Any]] = {
    "slots": Slots,
    "slots of a base": SlotsBelow,
    "a slotted dataclass": SlottedData,
    "a class called Cache": Cache,
    "a module": Keeps,
    "a named tuple": lambda h: Pair(1, h),
    "a deque": lambda h: deque([h]),
    "a set": lambda h: {h},
    "a key": lambda h: {h: 1},
    "a proxy": lambda h: MappingProxyType({"h": h}),
    "the values of a dict": lambda h: {"h": h}.values(),
    "a namespace": lambda h: SimpleNamespace(inner=SimpleNamespace(h=h)),
    "a closure": lambda h: lambda: h,
    "a default": lambda h: lambda x=h: x,
    "a partial": lambda h: functools.partial(print, h),
    "a method": lambda h: Cache(h).__init__,
    "an array of objects": in_an_array,
    "a distribution": lambda h: torch.distributions.Normal(h, 1.0, validate_args=False),
}


class Returns(nn.Module):
    """A hidden layer, which it also returns in some object."""

    def __init__(self, wrap: Callable[[Tensor], Any]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.o, self.wrap = nn.Linear(5, 6), nn.Linear(6, 3), wrap

    def forward(self, x: Tensor) -> Any:
        h = torch.tanh(self.a(x))
        return self.o(h), self.wrap(h)


SPEC = {"a.weight": "h .", "a.bias": "h", "o.weight": ". h", "o.bias": "."}


@pytest.mark.parametrize("name", FOUND)
def test_units_that_an_output_shows_are_fixed_and_a_graph_that_frees_them_fails(name: str) -> None:
    model = Returns(FOUND[name])
    assert not alignkit.trace(model, X).groups
    with pytest.raises(VerificationError, match="'h'"):
        SymmetryGraph.from_spec(SPEC, model).verify(model, X)


REFUSED: dict[str, Callable[[Tensor], Any]] = {
    "generator": lambda h: (row for row in h),
    "map": lambda h: map(torch.relu, [h]),
    "list_iterator": lambda h: iter([h]),
    "UntypedStorage": lambda h: h.untyped_storage(),
}


@pytest.mark.parametrize("name", REFUSED)
def test_an_object_that_may_hide_tensors_is_refused(name: str) -> None:
    model = Returns(REFUSED[name])
    with pytest.raises(OutputError, match=f"an object of type {name}.* Return tensors"):
        alignkit.trace(model, X)
    with pytest.raises(OutputError, match=name):
        SymmetryGraph.from_spec(SPEC, model).verify(model, X)


def test_values_without_tensors_pin_nothing() -> None:
    model = Returns(lambda h: {"shape": h.shape, "dtype": h.dtype, "n": 3, "f": 0.5, "t": torch.Tensor, "g": nn.ReLU()})
    graph = alignkit.trace(model, X)
    assert [group.size for group in graph.groups.values()] == [6]
    graph.verify(model, X)
