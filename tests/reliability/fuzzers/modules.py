"""Random small modules: traced, verified, moved, solved and merged, held against the function that they compute."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

import alignkit
from alignkit import SymmetryGraph
from fuzzers.engine import Case, Dice, WrongResultError, expect
from fuzzers.networks import random_alignment

WIDTH = 4
TOLERANCE = 1e-9
"""Largest change of outputs in float64, relative to the largest output."""


class Residual(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(x)


class Twice(nn.Module):
    """One module in two places: tied weights."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.first = self.second = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.tanh(self.first(x)))


class Parallel(nn.Module):
    """Two branches, joined by a sum, a product or side by side."""

    def __init__(self, left: nn.Module, right: nn.Module, join: str) -> None:
        super().__init__()
        self.left, self.right, self.join = left, right, join
        self.mix = nn.Linear(2 * WIDTH, WIDTH) if join == "cat" else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.left(x), self.right(x)
        if self.join == "cat":
            return self.mix(torch.cat([left, right], -1))
        return left * torch.sigmoid(right) if self.join == "product" else left + right


class Attention(nn.Module):
    def __init__(self, heads: int, causal: bool) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.reshape(x.shape[0], -1, WIDTH)
        q, k, v = self.qkv(tokens).unflatten(-1, (3, self.heads, WIDTH // self.heads)).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        return self.out(mixed.transpose(1, 2).flatten(2)).reshape(x.shape)


class Convolutions(nn.Module):
    """The last axis as channels of a picture of one row."""

    def __init__(self, groups: int, norm: nn.Module) -> None:
        super().__init__()
        self.first = nn.Conv1d(WIDTH, 2 * WIDTH, 3, padding=1)
        self.norm = norm
        self.second = nn.Conv1d(2 * WIDTH, WIDTH, 1, groups=groups)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(functional.gelu(self.norm(self.first(x.transpose(1, 2))))).transpose(1, 2)


class Reordered(nn.Module):
    """Units that are picked, reversed or rolled by hand: their order matters."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.inner = how, nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        y = self.inner(x)
        if self.how == "flip":
            return y.flip(-1)
        if self.how == "roll":
            return y.roll(1, -1)
        if self.how == "index":
            return y[..., [2, 0, 1, 3]]
        if self.how == "halves":
            a, b = y.chunk(2, -1)
            return torch.cat([a * b, b], -1)
        if self.how == "cumsum":
            return y.cumsum(-1)
        return y.sort(-1).values


class Buffered(nn.Module):
    """A buffer for each unit, saved or not, and a bare parameter."""

    def __init__(self, saved: bool) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.rand(WIDTH))
        self.register_buffer("shift", torch.randn(WIDTH), persistent=saved)
        self.inner = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) * self.scale + self.shift


class Recurrent(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.cell = getattr(nn, kind)(WIDTH, WIDTH, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.cell(x)[0]


class Network(nn.Module):
    """Tokens in, blocks, two numbers out."""

    def __init__(self, blocks: nn.Module) -> None:
        super().__init__()
        self.into, self.blocks, self.out = nn.Linear(3, WIDTH), blocks, nn.Linear(WIDTH, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.blocks(self.into(x)))


def norm(dice: Dice, channels: int) -> nn.Module:
    return dice.pick(
        nn.BatchNorm1d(channels), nn.GroupNorm(2, channels), nn.InstanceNorm1d(channels, affine=True), nn.Identity()
    )


def block(dice: Dice, depth: int) -> nn.Module:
    """A random module from tokens to tokens."""
    leaves: list[Callable[[], nn.Module]] = [
        lambda: nn.Linear(WIDTH, WIDTH, bias=dice.chance(0.7)),
        lambda: nn.Sequential(
            nn.Linear(WIDTH, dice.pick(3, 5)), dice.pick(nn.ReLU(), nn.GELU(), nn.Tanh(), nn.Softmax(-1))
        ).append(nn.LazyLinear(WIDTH)),
        lambda: dice.pick(nn.LayerNorm(WIDTH), nn.RMSNorm(WIDTH), nn.Dropout(0.5), nn.ReLU(), nn.PReLU(), nn.SiLU()),
        lambda: Attention(dice.pick(1, 2, 4), dice.chance(0.3)),
        lambda: Convolutions(dice.pick(1, 1, 2, 4), norm(dice, 2 * WIDTH)),
        lambda: Reordered(dice.pick("flip", "roll", "index", "halves", "cumsum", "sort")),
        lambda: Buffered(dice.chance(0.6)),
        lambda: nn.TransformerEncoderLayer(WIDTH, 2, 6, batch_first=True, norm_first=dice.chance(0.5)),
        lambda: Recurrent(dice.pick("RNN", "GRU", "LSTM")),
    ]
    nodes: list[Callable[[], nn.Module]] = [
        lambda: Residual(block(dice, depth - 1)),
        lambda: Twice(block(dice, depth - 1)),
        lambda: Parallel(block(dice, depth - 1), block(dice, depth - 1), dice.pick("sum", "product", "cat")),
        lambda: nn.Sequential(*(block(dice, depth - 1) for _ in range(dice.randint(1, 3)))),
    ]
    return dice.choice(leaves if depth == 0 or dice.chance(0.4) else nodes)()


def network(dice: Dice) -> Network:
    """A network in eval mode and float64, its norms and biases away from where they start."""
    net = Network(block(dice, 2))
    net(torch.zeros(1, 5, 3))  # lazy layers take their sizes
    net = net.double().eval()
    with torch.no_grad():
        for name, tensor in net.state_dict().items():
            if tensor.is_floating_point():
                noise = torch.rand_like(tensor) if "running_var" in name else 0.3 * torch.randn_like(tensor)
                tensor.add_(noise)
    return net


def outputs(net: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        result: Tensor = net(x)
    return result


def expect_same_function(left: nn.Module, right: nn.Module, x: Tensor, what: str) -> None:
    before, after = outputs(left, x), outputs(right, x)
    error = float((before - after).abs().max() / before.abs().max().clamp(min=1e-12))
    expect(error <= TOLERANCE, f"{what}: outputs moved by {error:.2g} of the largest")


def make(dice: Dice, folder: Path) -> Case:
    torch.manual_seed(dice.randrange(10**6))
    net, x, y = network(dice), dice.randn(2, 5, 3, dtype=torch.float64), dice.randn(3, 5, 3, dtype=torch.float64)

    def run() -> None:
        graph: SymmetryGraph = alignkit.trace(net, x)
        alignment = random_alignment(dice, graph)
        moved = alignment.apply(net)
        expect_same_function(net, moved, y, "apply")
        expect_same_function(net, alignment.inverse().apply(moved), y, "the inverse")
        if dice.chance(0.3):
            graph.verify(net, y)
        if dice.chance(0.5):
            solved(dice, graph, net, moved, y)

    return Case(f"{net}", run, kept=(net, x, y))


def solved(dice: Dice, graph: SymmetryGraph, net: Network, moved: nn.Module, y: Tensor) -> None:
    """Solve and merge a network with a reordered copy: the functions stay."""
    solver = dice.pick("weight_matching", "weight_matching", "deepalign", "frank_wolfe")
    options = {"max_steps": 3} if solver == "frank_wolfe" else {}
    merged = alignkit.merge(graph, net, moved, solver=solver, **options)
    solution = merged.alignment
    if not isinstance(solution, alignkit.Solution):
        raise WrongResultError("two networks were aligned as many")
    aligned = solution.apply(moved)
    expect_same_function(net, aligned, y, "the aligned copy")
    if solution.objective_after == 0:
        expect_same_function(net, copy.deepcopy(merged.network), y, "the merge with a copy")
