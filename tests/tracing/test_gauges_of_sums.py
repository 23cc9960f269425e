"""Which sums over rows, positions and tables leave a space its rotations, and which take them away."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

import alignkit
from helpers.trace_models import Parts

L = nn.Linear
Run = Callable[[Parts, Tensor], Tensor]


def rows_of_chosen_units(m: Parts, x: Tensor, start: Callable[[Tensor], Tensor]) -> Tensor:
    """Experts that add what they make to the rows of the tokens that chose them."""
    h = m.get_submodule("inp")(x)
    result, weights, experts = start(h), *h.new_ones(len(h), 2).sigmoid().topk(1, -1)
    for number in range(2):
        tokens = torch.where(experts[:, 0] == number)[0]
        made = m.get_submodule(f"expert{number}")(h[tokens]) * weights[tokens]
        result = result.index_add(0, tokens, made)
    return m.get_submodule("out")(result)


def filled(m: Parts, x: Tensor, number: float) -> Tensor:
    h = m.get_submodule("inp")(x)
    column = torch.zeros(6, 1, dtype=h.dtype)
    column.fill_(number)
    return m.get_submodule("out")(h) + h @ column


TURNS: dict[str, Run] = {
    "sums so far": lambda m, x: m.get_submodule("out")(m.get_submodule("inp")(x).cumsum(0)),
    "rows added to zeros": lambda m, x: rows_of_chosen_units(m, x, torch.zeros_like),
    "rows added to rows": lambda m, x: rows_of_chosen_units(m, x, lambda h: h),
    "rows added to new zeros": lambda m, x: rows_of_chosen_units(m, x, lambda h: h.new_zeros(h.shape)),
    "only its shape": lambda m, x: m.get_submodule("out")(m.get_submodule("inp")(x) * torch.ones_like(x[:, :1])),
    "a sum of a table's rows": lambda m, x: m.get_submodule("out")(
        F.embedding_bag((x > 0).long(), m.get_parameter("table"), mode="sum") + m.get_submodule("inp")(x)
    ),
    "an average of a table's rows": lambda m, x: m.get_submodule("out")(
        F.embedding_bag((x > 0).long(), m.get_parameter("table"), mode="mean") + m.get_submodule("inp")(x)
    ),
}
STAYS: dict[str, tuple[Run, str]] = {
    "sums over units so far": (lambda m, x: m.get_submodule("out")(m.get_submodule("inp")(x).cumsum(1)), "fixed"),
    "rows added to ones": (lambda m, x: rows_of_chosen_units(m, x, torch.ones_like), "aten.index_add"),
    "a maximum of a table's rows": (
        lambda m, x: m.get_submodule("out")(
            F.embedding_bag((x > 0).long(), m.get_parameter("table"), mode="max") + m.get_submodule("inp")(x)
        ),
        "aten._embedding_bag",
    ),
    "ones that were zeros": (lambda m, x: filled(m, x, 1.0), "sum over the space"),
}


def network(run: Run) -> Parts:
    torch.manual_seed(0)
    experts = {f"expert{number}": L(6, 6, bias=False) for number in range(2)}
    return Parts(run, inp=L(4, 6), out=L(6, 3), table=nn.Parameter(torch.randn(2, 6)), **experts).eval()


@pytest.mark.parametrize("name", TURNS)
def test_linear_sums_leave_rotations(name: str) -> None:
    graph = alignkit.trace(network(TURNS[name]), torch.randn(5, 4), symmetries="all")
    kinds = {limit.kind for limit in graph.provenance.limits}
    assert kinds == {"orthogonal"}, graph.report()
    assert graph.provenance.proved


@pytest.mark.parametrize("name", STAYS)
def test_other_sums_take_them_away(name: str) -> None:
    run, reason = STAYS[name]
    graph = alignkit.trace(network(run), torch.randn(5, 4), symmetries="all")
    limits = [limit for limit in graph.provenance.limits if reason in limit.reason]
    assert limits or not graph.groups, graph.report()
    assert all(limit.kind in ("permutation", "centred") for limit in limits)
    assert graph.provenance.proved or not graph.groups


def test_a_scale_behind_another_one_stays() -> None:
    def run(m: Parts, x: Tensor) -> Tensor:
        first = m.get_submodule("first")(x) * m.get_parameter("inner") + m.get_parameter("shift")
        return m.get_submodule("out")(((first + m.get_submodule("second")(x)) * m.get_parameter("outer")).relu())

    torch.manual_seed(0)
    vectors = {name: nn.Parameter(torch.randn(6)) for name in ("inner", "shift", "outer")}
    model = Parts(run, first=L(4, 6), second=L(4, 6), out=L(6, 3), **vectors).eval()
    graph = alignkit.trace(model, x := torch.randn(5, 4), symmetries="all")
    assert len(graph.folds) == 1 and graph.provenance.proved
    graph.verify(alignkit.fold(model, graph, x).network, x)
