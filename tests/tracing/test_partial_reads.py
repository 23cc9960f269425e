"""Parameters that a run reads in part: what it leaves aside stays, whatever other inputs read of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from alignkit.graph import SymmetryGraph
from alignkit.tracing import trace
from helpers.trace_checks import counts, keeps_function, sizes

ROWS, READ = 9, 4
LENGTHS = (1, 2, READ, 6, ROWS)


def vectors(length: int) -> Tensor:
    return torch.linspace(-1, 1, 3 * length * 5).reshape(3, length, 5).sin()


def unread(graph: SymmetryGraph) -> dict[tuple[str, int], tuple[tuple[int, int], ...]]:
    return {(part.tensor, part.axis): part.ranges for part in graph.provenance.unread}


class ReadsRows(nn.Module):
    """Adds the mean of the first rows of a table, as many as the input is long."""

    def __init__(self, read: Callable[[Tensor, int], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table, self.read = nn.Parameter(torch.randn(ROWS, 6)), read
        self.a, self.o = nn.Linear(5, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.o(torch.relu(self.a(x) + self.read(self.table, x.shape[1]).mean(0)))


READS: dict[str, Callable[[Tensor, int], Tensor]] = {
    "a slice": lambda t, n: t[:n],
    "narrow": lambda t, n: t.narrow(0, 0, n),
    "select": lambda t, n: torch.stack([t[i] for i in range(n)]),
    "unbind": lambda t, n: torch.stack(t.unbind(0)[:n]),
    "split": lambda t, n: t.split([n, ROWS - n])[0],
    "a list": lambda t, n: t[list(range(n))],
    "index_select": lambda t, n: t.index_select(0, torch.arange(n)),
    "a transpose": lambda t, n: t.T[:, :n].T,
    "a view": lambda t, n: t.reshape(3, 3, 6).view(ROWS, 6)[:n],
    "a copy": lambda t, n: (t.clone() * 2)[:n],
    "after arithmetic": lambda t, n: (t.exp() + t.sum(0))[:n],
    "after a product": lambda t, n: (t * t.sum(1, keepdim=True))[:n],
    "beside zeros": lambda t, n: torch.cat([t, torch.zeros(1, 6, dtype=t.dtype)])[:n],
    "a slice of a slice": lambda t, n: t[: n + (n < ROWS)][:n],
    "the last rows": lambda t, n: t[ROWS - n :],
}


@pytest.mark.parametrize("name", READS)
def test_rows_are_fixed_and_told_however_some_are_read(name: str) -> None:
    model = ReadsRows(READS[name])
    graph = trace(model, vectors(READ))
    spec = graph.spec()
    (units,) = graph.groups
    assert spec["table"] == f". {units}"
    assert (spec["a.weight"], spec["a.bias"], spec["o.weight"]) == (f"{units} .", units, f". {units}")
    keeps_function(model, graph, *[(vectors(length),) for length in LENGTHS])
    if name == "after arithmetic":
        assert not graph.provenance.unread  # the sum takes all rows
    elif name not in ("a list", "index_select", "unbind", "beside zeros"):
        expected = (0, ROWS - READ - 1) if name == "the last rows" else (READ, ROWS - 1)
        assert unread(graph)["table", 0] == (expected,)
        assert f"table, axis 0: {expected[0]} to {expected[1]}" in graph.report()


def test_rows_that_are_all_read_stay_a_group() -> None:
    for halves in (False, True):
        model = ReadsRows(lambda t, n, halves=halves: t[:3] + t[3:6] + t[6:] if halves else t.tanh())
        graph = trace(model, vectors(READ))
        assert not graph.provenance.unread
        sizes = sorted(group.size for group in graph.groups.values())
        assert sizes == ([3, 6] if halves else [6, ROWS])
        keeps_function(model, graph, *[(vectors(length),) for length in LENGTHS])


class SlimMLP(nn.Module):
    """Uses as many hidden units as the caller says, by its weights or by what they give."""

    def __init__(self, by_weights: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.norm, self.o, self.by_weights = (
            nn.Conv2d(3, 8, 3),
            nn.BatchNorm2d(8),
            nn.Conv2d(8, 2, 1),
            by_weights,
        )
        self.enter = nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor, width: int) -> Tensor:
        x, norm = self.enter(x), self.norm
        if self.by_weights:
            h = F.conv2d(x, self.a.weight[:width], self.a.bias[:width])
            statistics = (norm.running_mean[:width], norm.running_var[:width])
            h = F.batch_norm(h, *statistics, norm.weight[:width], norm.bias[:width])
        else:
            h = norm(self.a(x))[:, :width]
        return F.conv2d(F.relu(h), self.o.weight[:, :width], self.o.bias)


@pytest.mark.parametrize("by_weights", [True, False])
def test_units_of_a_slimmable_layer_stay_and_those_before_it_move(by_weights: bool) -> None:
    model, image = SlimMLP(by_weights), torch.linspace(-1, 1, 75).reshape(1, 3, 5, 5).sin()
    graph = trace(model, image, 5)
    (units,) = graph.groups
    assert {name: text for name, text in graph.spec().items() if set(text) - set(". ")} == {
        "enter.weight": f"{units} . . .",
        "enter.bias": units,
        "a.weight": f". {units} . .",
    }
    assert unread(graph)["o.weight", 1] == ((5, 7),)
    keeps_function(model, graph, *[(image, width) for width in range(1, 9)])


class BiasedAttention(nn.Module):
    """Attention with a learned bias for each head and pair of positions, and learned positions."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.bias, self.positions = nn.Parameter(torch.randn(2, 9, 9)), nn.Parameter(torch.randn(9, 1, 8))
        self.inp, self.qkv, self.out = nn.Linear(5, 8), nn.Linear(8, 24), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        x = self.inp(x) + self.positions[:n].transpose(0, 1)
        q, k, v = self.qkv(x).reshape(b, n, 3, 2, 4).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, self.bias[:, :n, :n])
        return self.out(y.transpose(1, 2).reshape(b, n, 8))


