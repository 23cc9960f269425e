"""However queries, keys and values are cut out of one projection, each keeps the freedom that it has alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

import alignkit
from helpers.random_layers import Attention
from helpers.trace_models import Parts

Cut = Callable[[Tensor], Sequence[Tensor]]
CUTS: dict[str, Cut] = {
    "chunks": lambda h: h.unflatten(-1, (2, 6)).chunk(3, -1),
    "sizes": lambda h: h.unflatten(-1, (2, 6)).split([2, 2, 2], -1),
    "slices": lambda h: [h.unflatten(-1, (2, 6))[..., at : at + 2] for at in (0, 2, 4)],
    "narrowed": lambda h: [h.unflatten(-1, (2, 6)).narrow(-1, at, 2) for at in (0, 2, 4)],
    "places": lambda h: [h.unflatten(-1, (2, 3, 2))[..., at, :] for at in range(3)],
    "unbound": lambda h: h.unflatten(-1, (3, 2, 2)).unbind(-3),
    "listed": lambda h: [h.unflatten(-1, (3, 2, 2))[..., [at], :, :].squeeze(-3) for at in range(3)],
    "selected": lambda h: [h.index_select(-1, torch.arange(at, at + 4)).unflatten(-1, (2, 2)) for at in (0, 4, 8)],
}


@pytest.mark.parametrize("cut", CUTS)
def test_parts_of_a_projection_are_balanced(cut: str) -> None:
    def run(m: Parts, x: Tensor) -> Tensor:
        queries, keys, values = (part.transpose(1, 2) for part in CUTS[cut](m.get_submodule("qkv")(x)))
        attended = F.scaled_dot_product_attention(queries, keys, values)
        return m.get_submodule("out")(attended.transpose(1, 2).flatten(2)).mean(1)

    torch.manual_seed(0)
    model = Parts(run, qkv=nn.Linear(4, 12), out=nn.Linear(4, 2)).double().eval()
    graph = alignkit.trace(model, torch.randn(2, 5, 4).double(), symmetries="all")
    assert {limit.kind for limit in graph.provenance.limits} == {"orthogonal"}, graph.report()
    assert [balance.kind for balance in graph.balances] == ["invertible", "invertible"], graph.report()
    assert graph.provenance.proved


@pytest.mark.parametrize("fixed", ["q", "k", "v", "qk", "qv", "kv", "qkv"])
@pytest.mark.parametrize("cut", CUTS)
def test_parts_whose_dimensions_stay_leave_what_heads_have(cut: str, fixed: str) -> None:
    """Positions of the parts that are alike may lie anywhere on the axis; whatever is found holds."""

    def run(m: Parts, x: Tensor) -> Tensor:
        steps = torch.arange(1, 3, dtype=x.dtype)
        parts = (part.transpose(1, 2) for part in CUTS[cut](m.get_submodule("qkv")(x)))
        parts = [part * steps if name in fixed else part for name, part in zip("qkv", parts, strict=True)]
        return m.get_submodule("out")(F.scaled_dot_product_attention(*parts).transpose(1, 2).flatten(2)).mean(1)

    torch.manual_seed(0)
    model, x = Parts(run, qkv=nn.Linear(4, 12), out=nn.Linear(4, 2)).double().eval(), torch.randn(2, 5, 4).double()
    graph = alignkit.trace(model, x, symmetries="all")
    assert graph.groups and graph.provenance.proved
    graph.verify(alignkit.fold(model, graph, x).network, x)


@pytest.mark.parametrize("norms", [False, True])
def test_rotary_positions_of_a_value_that_is_copied_first_are_found_once(norms: bool) -> None:
    layers = [nn.Linear(3, 5), Attention(5, 2, 2, 4, True, False, norms), nn.Linear(5, 3)]
    model, x = nn.Sequential(*layers).double(), torch.randn(2, 4, 3, dtype=torch.float64)
    graph = alignkit.trace(model, x, symmetries="all")
    assert not graph.provenance.unused
    assert graph.verify(alignkit.fold(model, graph).network, x).error < 1e-9
