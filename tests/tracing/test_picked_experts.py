"""Experts that a router picks by number: each has units of its own, and they may come in another order."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from alignkit.tracing import trace
from alignkit.tracing.labels import parameters
from helpers.trace_checks import keeps_function

X = torch.randn(9, 5, generator=torch.Generator().manual_seed(3))
MORE = [torch.randn(n, 5, generator=torch.Generator().manual_seed(n)) for n in (9, 30, 14)]


class Mixture(nn.Module):
    """Four experts of 12 units on a stream of width 8, two of which are picked for each token, and read in some way."""

    def __init__(self, read: Callable[[Mixture, Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inp, self.out = nn.Linear(5, 8), nn.Linear(8, 2)
        self.router, self.second = nn.Linear(8, 4), nn.Linear(8, 4)
        self.correction = nn.Parameter(torch.randn(4))
        self.up, self.bias = nn.Parameter(torch.randn(4, 12, 8)), nn.Parameter(torch.randn(4, 12))
        self.gates = nn.Parameter(torch.randn(4, 8, 24))
        self.down, self.offset = nn.Parameter(torch.randn(4, 8, 12)), nn.Parameter(torch.randn(4, 8))
        self.probes = nn.ModuleList(nn.Linear(12, 8) for _ in range(3))
        self.scale = nn.Parameter(torch.randn(12))
        self.read = read

    def forward(self, x: Tensor) -> Tensor:
        stream = self.inp(x).tanh()
        result = self.read(self, stream)
        return self.out(stream + result) if result.shape[-1] == 8 else result

    def pick(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the shares and numbers of two experts for each token."""
        shares, numbers = (self.router(x).softmax(-1) + self.correction.sigmoid()).topk(2)
        return shares / shares.sum(-1, keepdim=True), numbers

    def run(self, x: Tensor, numbers: Tensor, last: Tensor | None = None) -> Tensor:
        """Run a row of x through the expert that each number says; its second matrix may be that of another."""
        hidden = (torch.bmm(self.up[numbers], x[..., None])[..., 0] + self.bias[numbers]).relu()
        last = numbers if last is None else last
        return torch.bmm(self.down[last], hidden[..., None])[..., 0] + self.offset[last]

    def hidden(self, x: Tensor, numbers: Tensor) -> Tensor:
        """Return the units of the expert that each number says."""
        return torch.bmm(self.up[numbers], x[..., None])[..., 0].tanh()


def sum_over(shares: Tensor, rows: Tensor) -> Tensor:
    return (rows.view(*shares.shape, -1) * shares[..., None]).sum(1)


def batched(m: Mixture, x: Tensor) -> Tensor:
    shares, numbers = m.pick(x)
    return sum_over(shares, m.run(x.repeat_interleave(2, 0), numbers.reshape(-1)))


def transposed(m: Mixture, x: Tensor) -> Tensor:
    shares, numbers = m.pick(x)
    rows = m.run(x.repeat(2, 1), numbers.T.reshape(-1))
    return (rows.view(2, len(x), -1) * shares.T[..., None]).sum(0)


def one_by_one(m: Mixture, x: Tensor) -> Tensor:
    shares, numbers = m.pick(x)
    return sum(shares[:, k, None] * m.run(x, numbers[:, k]) for k in range(2))


def gated(m: Mixture, x: Tensor) -> Tensor:
    shares, numbers = m.pick(x)
    weight = torch.index_select(m.gates, 0, numbers.flatten())
    gate, value = torch.bmm(x.repeat_interleave(2, 0)[:, None], weight)[:, 0].chunk(2, -1)
    hidden = F.silu(gate) * value * m.bias[numbers.flatten()]
    return sum_over(shares, torch.bmm(m.down[numbers.flatten()], hidden[..., None])[..., 0])


def interleaved(m: Mixture, x: Tensor) -> Tensor:
    numbers = m.router(x).argmax(-1)
    both = torch.einsum("td,tdg->tg", x, m.gates[numbers])
    return torch.einsum("tu,tdu->td", both[:, ::2].sigmoid() * both[:, 1::2], m.down[numbers])