def test_heads_of_a_bias_table_move_and_its_positions_stay() -> None:
    model = BiasedAttention()
    graph = trace(model, vectors(4))
    assert counts(graph) == (2, 2)
    spec = graph.spec()
    assert spec["bias"] == "heads . ."
    assert spec["positions"] == f". . {spec['inp.bias']}"
    assert unread(graph) == {("bias", 1): ((4, 8),), ("bias", 2): ((4, 8),), ("positions", 0): ((4, 8),)}
    keeps_function(model, graph, *[(vectors(length),) for length in (1, 3, 4, 7, 9)])


class Stack(nn.Module):
    """Layers in one tensor, as many of them as the caller says."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.weights, self.biases = nn.Parameter(torch.randn(4, 6, 6)), nn.Parameter(torch.randn(4, 6))
        self.inp, self.out = nn.Linear(5, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor, depth: int) -> Tensor:
        h = self.inp(x)
        for number in range(depth):
            h = torch.relu(h @ self.weights[number] + self.biases[number])
        return self.out(h)


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_what_one_layer_of_a_stack_reads_and_writes_is_tied_in_others(depth: int) -> None:
    model = Stack()
    graph = trace(model, vectors(2), depth)
    assert len(graph.groups) == (0 if depth == 1 else 1)
    if depth > 1:
        (units,) = graph.groups
        assert (graph.spec()["weights"], graph.spec()["biases"]) == (f". {units} {units}", f". {units}")
    keeps_function(model, graph, *[(vectors(2), n) for n in range(5)])


class CodeBooks(nn.Module):
    """Sums an entry of each code book, as many as there are codes, as neural audio codecs do."""

    def __init__(self, shared: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.books, self.shared = nn.Parameter(torch.randn(5, 11, 6)), shared
        self.mix, self.out = nn.Linear(6, 7), nn.Linear(7, 2)

    def forward(self, codes: Tensor) -> Tensor:
        count = codes.shape[1]
        if self.shared:
            entries = self.books[:count].gather(1, codes.T[:, :, None].expand(-1, -1, 6)).sum(0)
        else:
            entries = torch.stack([self.books[i][codes[:, i]] for i in range(count)]).sum(0)
        return self.out(self.mix(entries).tanh())


@pytest.mark.parametrize("shared", [True, False])
def test_entries_of_all_code_books_move_together_and_books_stay(shared: bool) -> None:
    model = CodeBooks(shared)
    codes = torch.arange(10).reshape(2, 5)
    graph = trace(model, codes[:, :3])
    spec = graph.spec()
    assert sorted(group.size for group in graph.groups.values()) == [6, 7]
    assert spec["books"].split()[:2] == [".", "."]
    assert spec["books"].split()[2] == spec["mix.weight"].split()[1]
    assert unread(graph) == {("books", 0): ((3, 4),)}
    keeps_function(model, graph, *[(codes[:, :n],) for n in (1, 2, 3, 5)])


class Posterior(nn.Module):
    """Decodes the mean of a posterior, and leaves its variance aside."""

    def __init__(self, cut: Callable[[Tensor], tuple[Tensor, ...]]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encode, self.decode, self.cut = nn.Linear(5, 8), nn.Linear(4, 2), cut

    def forward(self, x: Tensor) -> Any:
        return self.decode(self.cut(self.encode(x))[0])


@pytest.mark.parametrize("cut", [lambda h: h.chunk(2, -1), lambda h: h.split([4, 4], -1)])
def test_a_share_that_is_left_aside_pins_nothing_else(cut: Callable[[Tensor], tuple[Tensor, ...]]) -> None:
    model = Posterior(cut)
    graph = trace(model, vectors(2))
    assert graph.spec()["encode.weight"] == "encode+4 ."
    assert graph.spec()["decode.weight"] == ". encode"
    assert unread(graph) == {("encode.weight", 0): ((4, 7),)}
    keeps_function(model, graph, (vectors(2),), (vectors(3),))


SHAPES_ALONE: dict[str, Callable[[Tensor], Tensor]] = {
    "new_zeros": lambda h: h.new_zeros(h.shape),
    "new_full": lambda h: h.new_full(h.shape, -1.0),
    "new_empty": lambda h: h.new_empty(h.shape).zero_(),
    "new_ones": lambda h: h.new_ones(1, 1, 1, 6).expand((*h.shape[:-1], 6)).clone(),
    "zeros_like": torch.zeros_like,
    "full_like": lambda h: torch.full_like(h, 0.5),
    "empty_like": lambda h: torch.empty_like(h).fill_(1),
}


class LooksBack(nn.Module):
    """Windows of two vectors: half of the units of one are added to the window behind, if there is one."""

    def __init__(self, like: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.o, self.like = nn.Linear(5, 12), nn.Linear(6, 2), like

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x).unflatten(1, (-1, 2))
        y = h[..., 6:] + self.like(h)[..., :6]
        if h.shape[1] > 1:
            y[:, 1:] += h[:, :-1, :, :6]
        return self.o(y.tanh())


@pytest.mark.parametrize("like", SHAPES_ALONE.values(), ids=SHAPES_ALONE)
def test_an_op_that_looks_at_shapes_alone_reads_nothing(like: Callable[[Tensor], Tensor]) -> None:
    model = LooksBack(like).eval()
    for length, groups in ((2, 0), (4, 1)):
        graph = trace(model, vectors(length))
        assert counts(graph) == (groups, 0)
        keeps_function(model, graph, (vectors(2),), (vectors(4),), (vectors(8),))


class Slim(nn.Module):
    """A hidden layer whose width the call chooses, between two of fixed widths."""

    def __init__(self, cut: Callable[[Tensor, int], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inp, self.a, self.b, self.out = nn.Linear(3, 4), nn.Linear(4, 8), nn.Linear(8, 5), nn.Linear(5, 2)
        self.cut = cut

    def forward(self, x: Tensor, width: int, options: dict[str, int] | None = None) -> Tensor:
        width = (options or {}).get("width", width)
        hidden = F.linear(self.inp(x), self.cut(self.a.weight, width), self.cut(self.a.bias, width)).tanh()
        return self.out(F.linear(hidden, self.cut(self.b.weight.T, width).T, self.b.bias).tanh())


CUTS: dict[str, Callable[[Tensor, int], Tensor]] = {
    "the first": lambda w, n: w[:n],
    "the last": lambda w, n: w[len(w) - n :],
    "narrow": lambda w, n: w.narrow(0, 0, n),
    "by number": lambda w, n: w[torch.arange(n)],
}


@pytest.mark.parametrize("name", CUTS)
@pytest.mark.parametrize("call", [(8,), (6,), (3, {"width": 8})], ids=str)
def test_units_of_a_width_that_the_call_chooses_stay_at_any_width(name: str, call: tuple[Any, ...]) -> None:
    model, x = Slim(CUTS[name]), torch.linspace(-1, 1, 12).reshape(4, 3)
    graph = trace(model, x, *call)
    assert sorted(sizes(graph).values()) == [4, 5]
    keeps_function(model, graph, *((x, width) for width in (1, 3, 5, 8)))
    assert {(pin.tensor, pin.axis) for pin in graph.provenance.pinned} >= {("a.weight", 0), ("b.weight", 1)}


def test_a_number_that_cuts_nothing_fixes_nothing() -> None:
    class Repeats(nn.Sequential):
        def forward(self, x: Tensor, times: int) -> Tensor:
            for _ in range(times):
                x = super().forward(x)
            return x

    torch.manual_seed(0)
    model = Repeats(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 3))
    assert sizes(trace(model, torch.zeros(2, 3), 4)) == {"layer.0": 6}


def written_anew(h: Tensor) -> Tensor:
    y = torch.zeros_like(h)
    y[:, 1:] = h[:, 1:]
    y[:, 0] = h.sum(1)
    return y


APART: dict[str, Callable[[Tensor], Tensor]] = {
    "nothing": lambda h: h,
    "elementwise": lambda h: (h.tanh() * 2).clone(),
    "each by its length": lambda h: h / h.norm(dim=-1, keepdim=True),
    "a norm of each": lambda h: F.layer_norm(h, (6,)).softmax(-1),
    "roll": lambda h: h.roll(1, 1),
    "flip": lambda h: h.flip(1),
}
TOGETHER: dict[str, Callable[[Tensor], Tensor]] = {
    "attention": lambda h: F.scaled_dot_product_attention(h, h, h),
    "attention by hand": lambda h: (h @ h.mT).softmax(-1) @ h,
    "attention of the first": lambda h: torch.cat([(h[:, :1] @ h.mT).softmax(-1) @ h, h[:, 1:]], 1),
    "softmax": lambda h: h.softmax(1),
    "sum": lambda h: h + h.sum(1, keepdim=True),
    "largest": lambda h: h - h.amax(1, keepdim=True),
    "sums from the end": lambda h: h.flip(1).cumsum(1).flip(1),
    "a norm over rows": lambda h: F.layer_norm(h.mT, (ROWS,)).mT,
    "groups": lambda h: F.group_norm(h, 1),
    "a convolution": lambda h: F.conv1d(h.mT, h.new_ones(6, 1, 17), padding=8, groups=6).mT,
    "a pool": lambda h: F.avg_pool1d(h.mT, 17, 1, 8).mT,
    "written anew": written_anew,
    "an op without a rule": lambda h: torch.cummax(h.flip(1), 1).values.flip(1) + torch.trapezoid(h, dim=1)[:, None],
}


class FirstOfRows(nn.Module):
    """Reads the first position, after something was computed with all of them."""

    def __init__(self, compute: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table, self.compute = nn.Parameter(torch.randn(ROWS, 6)), compute
        self.a, self.o = nn.Linear(5, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.o(self.compute(self.a(x.mean(1, keepdim=True)) + self.table)[:, 0])


def unused_rows(model: FirstOfRows, x: Tensor) -> set[int]:
    before, unused = model(x), set()
    for row in range(ROWS):
        with torch.no_grad():
            model.table[row] += 0.5
            if torch.equal(before, model(x)):
                unused.add(row)
            model.table[row] -= 0.5
    return unused


@pytest.mark.parametrize("name", [*APART, *TOGETHER])
def test_positions_are_told_only_where_no_result_depends_on_them(name: str) -> None:
    model, x = FirstOfRows({**APART, **TOGETHER}[name]).double(), vectors(2).double()
    graph = trace(model, x)
    told = {row for (_, _), ranges in unread(graph).items() for low, high in ranges for row in range(low, high + 1)}
    assert told == (unused_rows(model, x) if name in APART else set())
    assert len(told) == (ROWS - 1 if name in APART else 0)
    keeps_function(model, graph, (x,), (vectors(5).double(),))
    spec = graph.spec()
    assert spec["table"][0] == "." and spec["table"][2:] == spec["a.bias"]


class Twice(nn.Module):
    """Runs a layer twice and uses one half of each result: the same, or the other."""

    def __init__(self, other: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.o, self.p, self.other = nn.Linear(5, 8), nn.Linear(4, 2), nn.Linear(4, 2), other

    def forward(self, x: Tensor) -> Tensor:
        first, second = self.a(x).tanh(), self.a(x * 2).tanh()
        return self.o(first[..., :4]) + self.p(second[..., 4:] if self.other else second[..., :4])


@pytest.mark.parametrize("other", [False, True])
def test_a_layer_that_runs_twice_is_told_by_what_all_of_its_runs_leave_aside(other: bool) -> None:
    graph = trace(Twice(other), vectors(2))
    assert unread(graph).get(("a.weight", 0), ()) == (() if other else ((4, 7),))
    assert ("not read" in graph.report()) is not other
    keeps_function(Twice(other), graph, (vectors(2),), (vectors(3),))
