"""Writes into parts of a tensor: what other tensors on the same memory hold afterwards."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from alignkit.tracing import trace
from alignkit.tracing.labels.writes import box_of
from alignkit.tracing.recording.recorder import TensorRef
from helpers.trace_checks import keeps_function


@st.composite
def views(draw: st.DrawFn, tensor: Tensor) -> Tensor:
    for _ in range(draw(st.integers(0, 4))):
        kind = draw(st.sampled_from(["slice", "select", "transpose", "unsqueeze", "reshape"]))
        d = draw(st.integers(0, max(tensor.dim() - 1, 0)))
        if kind == "unsqueeze" or not tensor.dim():
            tensor = tensor.unsqueeze(d)
        elif kind == "slice":
            start = draw(st.integers(0, tensor.shape[d] - 1))
            stop = draw(st.integers(start + 1, tensor.shape[d]))
            index = [slice(None)] * d + [slice(start, stop, draw(st.integers(1, 3)))]
            tensor = tensor[tuple(index)]
        elif kind == "select":
            tensor = tensor.select(d, draw(st.integers(0, tensor.shape[d] - 1)))
        elif kind == "transpose":
            tensor = tensor.transpose(d, draw(st.integers(0, tensor.dim() - 1)))
        elif tensor.is_contiguous():
            tensor = tensor.view(-1)
    return tensor


@given(st.data())
def test_a_box_names_the_elements_of_a_part(data: st.DataObject) -> None:
    shape = data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=3))
    memory = torch.arange(int(torch.Size(shape).numel())).reshape(shape)
    whole, part = data.draw(views(memory)), data.draw(views(memory))
    box = box_of(TensorRef.of(whole).key, TensorRef.of(part).key)
    if box is None:
        return
    taken = whole
    for d, (positions, _) in enumerate(box):
        taken = taken.index_select(d, torch.tensor(positions))
    order = sorted((j, d) for d, (_, j) in enumerate(box) if j is not None)
    rest = [d for d in range(whole.dim()) if d not in [d for _, d in order]]
    assert torch.equal(taken.permute([*[d for _, d in order], *rest]).reshape(part.shape), part)


class Fills(nn.Module):
    """Two layers of 6 and 4 units, and one more of 6, whose outputs are written somewhere before they are read."""

    def __init__(self, fill: Callable[[Fills, Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.six, self.four, self.other = nn.Linear(5, 6), nn.Linear(5, 4), nn.Linear(5, 6)
        self.read_ten, self.read_six, self.fill = nn.Linear(10, 2), nn.Linear(6, 2), fill

    def forward(self, x: Tensor) -> Tensor:
        return self.fill(self, x)


def side_by_side(m: Fills, x: Tensor) -> Tensor:
    y = x.new_empty(len(x), 10)
    y[:, 4:] = m.six(x)
    y[:, :4].copy_(m.four(x))
    return m.read_ten(y.relu())


def filled_by_out(m: Fills, x: Tensor) -> Tensor:
    y = torch.zeros(len(x), 10, dtype=x.dtype)
    torch.sin(m.six(x), out=y.narrow(1, 0, 6))
    y.split([6, 4], 1)[1].add_(m.four(x))
    return m.read_ten(y)


def transposed(m: Fills, x: Tensor) -> Tensor:
    y = torch.zeros(10, len(x), dtype=x.dtype)
    y[:6] = m.six(x).T
    y[6:] += m.four(x).T
    return m.read_ten(y.T)


def over_time(m: Fills, x: Tensor) -> Tensor:
    y = x.new_zeros(3, len(x), 6)
    for t in range(3):
        y[t] = m.six(x * (t + 1))
    return m.read_six(y.tanh()).prod(0)


def one_by_one(m: Fills, x: Tensor) -> Tensor:
    y, h = x.new_zeros(len(x), 6), m.six(x)
    for b in range(len(x)):
        y[b] = h[b]
    return m.read_six(y.sin())


def interleaved(m: Fills, x: Tensor) -> Tensor:
    y = x.new_zeros(len(x), 12)
    y[:, ::2], y[:, 1::2] = m.six(x), m.other(x)
    return m.read_six(y.view(-1, 6, 2).tanh().prod(2))


def old_views(m: Fills, x: Tensor) -> Tensor:
    h = m.six(x)
    whole, whole_again = h.unsqueeze(1), h[:, None]
    h.mul_(m.other(x))
    return m.read_six(whole[:, 0]) + m.read_six(whole_again.sin()[:, 0])


def kept_views(m: Fills, x: Tensor) -> Tensor:
    both = torch.cat([m.six(x), m.other(x)], 1)
    left, right = both.chunk(2, 1)
    left.mul_(right).tanh_()
    return m.read_six(left) + m.read_six(right)


def overwritten(m: Fills, x: Tensor) -> Tensor:
    h = m.six(x)
    h[:] = m.other(x)
    return m.read_six(h.relu())


# Layouts by hand: g are the units of `six`, k of `four`, o of `other`.
FILLS: dict[str, tuple[Callable[[Fills, Tensor], Tensor], dict[str, str]]] = {
    "side by side": (side_by_side, {"six.weight": "g .", "four.weight": "k .", "read_ten.weight": ". k+g"}),
    "by out=": (filled_by_out, {"six.weight": "g .", "four.weight": "k .", "read_ten.weight": ". g+k"}),
    "transposed": (transposed, {"six.weight": "g .", "four.weight": "k .", "read_ten.weight": ". g+k"}),
    "over time": (over_time, {"six.weight": "g .", "read_six.weight": ". g"}),
    "one by one": (one_by_one, {"six.weight": "g .", "read_six.weight": ". g"}),
    "interleaved": (interleaved, {"six.weight": "g .", "other.weight": "g .", "read_six.weight": ". g"}),
    "old views": (old_views, {"six.weight": "g .", "other.weight": "g .", "read_six.weight": ". g"}),
    "kept views": (kept_views, {"six.weight": "g .", "other.weight": "g .", "read_six.weight": ". g"}),
    "overwritten": (overwritten, {"other.weight": "o .", "read_six.weight": ". o"}),
}


@pytest.mark.parametrize("name", FILLS)
@torch.no_grad()
def test_units_are_found_wherever_they_are_written(name: str) -> None:
    fill, expected = FILLS[name]
    model, x = Fills(fill), torch.linspace(-1, 1, 20).reshape(4, 5).sin()
    graph = trace(model, x)
    spec = graph.spec()
    layers = {"g": "six", "k": "four", "o": "other"}
    names = {letter: spec[f"{layer}.weight"].split()[0] for letter, layer in layers.items()}
    assert "." not in [names[letter] for letter in "".join(expected.values()) if letter in names]
    assert {key: spec[key] for key in expected} == {
        key: "".join(names.get(letter, letter) for letter in text) for key, text in expected.items()
    }
    keeps_function(model, graph, (x,), (x[:1],), (x.repeat(2, 1),))


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_gru_layers_and_directions_have_units_of_their_own(layers: int, bidirectional: bool) -> None:
    class Reads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.gru = nn.GRU(5, 6, layers, batch_first=True, bidirectional=bidirectional)
            self.out = nn.Linear(12 if bidirectional else 6, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.gru(x)[0])

    model, x = Reads(), torch.linspace(-1, 1, 40).reshape(2, 4, 5).sin()
    graph = trace(model, x)
    assert [group.size for group in graph.groups.values()] == [6] * layers * (1 + bidirectional)
    first = graph.spec()["gru.weight_hh_l0"].split()
    assert first == [f"{first[1]}+{first[1]}+{first[1]}", first[1]]
    keeps_function(model, graph, (x,), (x[:, :1],), (torch.cat([x, x.flip(1)], 1),))
