"""Ops with several results: those that nothing reads hold nothing in place, those that something reads do."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from alignkit.tracing import trace
from helpers.trace_checks import keeps_function, layouts
from helpers.trace_models import Parts

EXAMPLES = [torch.linspace(-1, 1, 3 * rows).reshape(rows, 3).cos() for rows in (4, 7)]
FREE = {"enter.weight": "enter .", "enter.bias": "enter", "leave.weight": ". enter"}


def beside(read: Callable[[Tensor], Tensor]) -> nn.Module:
    """Hidden units, and a value for each row that is read from all of them."""
    torch.manual_seed(0)
    return Parts(
        lambda net, x: (lambda h: net.leave(h) + read(h))(net.enter(x).tanh()),
        enter=nn.Linear(3, 6),
        leave=nn.Linear(6, 2),
    )


VALUES: dict[str, Callable[[Tensor], Tensor]] = {
    "max": lambda h: h.max(-1, keepdim=True).values,
    "min of pairs": lambda h: h.min(1)[0].unsqueeze(1),
    "median": lambda h: h.median(1, keepdim=True).values,
    "nanmedian": lambda h: h.nanmedian(1, keepdim=True).values,
    "kthvalue": lambda h: h.kthvalue(2, 1, keepdim=True).values,
    "topk": lambda h: h.topk(2).values,
    "sort": lambda h: h.sort(1, descending=True).values[:, 1:3],
    "sort of rows": lambda h: h.sort(0).values.sort(1).values[:, :2],
    "maximum of rows": lambda h: h.max(0).values.max(0).values.expand(len(h), 2),
    "maxout": lambda h: h.mul(2).max(1, keepdim=True).values - h.amin(1, keepdim=True),
}


@pytest.mark.parametrize("name", VALUES)
def test_values_alone_do_not_tell_units_apart(name: str) -> None:
    model = beside(VALUES[name])
    graph = trace(model, EXAMPLES[0])
    assert layouts(graph) == FREE
    keeps_function(model, graph, *[(x,) for x in EXAMPLES])


def by_unit(of: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    return lambda h: of(h).to(h.dtype).reshape(len(h), -1)[:, :1]


def _places_into(h: Tensor) -> Tensor:
    values, places = h.new_empty(len(h)), torch.empty(len(h), dtype=torch.long)
    torch.max(h, 1, out=(values, places))
    return places


PLACES: dict[str, Callable[[Tensor], Tensor]] = {
    "max": by_unit(lambda h: h.max(1).indices),
    "argmin": by_unit(lambda h: h.argmin(1)),
    "argmax of all": lambda h: h.argmax() + h.new_zeros(len(h), 2),
    "topk": by_unit(lambda h: h.topk(1).indices),
    "sort": by_unit(lambda h: h.sort(1)[1]),
    "argsort": by_unit(lambda h: h.argsort(1)),
    "a place that a number reads": lambda h: h.max(1).values[:, None] * int(h.max(1).indices[0]),
    "kthvalue": by_unit(lambda h: h.kthvalue(3, 1).indices),
    "a view of the places": by_unit(lambda h: h.max(1, keepdim=True)[1][:, 0].view(-1)),
    "places, after they were copied": by_unit(lambda h: torch.zeros(len(h), dtype=torch.long).copy_(h.max(1)[1])),
    "out=": by_unit(_places_into),
}


@pytest.mark.parametrize("name", PLACES)
def test_places_that_are_read_keep_units_in_place(name: str) -> None:
    model = beside(PLACES[name])
    with torch.no_grad():
        graph = trace(model, EXAMPLES[0])
    assert not layouts(graph)


NORMS: dict[str, Callable[[Tensor], Tensor]] = {
    "batch_norm": lambda h: torch.native_batch_norm(h, None, None, None, None, True, 0.1, 1e-5)[1][:2],
    "layer_norm": lambda h: torch.native_layer_norm(h.mT, [len(h)], None, None, 1e-5)[1][:2].mT,
    "group_norm": lambda h: torch.native_group_norm(h.T[None].contiguous(), None, None, 1, 6, len(h), 2, 1e-5)[1][0],
    "rows of layer_norm": lambda h: torch.native_layer_norm(h, [6], None, None, 1e-5)[1],
}


@pytest.mark.parametrize("name", NORMS)
def test_statistics_that_are_read_move_or_stay(name: str) -> None:
    model = beside(NORMS[name])
    graph = trace(model, EXAMPLES[0])
    keeps_function(model, graph, (EXAMPLES[0],), (EXAMPLES[0] * 2,))
    if name == "rows of layer_norm":
        assert layouts(graph) == FREE


BAGS = {
    "sum": {"mode": "sum"},
    "mean": {"mode": "mean"},
    "max": {"mode": "max"},
    "last offset": {"mode": "sum", "include_last_offset": True},
    "padding": {"mode": "mean", "padding_idx": 2},
}


@pytest.mark.parametrize("name", BAGS)
def test_columns_of_bags_of_embeddings_are_units(name: str) -> None:
    # A small DLRM: products of all pairs of features, beside the dense features.
    def run(net: Parts, dense: Tensor, ids: Tensor, offsets: Tensor) -> Tensor:
        dense = net.bottom(dense).relu()
        features = torch.stack([dense, net.first(ids, offsets), net.second(ids, offsets)], 1)
        pairs = (features @ features.mT).flatten(1)
        return net.top(torch.cat([dense, pairs], 1))

    torch.manual_seed(0)
    bags = [nn.EmbeddingBag(9, 5, **BAGS[name]) for _ in range(2)]
    model = Parts(run, bottom=nn.Linear(3, 5), first=bags[0], second=bags[1], top=nn.Linear(5 + 9, 2))
    ends = [8] if name == "last offset" else []
    examples = [
        (EXAMPLES[0][:3], torch.tensor([1, 2, 4, 5, 4, 3, 2, 8]), torch.tensor([0, 3, 5, *ends])),
        (EXAMPLES[1][:2], torch.tensor([7, 7, 0, 6, 1, 2, 3, 3]), torch.tensor([0, 1, *ends])),
    ]
    graph = trace(model, *examples[0])
    assert layouts(graph) == {
        "bottom.weight": "bottom .",
        "bottom.bias": "bottom",
        "first.weight": ". bottom",
        "second.weight": ". bottom",
        "top.weight": ". bottom+9",
    }
    keeps_function(model, graph, *examples)


def test_columns_of_weighted_bags_and_of_bounded_tables_are_units() -> None:
    def run(net: Parts, ids: Tensor) -> Tensor:
        weights = net.weigh(net.short(ids)).squeeze(-1)
        return net.leave(net.bag(ids, per_sample_weights=weights).relu())

    torch.manual_seed(0)
    model = Parts(
        run,
        short=nn.Embedding(9, 4, max_norm=0.5),
        weigh=nn.Linear(4, 1),
        bag=nn.EmbeddingBag(9, 5, mode="sum"),
        leave=nn.Linear(5, 2),
    )
    ids = torch.tensor([[0, 3, 1], [8, 8, 2]])
    graph = trace(model, ids)
    assert layouts(graph) == {
        "short.weight": ". short",
        "weigh.weight": ". short",
        "bag.weight": ". bag",
        "leave.weight": ". bag",
    }
    keeps_function(model, graph, (ids,), (ids[:, :2] + 1 - 1,))


SHAPES: dict[str, Callable[[Tensor], int]] = {
    "one unit": lambda h: len(h[:, -1]),
    "a few units": lambda h: h[..., 2:4].shape[0],
    "a piece": lambda h: h.chunk(3, -1)[1].numel(),
    "a view of a view": lambda h: h.view(-1, 2, 3)[:, 0].mT.shape[-1],
}


@pytest.mark.parametrize("name", SHAPES)
def test_a_view_that_is_only_asked_for_its_shape_holds_nothing(name: str) -> None:
    class Counts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.a, self.o = nn.Linear(3, 6), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            h = self.a(x).tanh()
            return self.o(h) / SHAPES[name](h)

    graph = trace(Counts(), torch.linspace(-1, 1, 12).reshape(4, 3))
    assert layouts(graph) == {"a.weight": "a .", "a.bias": "a", "o.weight": ". a"}
