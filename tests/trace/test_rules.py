"""The table of rules: what an op without one does, and how another package adds one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from alignkit.errors import TraceError
from alignkit.graph import PermutationGraph
from alignkit.trace import Call, Layout, RuleTable
from alignkit.trace.run import record
from alignkit.trace.tracer import graph_of

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


def traced(table: RuleTable) -> PermutationGraph:
    torch.manual_seed(0)
    model = UsesOwnOp()
    return graph_of(model, record(model, (X,), {}), table)


def double_rule(call: Call) -> Layout:
    """Elementwise: the result has the layout of the operand."""
    return call.unify(call.shape, [call.layout("x")])


def failing_rule(call: Call) -> Layout:
    raise ValueError("no such thing")


def wrong_shape_rule(call: Call) -> Layout:
    return Layout.of((1,))


@pytest.mark.usefixtures("library")
def test_an_op_without_a_rule_pins_what_it_touches_and_is_named() -> None:
    graph = traced(RuleTable.build())
    assert not graph.groups
    assert graph.provenance.unknown_ops == ("alignkit_tests::double",)
    assert ("a.weight", 0, "alignkit_tests.double") in [(p.tensor, p.axis, p.op) for p in graph.provenance.pinned]


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize("name", ["alignkit_tests::double", "alignkit_tests::double.default"])
def test_a_rule_for_it_frees_the_units(name: str) -> None:
    graph = traced(RuleTable.build({name: double_rule}))
    assert list(graph.groups) == ["a"]
    graph.verify(UsesOwnOp(), X)


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize(("rule", "reason"), [(failing_rule, "no such thing"), (wrong_shape_rule, "other shapes")])
def test_a_rule_that_fails_is_named_and_pins(rule: object, reason: str) -> None:
    graph = traced(RuleTable.build({"alignkit_tests::double": rule}))  # type: ignore[dict-item]
    assert not graph.groups
    assert reason in graph.provenance.unknown_ops[0]


def test_a_rule_needs_a_namespace() -> None:
    with pytest.raises(TraceError, match="'double' is not usable"):
        RuleTable.build({"double": double_rule})


def test_in_place_ops_share_the_rule_of_their_out_of_place_form() -> None:
    table = RuleTable.build()
    assert table.find(torch.ops.aten.relu_.default) is table.find(torch.ops.aten.relu.default)
    assert table.find(torch.ops.aten.fft_fft.default) is None
