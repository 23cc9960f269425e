"""Folds of shifts and biases through what stands between a norm and its readers: exact, or they stay."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

import alignkit
from alignkit.graph.proof.perturb import perturbed

WIDTH, SIDE = 6, 5
Between = Callable[[Tensor], Tensor]


def zeros(y: Tensor) -> Tensor:
    return torch.zeros_like(y)


LEVEL: dict[str, Between] = {
    "nothing": lambda y: y,
    "positions": lambda y: y[..., 1:, :3],
    "a mean": lambda y: y.mean((2, 3), keepdim=True),
    "a pool": lambda y: F.avg_pool2d(y, 2),
    "finer": lambda y: F.interpolate(y, scale_factor=2, mode="nearest"),
    "a flip": lambda y: y.flip(3),
    "no padding": lambda y: F.avg_pool2d(F.pad(y, (0, 0, 0, 0)), 2, padding=0),
    "beside itself": lambda y: torch.cat([y, y.flip(2)], 3),
    "beside nothing": lambda y: torch.cat([torch.zeros(0), y], 2),
}
UNEVEN: dict[str, Between] = {
    "zeros around": lambda y: F.pad(y, (1, 1, 0, 2)),
    "zeros beside": lambda y: torch.cat([y, zeros(y)], 2),
    "zeros above": lambda y: torch.stack([y, zeros(y)], 2).flatten(2, 3),
    "a padded pool": lambda y: F.avg_pool2d(y, 3, 1, 1),
    "a sum": lambda y: y.sum((2, 3), keepdim=True),
    "a factor": lambda y: y * 0.5,
    "a quotient": lambda y: y / 3,
    "a sign": lambda y: -y,
    "twice": lambda y: y + y.flip(2),
    "less": lambda y: y - y.mean((2, 3), keepdim=True),
    "a triangle": lambda y: y.tril(),
    "ones around": lambda y: F.pad(y, (1, 1, 1, 1), value=1.0),
    "positions weighed": lambda y: y * torch.linspace(0, 1, SIDE, dtype=y.dtype),
}
READERS: dict[str, Callable[[], nn.Module]] = {
    "a layer": lambda: nn.Conv2d(WIDTH, 4, 1),
    "a window": lambda: nn.Conv2d(WIDTH, 4, 3),
    "a stride": lambda: nn.Conv2d(WIDTH, 4, 2, 2),
    "a padded window": lambda: nn.Conv2d(WIDTH, 4, 3, padding=1),
    "a padded layer": lambda: nn.Conv2d(WIDTH, 4, 1, padding=1),
    "a padded row": lambda: nn.Conv2d(WIDTH, 4, (1, 3), padding=(0, 1)),
    "a wide window": lambda: nn.Conv2d(WIDTH, 4, 2, dilation=2),
    "transposed": lambda: nn.ConvTranspose2d(WIDTH, 4, 2, 2),
    "transposed by 1": lambda: nn.ConvTranspose2d(WIDTH, 4, 1),
    "transposed in steps": lambda: nn.ConvTranspose2d(WIDTH, 4, 1, 2),
}
TAKES = {"a layer", "a window", "a stride", "a wide window", "transposed by 1"}


class Map(nn.Module):
    """Channels, a norm over them with gain and shift, something between, and what reads it."""

    def __init__(self, between: Between, reader: nn.Module) -> None:
        super().__init__()
        self.enter, self.norm = nn.Conv2d(3, WIDTH, 1), nn.LayerNorm(WIDTH)
        self.between, self.reader = between, reader

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.enter(x).movedim(1, 3)).movedim(3, 1)
        return self.reader(self.between(y)).tanh()


def folds_exactly(model: nn.Module, x: Tensor) -> alignkit.SymmetryGraph:
    """Return a graph of everything, which was refuted nowhere, and whose folds change nothing."""
    graph = alignkit.trace(model, x, symmetries="all")
    assert "change the outputs" not in graph.report() and "changes the outputs" not in graph.report()
    torch.testing.assert_close(alignkit.fold(model, graph).network(x), model(x), rtol=0, atol=1e-9)
    return graph


def example(model: nn.Module, *shape: int) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    return perturbed(model).double().eval(), torch.randn(shape).double()


def folded(graph: alignkit.SymmetryGraph) -> set[str]:
    return {fold.shift for fold in graph.folds if isinstance(fold, alignkit.graph.Shift)}


@pytest.mark.parametrize("name", [*LEVEL, *UNEVEN])
def test_a_shift_goes_through_what_leaves_it_at_all_positions(name: str) -> None:
    model, x = example(Map({**LEVEL, **UNEVEN}[name], nn.Conv2d(WIDTH, 4, 1)), 2, 3, SIDE, SIDE)
    graph = folds_exactly(model, x)
    assert folded(graph) == ({"norm.bias"} if name in LEVEL else set())


@pytest.mark.parametrize("name", READERS)
def test_a_shift_goes_into_readers_that_read_it_at_every_position(name: str) -> None:
    model, x = example(Map(lambda y: y, READERS[name]()), 2, 3, SIDE, SIDE)
    graph = folds_exactly(model, x)
    assert graph.groups["enter"].kind == "centred"
    assert folded(graph) == ({"norm.bias"} if name in TAKES else set())


GAINS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "added": lambda y, w, b: y * w + b,
    "subtracted": lambda y, w, b: y * w - b,
    "one more": lambda y, w, b: y * (1 + w),
    "one less": lambda y, w, b: y * (w - 1),
    "less than one": lambda y, w, b: y * (1 - w),
    "two less": lambda y, w, b: y * (w - 2) + b,
    "twice added": lambda y, w, b: torch.add(y * w, b, alpha=2),
    "divided": lambda y, w, b: y / (w + 3),
}


class ByHand(nn.Module):
    """A norm with a gain and a shift, put together in some way."""

    def __init__(self, gain: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.enter, self.read, self.gain = nn.Linear(3, WIDTH), nn.Linear(WIDTH, 4), gain
        self.weight, self.bias = nn.Parameter(torch.randn(WIDTH)), nn.Parameter(torch.randn(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        y = self.enter(x)
        y = y * y.pow(2).mean(-1, keepdim=True).add(1e-6).rsqrt()
        return self.read(self.gain(y, self.weight, self.bias)).tanh()


@pytest.mark.parametrize("name", GAINS)
def test_gains_and_shifts_fold_with_their_signs_and_factors(name: str) -> None:
    folds_exactly(*example(ByHand(GAINS[name]), 7, 3))


class Averages(nn.Module):
    """Values with a bias, averaged over positions in some way, and read."""

    def __init__(self, average: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(3, WIDTH) for _ in range(3))
        self.read, self.average = nn.Linear(WIDTH, 4), average

    def forward(self, x: Tensor) -> Tensor:
        return self.read(self.average((self.q(x) @ self.k(x).mT).softmax(-1), self.v(x))).tanh()


AVERAGES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "plain": lambda a, v: a @ v,
    "half": lambda a, v: (a @ v) * 0.5,
    "half before": lambda a, v: a @ (v * 0.5),
    "negative": lambda a, v: -(a @ v),
    "some": lambda a, v: (a * 2) @ v,
    "with zeros": lambda a, v: F.pad(a @ v, (0, 0, 0, 1)),
    "causal": lambda a, v: a.tril() @ v,
    "sum": lambda a, v: (a @ v).sum(1),
    "mean": lambda a, v: (a @ v).mean(1),
    "with itself": lambda a, v: a @ v + v,
}


@pytest.mark.parametrize("name", AVERAGES)
def test_biases_of_values_go_through_averages_only(name: str) -> None:
    folds_exactly(*example(Averages(AVERAGES[name]), 2, 4, 3))


def test_values_go_through_averages_behind_an_empty_cache() -> None:
    model, x = example(Averages(lambda a, v: a @ torch.cat([torch.zeros(0), v], 1)), 2, 4, 3)
    graph = folds_exactly(model, x)
    assert any(isinstance(fold, alignkit.graph.Through) for fold in graph.folds)
