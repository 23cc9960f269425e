"""Elements that pass the dispatcher by: followed, or everything that they touch stays where it is."""

from __future__ import annotations

import copy
import pickle
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes

from alignkit.graph import SymmetryGraph
from alignkit.tracing import trace
from helpers.trace_checks import keeps_function

X = torch.linspace(-1, 1, 20).reshape(4, 5).sin()


class TwoWays(nn.Module):
    """Hidden units of two layers, which reach the output in two ways: by ops, and by what `pass_on` does to them."""

    def __init__(self, pass_on: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.pass_on = nn.Linear(5, 6), nn.Linear(5, 6), pass_on
        self.seen, self.unseen = nn.Linear(6, 2), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        seen, unseen = self.pass_on(torch.tanh(self.a(x)), self.b(x))
        return self.seen(seen) + self.unseen(unseen.sin())


class Named(Tensor):
    """A class of tensors that changes nothing."""


class Wrapper(Tensor):
    """A class of tensors that holds another one and computes by it."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> Wrapper:
        made = Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype, device=inner.device)
        made.inner = inner
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return cls(func(*(x.inner if isinstance(x, cls) else x for x in args), **(kwargs or {})))


def set_data(h: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
    before = h * 1
    h.data = k.data
    return before, h


def swap(h: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
    torch.utils.swap_tensors(h, k)
    return h, k


def write_whole(h: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
    target = torch.zeros_like(h)
    alias = target.view(-1, 2, 3).view(-1, 6)
    torch.mul(h, k, out=target)
    return alias, target.detach()


def write_part(h: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
    whole = torch.zeros(len(h), 12, dtype=h.dtype)
    torch.tanh(h, out=whole[:, :6])
    torch.sigmoid(k, out=whole[:, 6:])
    return whole[:, :6], whole[:, 6:]


FOLLOWED: dict[str, tuple[Callable[..., Any], list[int]]] = {
    "as_subclass": (lambda h, k: (h, (h.as_subclass(Named) * 2).as_subclass(Tensor)), [6]),
    "as_subclass of a view": (lambda h, k: (k, (h[:, None].as_subclass(Named) * 2)[:, 0].as_subclass(Tensor)), [6, 6]),
    "data of a tensor": (lambda h, k: (h, k.data.exp()), [6, 6]),
    "set data": (set_data, [6, 6]),
    "swapped tensors": (swap, [6, 6]),
    "a parameter made of it": (lambda h, k: (k, nn.Parameter(h.detach())), [6, 6]),
    "out= seen by a view": (write_whole, [6]),
    "out= of views": (write_part, [6, 6]),
    "a view of the same shape": (lambda h, k: (h, h.as_strided(h.shape, h.stride())), [6]),
    "bits": (lambda h, k: (h, h.view(torch.int32 if h.dtype == torch.float32 else torch.int64).view(h.dtype)), [6]),
}


@pytest.mark.parametrize("name", FOLLOWED)
@torch.no_grad()
def test_elements_are_known_by_their_memory(name: str) -> None:
    function, sizes = FOLLOWED[name]
    model = TwoWays(function)
    graph = trace(model, X)
    assert sorted(group.size for group in graph.groups.values()) == sizes
    keeps_function(model, graph, (X,), (X[:1],))


def numbers(h: Tensor) -> Tensor:
    return torch.tensor([[float(value) for value in row] for row in h], dtype=h.dtype)


def by_memory(h: Tensor) -> Tensor:
    return torch.empty(0, dtype=h.dtype).set_(h.untyped_storage(), 0, h.shape)


def copied_memory(h: Tensor) -> Tensor:
    target = torch.zeros_like(h)
    target.untyped_storage().copy_(h.untyped_storage())
    return target


def array_of_target(h: Tensor) -> Tensor:
    target = torch.zeros(h.shape, dtype=h.dtype)
    array = target.numpy()
    target.copy_(h)
    return torch.from_numpy(array)


def write_by_array(h: Tensor) -> Tensor:
    target = torch.zeros(h.shape, dtype=h.dtype)
    target.numpy()[...] = h.numpy()
    return target


def two_tensors_on_an_array(h: Tensor) -> Tensor:
    array = np.zeros(tuple(h.shape), {torch.float32: np.float32, torch.float64: np.float64}[h.dtype])
    torch.from_numpy(array).copy_(h)
    return torch.from_numpy(array)


def in_a_thread(h: Tensor) -> Tensor:
    results: list[Tensor] = []

    def double() -> None:
        with torch.no_grad():
            results.append(h * 2)

    thread = threading.Thread(target=double)
    thread.start()
    thread.join()
    return results[0]


def without_modes(h: Tensor) -> Tensor:
    with _disable_current_modes():
        return h * 2


def apply_each(h: Tensor) -> Tensor:
    place = iter(range(10**6))
    return h.clone().apply_(lambda value: value * next(place))


def transposed_in_place(h: Tensor) -> Tensor:
    square = h[:, :, None] * h[:, None].exp()
    return square.as_strided_(square.shape, (36, 1, 6)).sum(1)


def each(write: Callable[[list[Tensor], list[Tensor]], object]) -> Callable[[Tensor], Tensor]:
    def run(h: Tensor) -> Tensor:
        whole = torch.zeros(len(h), 12, dtype=h.dtype)
        write([whole[:, :6]], [h])
        return whole[:, :6] + whole[:, 6:]

    return run


PINNED: dict[str, Callable[[Tensor], Tensor]] = {
    "numpy": lambda h: torch.from_numpy(h.numpy().copy()),
    "numpy of a view": lambda h: torch.from_numpy(h.view(-1).numpy().copy()).view(h.shape),
    "numpy function": lambda h: torch.from_numpy(np.cumsum(np.asarray(h), 1)),
    "tolist": lambda h: torch.tensor(h.tolist(), dtype=h.dtype),
    "numbers": numbers,
    "array that shares memory": array_of_target,
    "written by an array": write_by_array,
    "two tensors on an array": two_tensors_on_an_array,
    "storage": by_memory,
    "copied storage": copied_memory,
    "set_": lambda h: torch.empty(0, dtype=h.dtype).set_(h),
    "pickle": lambda h: pickle.loads(pickle.dumps(h)),
    "deepcopy": copy.deepcopy,
    "dlpack": lambda h: torch.from_dlpack(h),
    "a function for each element": apply_each,
    "other strides in place": transposed_in_place,
    "a thread": in_a_thread,
    "modes that are off": without_modes,
    "a class that computes": lambda h: (Wrapper(h) * 2).inner,
    "foreach through a view": each(torch._foreach_add_),
    "foreach copy through a view": each(torch._foreach_copy_),
}


@pytest.mark.parametrize("name", PINNED)
@torch.no_grad()
def test_elements_that_nobody_can_follow_stay(name: str) -> None:
    model = TwoWays(lambda h, k: (h, PINNED[name](h)))
    graph = trace(model, X)
    keeps_function(model, graph, (X,), (X[:1],))
    assert_fixed(graph)


def assert_fixed(graph: SymmetryGraph) -> None:
    """Hidden units of the first layer stay. Those of the second are not read."""
    assert not graph.groups
    assert graph.spec()["a.weight"] == ". ."
    assert {pin.tensor for pin in graph.provenance.pinned} >= {"a.weight", "a.bias", "seen.weight"}


@torch.no_grad()
def test_the_report_names_what_gave_elements_away() -> None:
    graph = trace(TwoWays(lambda h, k: (h, torch.tensor(h.tolist(), dtype=h.dtype))), X)
    assert "a.bias, axis 0: pinned by torch.Tensor.tolist" in graph.report()
    assert "torch::Tensor.tolist" in graph.provenance.unknown_ops
    graph = trace(TwoWays(lambda h, k: (h, in_a_thread(h))), X)
    assert "unrecorded::op" in graph.provenance.unknown_ops


@torch.no_grad()
def test_an_array_pins_only_its_own_tensor() -> None:
    model = TwoWays(lambda h, k: (h, k * float(k.detach()[:, :1].numpy().shape[1]) + np.float64(2.0)))
    graph = trace(model, X)
    assert [group.size for group in graph.groups.values()] == [6]
    assert graph.spec()["a.weight"] != ". ."
    assert graph.spec()["b.weight"] == ". ."
    keeps_function(model, graph, (X,), (X[:1],))


def test_sizes_and_dtypes_are_no_elements() -> None:
    model = TwoWays(
        lambda h, k: (h.reshape(h.size(0), -1).contiguous().to(h.dtype), k[: len(k)] * k.dim() * k.shape[0])
    )
    graph = trace(model, X)
    assert sorted(group.size for group in graph.groups.values()) == [6, 6]
    assert graph.provenance.unknown_ops == ()
