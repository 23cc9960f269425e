"""Graph networks and other writes at computed positions: nodes stay, hidden units move."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from alignkit.tracing import trace
from helpers.trace_checks import keeps_function, layouts, sizes
from helpers.trace_models import Parts

Aggregate = Callable[[Tensor, Tensor, Tensor], Tensor]

SENDER = torch.tensor([0, 0, 1, 3, 4, 2, 1])
TARGET = torch.tensor([1, 2, 2, 0, 3, 4, 0])


def nodes(count: int) -> Tensor:
    return torch.linspace(-1, 1, 3 * count).reshape(count, 3).sin()


def graphs() -> list[tuple[Tensor, Tensor, Tensor]]:
    """The example, the same nodes with other edges, and more nodes."""
    return [
        (nodes(5), SENDER, TARGET),
        (nodes(5), TARGET[:4], SENDER[:4]),
        (nodes(8), torch.tensor([7, 6, 5, 5, 0]), torch.tensor([0, 1, 2, 6, 7])),
    ]


def message_passing(aggregate: Aggregate) -> nn.Module:
    """Gated messages along edges, summed up at nodes; read out by a mean over nodes and their states."""

    def run(net: Parts, x: Tensor, sender: Tensor, target: Tensor) -> Tensor:
        state = net.enter(x).tanh()
        message = net.message(state[sender] - state[target]).relu() * net.gate(state)[sender].sigmoid()
        state = state + net.update(aggregate(x.new_zeros(len(x), 6), target, message))
        return net.leave(state) + net.leave(state.mean(0))

    torch.manual_seed(0)
    return Parts(
        run,
        enter=nn.Linear(3, 4),
        message=nn.Linear(4, 6),
        gate=nn.Linear(4, 6),
        update=nn.Linear(6, 4),
        leave=nn.Linear(4, 2),
    )


def expanded(index: Tensor, like: Tensor) -> Tensor:
    return index.unsqueeze(-1).expand_as(like)


def looped(out: Tensor, target: Tensor, message: Tensor) -> Tensor:
    adjacency = torch.zeros(len(out), len(target), dtype=out.dtype)
    adjacency[target, torch.arange(len(target))] = 1.0
    return adjacency.to_sparse() @ message


AGGREGATES: dict[str, Aggregate] = {
    "index_add": lambda out, i, m: out.index_add(0, i, m, alpha=0.5),
    "index_add_": lambda out, i, m: out.index_add_(0, i, m),
    "index_add, transposed": lambda out, i, m: out.mT.index_add(1, i, m.mT).mT,
    "index_copy": lambda out, i, m: out.index_copy(0, i, m),
    "index_reduce": lambda out, i, m: out.index_reduce(0, i, m, "mean"),
    "scatter_add": lambda out, i, m: out.scatter_add(0, expanded(i, m), m),
    "scatter_add_": lambda out, i, m: out.scatter_add_(0, expanded(i, m), m),
    "scatter_reduce sum": lambda out, i, m: out.scatter_reduce(0, expanded(i, m), m, "sum"),
    "scatter_reduce amax": lambda out, i, m: out.scatter_reduce(0, expanded(i, m), m, "amax", include_self=False),
    "scatter": lambda out, i, m: out.scatter(-2, expanded(i, m), m),
    "index_put": lambda out, i, m: out.index_put((i,), m, accumulate=True),
    "assignment": lambda out, i, m: (out.__setitem__(i, m), out)[1],
    "a sparse product": lambda out, i, m: torch.sparse.mm(
        torch.sparse_coo_tensor(
            torch.stack([i, torch.arange(len(i))]), m.new_ones(len(i)), (len(out), len(i)), check_invariants=False
        ),
        m,
    ),
    "a dense matrix made sparse": looped,
}


@pytest.mark.filterwarnings("ignore:index_reduce|Sparse:UserWarning")
@pytest.mark.parametrize("name", AGGREGATES)
def test_units_pass_through_writes_to_nodes(name: str) -> None:
    model = message_passing(AGGREGATES[name])
    graph = trace(model, *graphs()[0])
    assert layouts(graph) == {
        "enter.weight": "enter .",
        "enter.bias": "enter",
        "message.weight": "message enter",
        "message.bias": "message",
        "gate.weight": "message enter",
        "gate.bias": "message",
        "update.weight": "enter message",
        "update.bias": "enter",
        "leave.weight": ". enter",
    }
    assert sizes(graph) == {"enter": 4, "message": 6}
    keeps_function(model, graph, *graphs())


Write = Callable[[Tensor, Tensor, Tensor], Tensor]


def writes(write: Write) -> nn.Module:
    """Two hidden vectors for each of [batch, tokens], of which one is written over parts of the other."""

    def run(net: Parts, x: Tensor) -> Tensor:
        chosen = x[..., 0] > 0.1
        return net.leave(write(net.one(x).tanh(), chosen, net.two(x)))

    torch.manual_seed(0)
    return Parts(run, one=nn.Linear(3, 5), two=nn.Linear(3, 5), leave=nn.Linear(5, 2))


def assigned(target: Tensor, index: object, values: object) -> Tensor:
    target[index] = values
    return target


MASKED: dict[str, Write] = {
    "rows of a mask": lambda a, mask, b: assigned(a, mask, b[mask]),
    "one row for all": lambda a, mask, b: assigned(a, mask, b.mean((0, 1))),
    "zeros": lambda a, mask, b: assigned(a, mask, 0.0) + b,
    "a number, by units": lambda a, mask, b: assigned(a, a > b, 0.5),
    "masked_scatter": lambda a, mask, b: a.masked_scatter(mask.unsqueeze(-1), b),
    "masked_scatter of chosen rows": lambda a, mask, b: a.masked_scatter(mask[..., None].expand_as(a), b[mask]),
    "masked_scatter of all rows": lambda a, mask, b: a.masked_scatter(torch.ones_like(a, dtype=torch.bool), b) + a,
    "chosen rows, put back": lambda a, mask, b: a.index_put(tuple(mask.nonzero().T), b[mask]),
    "a column of rows": lambda a, mask, b: a.index_fill(1, torch.tensor([0, 1]), 0.25) * b,
    "scatter of a number": lambda a, mask, b: a.scatter(1, mask.long()[..., None].expand_as(a), 0.5) + b,
}


@pytest.mark.parametrize("name", MASKED)
def test_units_pass_through_writes_by_masks(name: str) -> None:
    model = writes(MASKED[name])
    examples = [torch.linspace(-1, 1, 3 * n * batch).reshape(batch, n, 3).cos() - 0.5 for batch, n in ((2, 4), (3, 6))]
    graph = trace(model, examples[0])
    assert layouts(graph) == {
        "one.weight": "one .",
        "one.bias": "one",
        "two.weight": "one .",
        "two.bias": "one",
        "leave.weight": ". one",
    }
    keeps_function(model, graph, *[(x,) for x in examples])


UNSURE: dict[str, Write] = {
    "flattened units": lambda a, mask, b: a.masked_scatter(a > 0, b),
    "units by number": lambda a, mask, b: a.index_add(2, torch.tensor([4, 0, 0, 1, 2]), b),
    "units by scatter": lambda a, mask, b: a.scatter_add(2, torch.tensor([1, 2, 0, 4, 3]).expand_as(b), b),
    "shorter index": lambda a, mask, b: a.scatter(1, torch.zeros(2, 4, 3, dtype=torch.long), b),
    "columns around": lambda a, mask, b: assigned(
        a, (torch.tensor([0, 1]), slice(None), torch.tensor([2, 3])), b[0, 0, 0]
    ),
    "units by mask": lambda a, mask, b: assigned(a, a > 0, b[b < a.mean()].mean()) + b[..., :1],
    "a shift": lambda a, mask, b: a.masked_scatter(mask[..., None], torch.cat([b, b], 1)[..., 1:].flatten()),
}


@pytest.mark.parametrize("name", UNSURE)
def test_writes_that_tell_units_apart_are_sound(name: str) -> None:
    model = writes(UNSURE[name])
    x = torch.linspace(-1, 1, 24).reshape(2, 4, 3).cos() - 0.5
    keeps_function(model, trace(model, x), (x,), (x.flip(1),))