def in_sorted_order(m: Mixture, x: Tensor) -> Tensor:
    shares, numbers = m.pick(x)
    ordered, order = numbers.flatten().sort()
    rows = m.run(x[order // 2], ordered) * shares.flatten()[order, None]
    return rows[order.argsort()].view(len(x), 2, -1).sum(1)


def added_in_sorted_order(m: Mixture, x: Tensor) -> Tensor:
    shares, numbers = m.pick(x)
    order = numbers.flatten().argsort(descending=True)
    tokens = order // 2
    rows = m.run(x[tokens], numbers.flatten()[order]) * shares.flatten()[order, None]
    return torch.zeros_like(x).index_add(0, tokens, rows)


def grouped_rows(x: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    """Multiply each run of rows by its matrix. torch's own product does not take float64, in which tests prove."""
    if x.dtype == torch.float32:
        return F.grouped_mm(x, weight, offs=ends)
    run = torch.searchsorted(ends, torch.arange(len(x), dtype=ends.dtype), right=True)
    return torch.bmm(x[:, None], weight[run])[:, 0]


def grouped(m: Mixture, x: Tensor, other: Callable[[Tensor], Tensor] = lambda numbers: numbers) -> Tensor:
    shares, numbers = m.pick(x)
    ordered, order = numbers.flatten().sort()
    counts = torch.bincount(other(ordered), minlength=4)
    ends = counts.cumsum(0).to(torch.int32)
    hidden = (grouped_rows(x[order // 2], m.up.mT, ends) + m.bias[ordered]).relu()
    rows = (grouped_rows(hidden, m.down.mT, ends) + m.offset[ordered]) * shares.flatten()[order, None]
    back = torch.empty_like(order)
    back[order] = torch.arange(len(order))
    return rows[back].view(len(x), 2, -1).sum(1)


def counted_otherwise(m: Mixture, x: Tensor) -> Tensor:
    return grouped(m, x, lambda numbers: (numbers + 1) % 4)


def masked(m: Mixture, x: Tensor) -> Tensor:
    shares, numbers = m.pick(x)
    dense = (F.one_hot(numbers, 4) * shares[..., None]).sum(1)
    hidden = (torch.einsum("td,eud->teu", x, m.up) + m.bias).relu()
    return torch.einsum("teu,edu,te->td", hidden, m.down, dense)


def compared(m: Mixture, x: Tensor) -> Tensor:
    shares, numbers = m.pick(x)
    dense = ((numbers[..., None] == torch.arange(4)) * shares[..., None]).sum(1)
    return torch.einsum("teu,edu,te->td", torch.einsum("td,eud->teu", x, m.up).relu(), m.down, dense)


def scattered(m: Mixture, x: Tensor) -> Tensor:
    shares, numbers = m.pick(x)
    dense = torch.zeros(len(x), 4, dtype=x.dtype).scatter(1, numbers, shares)
    return torch.einsum("teu,edu,te->td", torch.einsum("td,eud->teu", x, m.up).relu(), m.down, dense)


def groups_of_experts(m: Mixture, x: Tensor) -> Tensor:
    scores = m.router(x).sigmoid()
    best = scores.view(-1, 2, 2).amax(-1).topk(1).indices
    mask = torch.zeros(len(x), 2, dtype=x.dtype).scatter_(1, best, 1.0)
    mask = mask[..., None].expand(-1, -1, 2).reshape(-1, 4)
    numbers = scores.masked_fill(mask == 0, 0.0).topk(2).indices
    return sum_over(scores.gather(1, numbers), m.run(x.repeat_interleave(2, 0), numbers.flatten()))


def tokens_of_experts(m: Mixture, x: Tensor) -> Tensor:
    shares, tokens = m.router(x).softmax(-1).topk(3, dim=0)
    hidden = torch.einsum("ned,eud->neu", x[tokens], m.up).relu()
    rows = torch.einsum("neu,edu->ned", hidden, m.down) * shares[..., None]
    return torch.zeros_like(x).index_add(0, tokens.flatten(), rows.flatten(0, 1))


def sums_of_experts(m: Mixture, x: Tensor) -> Tensor:
    numbers = m.router(x).argmax(-1)
    sums = torch.zeros(4, 8, dtype=x.dtype).index_add(0, numbers, x)
    return torch.einsum("ed,eud,edu->d", sums, m.up, m.down).expand_as(x)


def busiest(m: Mixture, x: Tensor) -> Tensor:
    counts = torch.bincount(m.router(x).argmax(-1), minlength=4)
    return m.run(x, counts.argmax(0, keepdim=True).expand(len(x)))


def shared_scale(m: Mixture, x: Tensor) -> Tensor:
    numbers = m.router(x).argmax(-1)
    return torch.einsum("tdu,tu->td", m.down[numbers], m.hidden(x, numbers) * m.scale)


def all_read_alike(m: Mixture, x: Tensor) -> Tensor:
    return m.probes[0](m.hidden(x, m.router(x).argmax(-1)))


def first_by_a_layer_of_its_own(m: Mixture, x: Tensor) -> Tensor:
    numbers = m.router(x).argmax(-1)
    hidden = m.hidden(x, numbers)
    rows = torch.einsum("tdu,tu->td", m.down[numbers], hidden)
    return torch.cat([m.probes[0](hidden[:1]), rows[1:]])


def rank_by_a_layer_of_its_own(m: Mixture, x: Tensor) -> Tensor:
    _, numbers = m.pick(x)
    return sum(m.probes[k](m.hidden(x, numbers[:, k])) for k in range(2))


def number_one_by_a_layer_of_its_own(m: Mixture, x: Tensor) -> Tensor:
    return batched(m, x) + m.probes[0]((x @ m.up[1].T).relu())


def last_of_another(m: Mixture, x: Tensor) -> Tensor:
    numbers = m.router(x).argmax(-1)
    return m.run(x, numbers, m.second(x).argmax(-1))


def last_of_the_next(m: Mixture, x: Tensor) -> Tensor:
    numbers = m.router(x).argmax(-1)
    return m.run(x, numbers, (numbers + 1) % 4)


def last_of_the_other(m: Mixture, x: Tensor) -> Tensor:
    shares, numbers = m.pick(x)
    return sum_over(shares, m.run(x.repeat_interleave(2, 0), numbers.flatten(), numbers.flip(1).flatten()))


def shifted_rows(m: Mixture, x: Tensor) -> Tensor:
    numbers = m.router(x).argmax(-1)
    return torch.einsum("tdu,tu->td", m.down[numbers].roll(1, 0), m.hidden(x, numbers))


def first_in_sorted_order(m: Mixture, x: Tensor) -> Tensor:
    numbers, order = m.router(x).argmax(-1).sort()
    rows = m.run(x[order], numbers)
    return rows[:1] + rows[order.argsort()]


def sum_of_hidden(m: Mixture, x: Tensor) -> Tensor:
    numbers, order = m.router(x).argmax(-1).sort()
    return m.probes[0](m.hidden(x[order], numbers).mean(0)).expand_as(x)


def hidden_as_output(m: Mixture, x: Tensor) -> Tensor:
    return m.hidden(x, m.router(x).argmax(-1))


def number_as_output(m: Mixture, x: Tensor) -> Tensor:
    _, numbers = m.pick(x)
    return torch.cat([batched(m, x), numbers.to(x.dtype)], -1)


def number_as_value(m: Mixture, x: Tensor) -> Tensor:
    numbers = m.router(x).argmax(-1)
    return m.run(x, numbers) * numbers[:, None]


def number_written(m: Mixture, x: Tensor) -> Tensor:
    numbers = m.router(x).argmax(-1)
    rest = numbers[1:]
    numbers[:2] = 1
    return m.run(x[1:], rest).sum(0) + m.run(x, numbers)


def number_in_bits(m: Mixture, x: Tensor) -> Tensor:
    numbers = m.router(x).argmax(-1)
    return m.run(x, numbers.bool().long())


def in_a_loop(m: Mixture, x: Tensor) -> Tensor:
    numbers, result = m.router(x).argmax(-1), torch.zeros_like(x)
    for e in range(4):
        hidden = (x @ m.up[e].T).relu()
        result = result + torch.where((numbers == e)[:, None], hidden @ m.down[e].T, 0)
    return result


FREE, STAY, GROUPS, TWICE = [4], [], [2, 4], [4, 4]
# The numbers of units in groups of experts, and how many orders of 12 units there are, by hand: 4, or one for all.
READS: list[tuple[Callable[[Mixture, Tensor], Tensor], list[int], int]] = [
    (batched, FREE, 4),
    (transposed, FREE, 4),
    (one_by_one, FREE, 4),
    (gated, FREE, 4),
    (interleaved, FREE, 4),
    (in_sorted_order, FREE, 4),
    (added_in_sorted_order, FREE, 4),
    (grouped, FREE, 4),
    (masked, FREE, 4),
    (compared, FREE, 4),
    (scattered, FREE, 4),
    (groups_of_experts, GROUPS, 4),
    (tokens_of_experts, FREE, 4),
    (sums_of_experts, FREE, 4),
    (busiest, FREE, 4),
    (shared_scale, FREE, 1),
    (all_read_alike, FREE, 1),
    (first_by_a_layer_of_its_own, FREE, 1),
    (rank_by_a_layer_of_its_own, FREE, 1),
    (number_one_by_a_layer_of_its_own, STAY, 4),
    (last_of_another, TWICE, 1),
    (last_of_the_next, STAY, 1),
    (last_of_the_other, FREE, 1),
    (shifted_rows, FREE, 1),
    (first_in_sorted_order, STAY, 4),
    (sum_of_hidden, FREE, 1),
    (hidden_as_output, FREE, 0),
    (number_as_output, STAY, 4),
    (number_as_value, STAY, 4),
    (number_written, STAY, 1),
    (number_in_bits, STAY, 1),
    (counted_otherwise, STAY, 1),
    (in_a_loop, STAY, 4),  # the experts are alike, which a loop does not show
]


@pytest.mark.parametrize(("read", "order", "units"), READS, ids=[read.__name__ for read, _, _ in READS])
def test_experts_and_their_units_move_where_they_may(
    read: Callable[[Mixture, Tensor], Tensor], order: list[int], units: int
) -> None:
    model = Mixture(read)
    graph = trace(model, X)
    assert graph.provenance.unknown_ops == () or read is number_written  # through a view of other parts
    keeps_function(model, graph, (X,), *((x,) for x in MORE), draws=5)
    assert sum(graph.instances(name) for name, group in graph.groups.items() if group.size == 12) == units
    experts = sorted(graph.unit_count(name) for name, group in graph.groups.items() if group.size in (2, 4))
    assert experts == order


ROWS: dict[str, Callable[[Tensor], Tensor]] = {
    "as they are": lambda numbers: numbers.reshape(-1),
    "of the first rank": lambda numbers: numbers[:, :1].expand(-1, 2).flatten(),
    "by rank": lambda numbers: numbers.T.reshape(-1),
    "by rank, laid end to end": lambda numbers: torch.cat([numbers[:, 0], numbers[:, 1]]),
    "ranks exchanged": lambda numbers: numbers.flip(1).flatten(),
    "rolled": lambda numbers: numbers.roll(1, 0).reshape(-1),
    "from the end": lambda numbers: numbers.flatten().flip(0),
    "the first halves": lambda numbers: numbers.flatten()[: len(numbers)].repeat(2),
    "sorted": lambda numbers: numbers.flatten().sort().values,
    "in the order of the sorted": lambda numbers: numbers.flatten()[numbers.flatten().argsort()],
    "sorted twice": lambda numbers: numbers.flatten().sort().values.sort().values,
    "by half the order": lambda numbers: numbers.flatten()[numbers.flatten().argsort() // 2],
    "in other numbers": lambda numbers: numbers.flatten().to(torch.int32).long(),
}


class TwoPicks(nn.Module):
    """Rows of two stacks that are picked by the same numbers, each put in order in some way."""

    def __init__(self, first: str, last: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.router = nn.Linear(5, 4)
        self.up, self.down = nn.Parameter(torch.randn(4, 6, 5)), nn.Parameter(torch.randn(4, 3, 6))
        self.first, self.last = first, last

    def forward(self, x: Tensor) -> Tensor:
        numbers = self.router(x).topk(2).indices
        hidden = torch.bmm(self.up[ROWS[self.first](numbers)], x.repeat(2, 1)[..., None]).tanh()
        return torch.bmm(self.down[ROWS[self.last](numbers)], hidden)[..., 0].sum(0)


@settings(max_examples=30)
@given(first=st.sampled_from(sorted(ROWS)), last=st.sampled_from(sorted(ROWS)))
def test_rows_meet_the_rows_of_the_same_choice(first: str, last: str) -> None:
    model = TwoPicks(first, last)
    graph = trace(model, X)
    keeps_function(model, graph, (X,), *((x,) for x in MORE), draws=2)
    if first == last and "sorted" not in first and "order" not in first:  # each is sorted twice
        assert sum(graph.instances(name) for name, group in graph.groups.items() if group.size == 6) == 4


@pytest.mark.parametrize(
    ("most", "units", "joint"),
    [(10**6, 4, ()), (200, 4, ()), (100, 1, ("up", "bias", "down", "offset"))],
)
@pytest.mark.parametrize("read", [batched, grouped])
def test_stacks_with_too_many_labels_have_one_order_of_units(
    read: Callable[[Mixture, Tensor], Tensor],
    most: int,
    units: int,
    joint: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(parameters, "SMALL_STACK", 0)
    monkeypatch.setattr(parameters, "MAX_NESTED", most)
    model = Mixture(read)
    graph = trace(model, X)
    keeps_function(model, graph, (X,), *((x,) for x in MORE))
    assert sum(graph.instances(name) for name, group in graph.groups.items() if group.size == 12) == units
    assert graph.provenance.joint == joint
    assert [name in graph.report() for name in joint] == [True] * len(joint)
    assert "router.weight" in graph.tensors_of(next(name for name, group in graph.groups.items() if group.size == 4))


@pytest.mark.parametrize("read", [batched, in_sorted_order, groups_of_experts, rank_by_a_layer_of_its_own])
def test_signs_and_scales_are_looked_for_beside_picked_experts(read: Callable[[Mixture, Tensor], Tensor]) -> None:
    model = Mixture(read).double()
    graph = trace(model, X.double(), symmetries="all")
    assert graph.verify(model, X.double()).error < 1e-9
    assert {group.size for group in graph.groups.values()} >= {12, 8}
