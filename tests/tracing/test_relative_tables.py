"""Tables of relative positions that queries meet in a product, however the table is transposed for it."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from helpers.trace_checks import layouts, proved
from helpers.trace_models import Parts


@pytest.fixture(autouse=True, scope="module")
def import_what_a_first_trace_imports() -> None:
    proved(nn.Linear(2, 2), torch.ones(1, 2))


TRANSPOSED: dict[str, Callable[[Tensor], Tensor]] = {
    "T": lambda table: table.T,
    "mT": lambda table: table.mT,
    "transpose": lambda table: table.transpose(-1, -2),
    "permute": lambda table: table.permute(1, 0),
    "scaled": lambda table: (table * 0.5).transpose(0, 1),
    "copied": lambda table: table.transpose(0, 1).contiguous(),
}


@pytest.mark.parametrize("transposed", TRANSPOSED.values(), ids=TRANSPOSED)
def test_units_of_queries_are_those_of_the_table_in_all_windows(transposed: Callable[[Tensor], Tensor]) -> None:
    def run(m: nn.Module, x: Tensor) -> Tensor:
        queries = m.q(x).unflatten(-1, (4, 8)).transpose(1, 2).flatten(0, 1)  # heads in the batch, as in halo attention
        return (queries @ transposed(m.table)).relu().sum(1).view(-1, 4, 27).sum(1)

    torch.manual_seed(0)
    model = Parts(run, q=nn.Linear(3, 32), table=nn.Parameter(torch.randn(27, 8)))
    tracemalloc.start()
    try:
        graph = proved(model, torch.randn(2, 60, 3))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    heads = next(name for name, group in graph.groups.items() if group.size == 4)
    units = next(name for name, group in graph.groups.items() if group.size == 8)
    assert layouts(graph) == {
        "q.weight": f"({heads} {units}) .",
        "q.bias": f"({heads} {units})",
        "table": f". {units}",
    }
    assert peak < 4 * 2**20  # an atom for each query, unit and row of the table takes 27 * 8 * 4000 * 8 bytes and more
