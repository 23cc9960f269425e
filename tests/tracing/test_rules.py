"""The table of rules: what an op without one does, and how another package adds one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import combinations, permutations
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import alignkit
from alignkit import plugins
from alignkit.errors import TraceError
from alignkit.graph import SymmetryGraph
from alignkit.tracing import Call, Labels, Rule, RuleTable
from alignkit.tracing.recording.run import record
from alignkit.tracing.rules import built_in
from alignkit.tracing.rules.built_in import BUILT_IN
from alignkit.tracing.tracer import build_graph

X = torch.linspace(-1, 1, 10).reshape(2, 5)


def _double(x: Tensor) -> Tensor:
    return 2 * x


@pytest.fixture(scope="module")
def library() -> Iterator[torch.library.Library]:
    made = torch.library.Library("alignkit_tests", "FRAGMENT")
    made.define("double(Tensor x) -> Tensor")
    made.impl("double", _double, "CPU")
    made.impl("double", torch.empty_like, "Meta")
    yield made
    made._destroy()


class UsesOwnOp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(5, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.ops.alignkit_tests.double(self.a(x)))


def traced(table: RuleTable) -> SymmetryGraph:
    torch.manual_seed(0)
    model = UsesOwnOp()
    return build_graph(model, record(model, (X,), {}), table)


def double_rule(call: Call) -> Labels:
    """Elementwise: the result has the labels of the operand."""
    return call.unify(call.shape, [call.labels("x")])


class Offers:
    """A plugin in memory, with one rule."""

    def __init__(self, rule: Rule) -> None:
        self.rule = rule

    @alignkit.hookimpl
    def alignkit_register_trace_rules(self) -> dict[str, Rule]:
        return {"alignkit_tests::double": self.rule}


def failing_rule(call: Call) -> Labels:
    raise ValueError("no such thing")


def wrong_shape_rule(call: Call) -> Labels:
    return Labels.of((1,))


@pytest.mark.usefixtures("library")
def test_an_op_without_a_rule_pins_what_it_touches_and_is_named() -> None:
    graph = traced(RuleTable(BUILT_IN))
    assert not graph.groups
    assert graph.provenance.unknown_ops == ("alignkit_tests::double",)
    assert ("a.weight", 0, "alignkit_tests.double") in [(p.tensor, p.axis, p.op) for p in graph.provenance.pinned]


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize("name", ["alignkit_tests::double", "alignkit_tests::double.default"])
def test_a_rule_for_it_frees_the_units(name: str) -> None:
    graph = traced(RuleTable({**BUILT_IN, name: double_rule}))
    assert list(graph.groups) == ["a"]
    graph.verify(UsesOwnOp(), X)


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize(("rule", "reason"), [(failing_rule, "no such thing"), (wrong_shape_rule, "other shapes")])
def test_a_rule_that_fails_is_named_and_pins(rule: object, reason: str) -> None:
    graph = traced(RuleTable({**BUILT_IN, "alignkit_tests::double": rule}))  # type: ignore[dict-item]
    assert not graph.groups
    assert reason in graph.provenance.unknown_ops[0]


def test_a_rule_needs_a_namespace() -> None:
    with pytest.raises(TraceError, match="'double' is not usable"):
        RuleTable({"double": double_rule})


def test_no_op_has_two_built_in_rules() -> None:
    assert len(BUILT_IN) == sum(len(file.RULES) for file in built_in._FILES)


def test_in_place_ops_share_the_rule_of_their_out_of_place_form() -> None:
    table = RuleTable(BUILT_IN)
    assert table.find(torch.ops.aten.relu_.default) is table.find(torch.ops.aten.relu.default)
    assert table.find(torch.ops.aten.fft_fft.default) is None


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> plugins.Registry:
    """A registry without installed plugins, in place of that of the process."""
    empty = plugins.Registry([])
    monkeypatch.setattr("alignkit.plugins.plugin_registry.registry", lambda: empty)
    return empty


@pytest.mark.usefixtures("library")
def test_trace_uses_the_rule_of_a_plugin_while_it_is_registered(registry: plugins.Registry) -> None:
    torch.manual_seed(0)
    model = UsesOwnOp()
    assert not alignkit.trace(model, X).groups
    key = registry.register(Offers(double_rule))
    graph = alignkit.trace(model, X)
    assert list(graph.groups) == ["a"]
    assert graph.provenance.unknown_ops == ()
    graph.verify(model, X)
    registry.unregister(key)
    assert not alignkit.trace(model, X).groups


@pytest.mark.usefixtures("library")
def test_two_plugins_with_a_rule_for_one_op_leave_it_pinned(registry: plugins.Registry) -> None:
    registry.register(Offers(double_rule), name="one", package="one 1.0")
    registry.register(Offers(double_rule), name="two", package="two 2.0")
    with pytest.warns(plugins.PluginWarning, match=r"one 1\.0 and two 2\.0 offer a trace rule"):
        graph = alignkit.trace(UsesOwnOp(), X)
    assert not graph.groups
    assert graph.provenance.unknown_ops == ("alignkit_tests::double",)


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize("name", ["aten::relu", "aten::relu.default", "aten::relu_"])
def test_an_op_with_a_built_in_rule_keeps_it(registry: plugins.Registry, name: str) -> None:
    class Strict:
        @alignkit.hookimpl
        def alignkit_register_trace_rules(self) -> dict[str, Rule]:
            return {name: failing_rule}

    registry.register(Strict())
    model = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3))
    with pytest.warns(plugins.PluginWarning, match=f"it offers {name!r}, where alignkit's own trace rule stays"):
        assert alignkit.trace(model, X).groups


class Reordered(nn.Module):
    """Hidden units on the last of three dimensions of one size, reordered, then summed with a weight each."""

    def __init__(self, reorder: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.weight, self.reorder = nn.Linear(4, 4), nn.Parameter(torch.randn(4)), reorder
        # The place that the function itself gives to the last dimension.
        self.axis = reorder(torch.empty(7, 8, 9)).shape.index(9)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.reorder(torch.relu(self.a(x)))
        return (hidden * self.weight.reshape([4 if i == self.axis else 1 for i in range(3)])).sum(self.axis)


REORDERINGS: dict[str, Callable[[Tensor], Tensor]] = {
    **{f"permute{dims}": partial(torch.permute, dims=dims) for dims in permutations(range(3))},
    **{f"permute_copy{dims}": partial(torch.permute_copy, dims=dims) for dims in permutations(range(3))},
    "permute_copy(-1, 0, 1)": partial(torch.permute_copy, dims=(-1, 0, 1)),
    **{f"transpose({i}, {j})": partial(torch.transpose, dim0=i, dim1=j) for i, j in combinations(range(3), 2)},
    **{f"transpose_copy{ij}": lambda x, ij=ij: torch.transpose_copy(x, *ij) for ij in combinations(range(-3, 0), 2)},
    **{f"swapaxes{ij}": lambda x, ij=ij: x.swapaxes(*ij) for ij in combinations(range(3), 2)},
    **{f"movedim{ij}": lambda x, ij=ij: x.movedim(*ij) for ij in combinations(range(3), 2)},
    "mT": lambda x: x.mT,
    "mH": lambda x: x.mH,
}


@pytest.mark.parametrize("name", REORDERINGS)
def test_every_reordering_keeps_the_hidden_units_where_the_function_puts_them(name: str) -> None:
    torch.manual_seed(0)
    model, x = Reordered(REORDERINGS[name]), torch.randn(4, 4, 4)
    graph = alignkit.trace(model, x)
    assert [group.size for group in graph.groups.values()] == [4]
    assert graph.verify(model, x).error < 1e-5


class Writes(nn.Module):
    """Hidden units and a weight for each, that ``write`` puts somewhere, before an outer layer reads them."""

    def __init__(self, write: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.scale, self.o, self.write = nn.Linear(5, 4), nn.Parameter(torch.randn(4)), nn.Linear(4, 3), write

    def forward(self, x: Tensor) -> Tensor:
        return self.o(self.write(self.a(x), self.scale))


def through_a_view(write: Callable[[Tensor, Tensor, Tensor], object]) -> Callable[[Tensor, Tensor], Tensor]:
    """Write into half a tensor through a view of it, and read the whole tensor."""

    def run(hidden: Tensor, scale: Tensor) -> Tensor:
        whole = torch.zeros(len(hidden), 8)
        write(whole[:, :4], hidden, scale)
        return whole[:, :4] + whole[:, 4:]

    return run


def whole(write: Callable[[Tensor, Tensor, Tensor], object]) -> Callable[[Tensor, Tensor], Tensor]:
    """Write into a tensor and read it."""

    def run(hidden: Tensor, scale: Tensor) -> Tensor:
        target = torch.zeros_like(hidden)
        write(target, hidden, scale)
        return target

    return run


WRITES: dict[str, Callable[[Tensor, Tensor, Tensor], object]] = {
    "by position": lambda target, h, p: target.add_(h * p),
    "copy_": lambda target, h, p: target.copy_(h * p),
    "out=": lambda target, h, p: torch.mul(h, p, out=target),
    "out= of two": lambda target, h, p: torch.max(
        torch.stack([h, h * p]), 0, out=(target, torch.zeros_like(target, dtype=torch.long))
    ),
    "in a list": lambda target, h, p: torch._foreach_add_([target], [h * p]),
    "in a list of pairs": lambda target, h, p: torch._foreach_copy_([target], [h * p]),
}


@pytest.mark.parametrize("place", [whole, through_a_view])
@pytest.mark.parametrize("name", WRITES)
def test_a_write_is_seen_wherever_the_op_names_its_target(name: str, place: Callable[..., Any]) -> None:
    torch.manual_seed(0)
    model, x = Writes(place(WRITES[name])), torch.randn(6, 5)
    with torch.no_grad():
        graph = alignkit.trace(model, x)
        if graph.groups:
            assert graph.verify(model, x).error < 1e-5
    if place is whole and name in ("by position", "copy_", "out="):
        assert [group.size for group in graph.groups.values()] == [4]
