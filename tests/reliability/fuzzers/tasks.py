"""Tasks and loaders: data of every form, losses, weights; lines between networks; statistics of norms."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import alignkit
from alignkit import Task
from fuzzers.engine import Case, Dice, expect
from fuzzers.networks import close, perceptron
from fuzzers.values import DTYPES, ODD, anything, filled, shown

Pairs = list[tuple[Tensor, Tensor]]
INPUTS, OUTPUTS = 3, 2


class Lazy:
    """A sequence that makes its batches when it is asked."""

    def __init__(self, pairs: Pairs) -> None:
        self.pairs = pairs

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.pairs[index]


def failing(pairs: Pairs) -> Iterator[tuple[Tensor, Tensor]]:
    yield pairs[0]
    raise OSError("the disk is gone")


def whole(pairs: Pairs) -> tuple[Tensor, Tensor]:
    return torch.cat([x for x, _ in pairs]), torch.cat([y for _, y in pairs])


RIGHT: dict[str, Callable[[Pairs], Any]] = {
    "list": list,
    "tuple": tuple,
    "generator": lambda pairs: (pair for pair in pairs),
    "lazy": Lazy,
    "two tensors": whole,
    "loader": lambda pairs: DataLoader(TensorDataset(*whole(pairs)), batch_size=2, generator=torch.Generator()),
    "lists as inputs": lambda pairs: [([x], y) for x, y in pairs],
    "dicts as inputs": lambda pairs: [({"input": x}, y) for x, y in pairs],
}
"""Ways to hand over the same samples."""
WRONG: dict[str, Callable[[Dice, Pairs], Any]] = {
    "nothing": lambda dice, pairs: [],
    "no generator": lambda dice, pairs: iter(()),
    "empty batch": lambda dice, pairs: [*pairs, (pairs[0][0][:0], pairs[0][1][:0])],
    "failing": lambda dice, pairs: failing(pairs),
    "data set": lambda dice, pairs: TensorDataset(*whole(pairs)),
    "only inputs": lambda dice, pairs: [x for x, _ in pairs],
    "triples": lambda dice, pairs: [(x, y, y) for x, y in pairs],
    "another width": lambda dice, pairs: [(torch.cat([x, x], 1), y) for x, y in pairs],
    "other targets": lambda dice, pairs: [(x, torch.cat([y, y], 1)) for x, y in pairs],
    "fewer targets": lambda dice, pairs: [(x, y[:-1]) for x, y in pairs],
    "dtype": lambda dice, pairs: [(filled(dice, tuple(x.shape), dice.choice(DTYPES)), y) for x, y in pairs],
    "odd inputs": lambda dice, pairs: [(ODD[dice.choice(sorted(ODD))](x), y) for x, y in pairs],
    "odd targets": lambda dice, pairs: [(x, ODD[dice.choice(sorted(ODD))](y)) for x, y in pairs],
    "anything": lambda dice, pairs: anything(dice),
    "anything in a batch": lambda dice, pairs: [(anything(dice), y) for _, y in pairs],
    "keyword": lambda dice, pairs: [({"inptu": x}, y) for x, y in pairs],
}
"""Data that is no data, or does not fit the model."""


def samples(dice: Dice) -> Pairs:
    sizes = [dice.randint(1, 4) for _ in range(dice.randint(1, 3))]
    return [(dice.randn(size, INPUTS), dice.randn(size, OUTPUTS)) for size in sizes]


def mean_loss(net: nn.Module, pairs: Pairs) -> float:
    """The mean squared error of a perceptron by numpy, in its own precision."""
    state = {name: tensor.detach().numpy() for name, tensor in net.state_dict().items()}
    total = count = 0.0
    for x, y in pairs:
        hidden = x.numpy()
        for i in range(0, 2 * len(state) // 2, 2):
            if f"{i}.weight" in state:
                hidden = (np.maximum(hidden, 0) if i else hidden) @ state[f"{i}.weight"].T + state[f"{i}.bias"]
        total += float(((hidden.astype(float) - y.numpy()) ** 2).mean()) * len(x)
        count += len(x)
    return total / count


def evaluation(dice: Dice, folder: Path) -> Case:
    """The loss of a task is the mean over all samples, however they are handed over."""
    pairs, net = samples(dice), perceptron(INPUTS, 4, OUTPUTS)
    form, wrong = dice.choice(sorted(RIGHT)), dice.choice(sorted(WRONG))
    bad = dice.chance(0.5)
    data = WRONG[wrong](dice, pairs) if bad else RIGHT[form](pairs)
    loss: Any = "mse"
    metric: Any = None
    if dice.chance(0.15):
        loss, bad = (
            dice.pick("x", None, lambda o, t: o, lambda o, t: math.nan, lambda o, t: 1 / 0, anything(dice)),
            True,
        )
    elif dice.chance(0.2):
        metric = dice.pick("accuracy", "x", lambda o, t: 0.5, lambda o, t: o, anything(dice))
    chunk = dice.pick(None, None, 1, 2, 100, 0, -1)
    weights = odd_weights(dice, net) if dice.chance(0.15) else net

    def run() -> None:
        task = Task(net, data, loss, metric, chunk=chunk)
        results = [task.evaluate(weights) for _ in range(2)]
        expect(results[0] == results[1], "the second evaluation gives another result")
        if not bad and loss == "mse" and weights is net:
            expect(
                close(results[0].loss, mean_loss(net, pairs), 1e-4), f"{results[0].loss}, not {mean_loss(net, pairs)}"
            )
            expect(results[0].samples == sum(len(x) for x, _ in pairs), "samples were left out")

    what = f"{wrong if bad else form}, {shown(loss)}, {shown(metric)}, chunk {chunk}, {type(weights).__name__}"
    return Case(f"evaluate with {what}", run, kept=(net, pairs))


def odd_weights(dice: Dice, net: nn.Module) -> Any:
    state: dict[Any, Any] = dict(net.state_dict())
    name = dice.choice(sorted(state))
    kind = dice.choice((*sorted(ODD), "missing", "module", "anything"))
    if kind == "missing":
        del state[name]
    elif kind == "module":
        return perceptron(INPUTS, 5, OUTPUTS)
    elif kind == "anything":
        return anything(dice)
    else:
        state[name] = ODD[kind](state[name])
    return state


def line(dice: Dice, folder: Path) -> Case:
    """The losses on the line are those of the averages."""
    pairs, a, b = samples(dice), perceptron(INPUTS, 4, OUTPUTS), perceptron(INPUTS, 4, OUTPUTS)
    points = dice.pick(2, 3, 5, 1, 0, -1, 7)
    bad = dice.chance(0.3)
    other = odd_weights(dice, b) if bad else b
    data = WRONG[dice.choice(sorted(WRONG))](dice, pairs) if dice.chance(0.2) else pairs
    plain = not bad and data is pairs

    def run() -> None:
        curve = alignkit.interpolate(Task(a, data, "mse"), a, other, points)
        expect(len(curve.losses) == points, "there are other points")
        if plain:
            for share, loss in zip(curve.lambdas, curve.losses, strict=True):
                mixed = copy.deepcopy(a)
                ends = zip(a.state_dict().items(), b.state_dict().values(), strict=True)
                mixed.load_state_dict({name: (1 - share) * left + share * right for (name, left), right in ends})
                expect(
                    close(float(loss), mean_loss(mixed, pairs), 1e-4),
                    f"at {share}: {loss}, not {mean_loss(mixed, pairs)}",
                )

    return Case(f"interpolate over {points} points", run, kept=(a, b, pairs))


def norm_net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(INPUTS, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, OUTPUTS))


def statistics(dice: Dice, folder: Path) -> Case:
    """Recomputed statistics are those of the data; a repaired network computes finite numbers."""
    pairs = [(dice.randn(dice.randint(2, 5), INPUTS), dice.randn(2, OUTPUTS)) for _ in range(dice.randint(1, 3))]
    pairs = [(x, y[:1].expand(len(x), -1)) for x, y in pairs]
    net, other = norm_net(), norm_net()
    net.train(dice.chance(0.5))
    bad = dice.chance(0.5)
    data = (
        WRONG[dice.choice(sorted(WRONG))](dice, pairs)
        if bad
        else RIGHT[dice.choice(("list", "generator", "lazy"))](pairs)
    )
    job = dice.choice(("reset", "repair"))

    def run() -> None:
        if job == "repair":
            fixed = alignkit.repair(alignkit.average([net, other]), [net, other], data)
            outputs = fixed.eval()(pairs[0][0])
            expect(bool(outputs.isfinite().all()), "a repaired network gives NaN")
            return
        fixed = alignkit.reset_batchnorm(net, data)
        expect(fixed is not net and fixed.training == net.training, "the model itself, or another mode")
        if not bad:
            inputs = torch.cat([x for x, _ in pairs]).double().numpy()
            weight, bias = (t.detach().double().numpy() for t in (net[0].weight, net[0].bias))
            mean = (inputs @ weight.T + bias).mean(0)
            expect(
                np.allclose(fixed[1].running_mean.double().numpy(), mean, atol=1e-4), "the mean is not that of the data"
            )

    return Case(f"{job} with {shown(data)}", run, kept=(net, other, pairs))


def make(dice: Dice, folder: Path) -> Case:
    torch.manual_seed(dice.randrange(1000))
    return dice.choice((evaluation, evaluation, line, statistics))(dice, folder)
