"""Barriers of aligners on pairs of networks of a data set, and what can be said about their means.

A method is a name and the arguments of `alignkit.solve`. All methods see the same pairs; the barrier is that of
[Navon24]: the largest excess of the loss over the line between the ends, clipped at 0.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import process_time
from typing import Any

import numpy as np
import torch

import alignkit
import alignkit.zoo as zoo

NUMBERS = re.compile(r"\[[-+.,\deE\s]+\]")
LINE_POINTS = 11
RESET_POINTS = 5
"""Places on the line where statistics of BatchNorm are recomputed."""
BOOTSTRAPS = 2000
SWITCHES: Mapping[str, Mapping[str, Any]] = {
    "folder": {"type": Path, "required": True, "help": "sets of networks, as data.py and paper_data.py make them"},
    "data": {"type": Path, "help": "holds the folders mnist and fashion-mnist"},
    "aligners": {"type": Path, "required": True, "help": "trained aligners, as aligners.py and domains.py write them"},
    "output": {"type": Path, "required": True, "help": "JSON file; what it holds is not measured again"},
    "set": {"required": True, "help": "name of a set of networks"},
    "only": {"nargs": "*", "help": "names of sets or columns; all if left out"},
    "seeds": {"type": int, "nargs": "*", "help": "seeds of the training of aligners"},
    "pairs": {"type": int, "help": "pairs of networks"},
    "sinkhorn_pairs": {"type": int, "help": "pairs that Sinkhorn aligns, the first ones"},
    "sinkhorn_steps": {"type": int, "help": "steps of Sinkhorn"},
    "samples": {"type": int, "help": "test samples of a barrier"},
    "images": {"type": int, "help": "training samples of methods that take data"},
    "skip": {"type": int, "help": "networks of large sets that are left out"},
}
"""What scripts of this folder take under one name."""


@dataclass(frozen=True)
class Method:
    """One column of a table.

    Attributes:
        name: Its name.
        solver: Solver or chain; None leaves B as it is.
        options: Options of the solver.
        data: Give it the task of the training data.
        best_of: Starts with as many seeds and keeps the smallest distance of weights.
    """

    name: str
    solver: str | None
    options: Mapping[str, Any] = field(default_factory=dict)
    data: bool = False
    best_of: int = 1

    def align(self, pair: alignkit.Pair, task: alignkit.Task, seed: int) -> alignkit.Solution | None:
        """Solve one pair."""
        if self.solver is None:
            return None
        chosen = task if self.data else None
        found = [
            alignkit.solve(pair, solver=self.solver, task=chosen, seed=seed * self.best_of + again, **self.options)
            for again in range(self.best_of)
        ]
        return min(found, key=lambda solution: solution.objective_after)


NAIVE = Method("naive", None)
WEIGHTS = Method("weight matching", "weight_matching")
WEIGHTS_BEST = Method("weight matching, best of 10", "weight_matching", {"restarts": 9})
ACTIVATIONS = Method("activation matching", "activation_matching", data=True)
BOTH = Method("activation, then weight matching", "activation_matching > weight_matching", data=True)
PROBES = Method("probes", "deepalign", {"encoder": "probes", "midpoint_steps": 0})
LEARNED = Method("learned", "deepalign", {"encoder": "learned", "midpoint_steps": 0})
STAND_INS = Method("probes, stand-ins", "deepalign", {"encoder": "probes"})
"""The default without data."""


def with_checkpoint(method: Method, checkpoint: Path | None) -> Method:
    """The same method with other trained weights than the shipped ones."""
    if checkpoint is None or method.options.get("encoder") != "learned":
        return method
    return Method(method.name, method.solver, {**method.options, "checkpoint": checkpoint}, method.data, method.best_of)


def ring(networks: zoo.NetworkSet, split: str) -> list[tuple[int, int]]:
    """Pairs in which each network of a split meets its two neighbours; views of one signal meet each other."""
    pairs = set(networks.pairs(split))
    chosen = networks.indices(split)
    turned = list(zip(chosen, [*chosen[1:], chosen[0]], strict=True))
    around = [pair for pair in turned if tuple(sorted(pair)) in pairs]
    return around if len(around) >= len(pairs) // 2 or len(around) >= len(chosen) else sorted(pairs)


@dataclass(frozen=True)
class Measured:
    """Barriers of all methods on the pairs of one data set.

    Attributes:
        name: Name of the data set.
        pairs: Numbers of the two networks of each pair.
        barriers: For each method, one number a pair.
        areas: Areas under the excess.
        seconds: CPU seconds a pair.
        distances: Squared distance of weights after alignment.
    """

    name: str
    pairs: list[tuple[int, int]]
    barriers: dict[str, list[float]]
    areas: dict[str, list[float]]
    seconds: dict[str, list[float]]
    distances: dict[str, list[float]]


def measure(
    name: str,
    networks: zoo.NetworkSet,
    methods: Sequence[Method],
    *,
    data: Path | None,
    split: str = "test",
    pairs: int | Sequence[tuple[int, int]] = 36,
    seed: int = 0,
    samples: int = 2000,
    images: int = 2000,
    progress: Callable[[str], None] = lambda text: None,
) -> Measured:
    """Align every pair with every method and evaluate the line between the two networks.

    Args:
        name: What to call the data set.
        networks: The data set.
        methods: Columns of the table.
        data: Folder of idx files.
        split: Whose networks.
        pairs: These, or at most so many in which networks meet their neighbours.
        seed: Seed of the solvers.
        samples: Test samples of the barrier.
        images: Training samples of methods that take data.
        progress: Called with a line a pair.
    """
    chosen = ring(networks, split)[:pairs] if isinstance(pairs, int) else list(pairs)
    own = networks.manifest.plan.source.own_targets
    tasks: dict[int, tuple[alignkit.Task, alignkit.Task]] = {}
    result = Measured(name, chosen, *({m.name: [] for m in methods} for _ in range(4)))
    for at, (i, j) in enumerate(chosen):
        target = networks.target(i) if own else 0
        if target not in tasks:
            tasks = {target: _tasks(networks, data, i, samples, images)}
        learn, test = tasks[target]
        module_a, module_b = networks.model(), networks.model()
        module_a.load_state_dict(networks[i])
        module_b.load_state_dict(networks[j])
        pair = networks.graph.bind(module_a, module_b)
        for method in methods:
            started = process_time()
            solution = method.align(pair, learn, seed)
            seconds = process_time() - started
            aligned = module_b if solution is None else solution.apply(module_b)
            barrier, area = line_between(test, learn, module_a, aligned)
            result.barriers[method.name].append(barrier)
            result.areas[method.name].append(area)
            result.seconds[method.name].append(seconds)
            distance = pair_distance(pair) if solution is None else solution.objective_after
            result.distances[method.name].append(distance)
        progress(f"{name} {at + 1}/{len(chosen)}")
    return result


def line_between(
    test: alignkit.Task, learn: alignkit.Task, a: torch.nn.Module, b: torch.nn.Module
) -> tuple[float, float]:
    """Barrier and area; networks with BatchNorm get statistics of their own at every place, from training samples."""
    if not any(isinstance(module, torch.nn.modules.batchnorm._BatchNorm) for module in a.modules()):
        line = alignkit.interpolate(test, a, b, points=LINE_POINTS)
        return line.barrier, line.auc
    places = np.linspace(0, 1, RESET_POINTS)
    losses = []
    for place in places:
        mixed = alignkit.average([a, b], [1 - float(place), float(place)])
        losses.append(test.evaluate(alignkit.reset_batchnorm(mixed, learn)).loss)
    excess = np.clip(np.array(losses) - ((1 - places) * losses[0] + places * losses[-1]), 0, None)
    return float(excess.max()), float(np.trapezoid(excess, places))


def pair_distance(pair: alignkit.Pair) -> float:
    """Squared distance of the two networks as they are."""
    return float(alignkit.matching.Objective(pair).distance2(alignkit.Alignment.identity(pair.graph)))


def _tasks(
    networks: zoo.NetworkSet, data: Path | None, index: int, samples: int, images: int
) -> tuple[alignkit.Task, alignkit.Task]:
    return (
        networks.task("train", images, data, index=index),
        networks.task("test", samples, data, index=index),
    )


# ---------------------------------------------------------------------- statistics


def bootstrap(
    measured: Measured, statistic: Callable[[dict[str, float]], float], seed: int = 0
) -> tuple[float, float, float]:
    """A statistic of the methods' mean barriers with its 95 % interval, networks drawn anew.

    A pair counts as often as its two networks were drawn, multiplied.

    Args:
        measured: The barriers.
        statistic: From mean barriers by method to a number.
        seed: Seed of the draws.
    """
    generator = np.random.default_rng(seed)
    members = sorted({network for pair in measured.pairs for network in pair})
    place = {network: at for at, network in enumerate(members)}
    left, right = (np.array([place[pair[side]] for pair in measured.pairs]) for side in (0, 1))
    barriers = {name: np.array(found) for name, found in measured.barriers.items()}
    values = []
    for _ in range(BOOTSTRAPS):
        counts = np.bincount(generator.integers(len(members), size=len(members)), minlength=len(members))
        weights = counts[left] * counts[right]
        if weights.sum():
            values.append(statistic({name: float(found @ weights / weights.sum()) for name, found in barriers.items()}))
    low, high = np.quantile(values, [0.025, 0.975])
    return statistic(means(measured)), float(low), float(high)


def means(measured: Measured) -> dict[str, float]:
    """Mean barrier of each method."""
    return {name: float(np.mean(found)) for name, found in measured.barriers.items()}


def geometric(values: Sequence[float]) -> float:
    """Geometric mean of positive numbers."""
    return float(np.exp(np.mean(np.log(np.maximum(values, 1e-12)))))


def write_json(path: Path, facts: Any) -> None:
    """Write results, lists of numbers on one line; the whole file appears or nothing."""
    temporary = path.with_suffix(".part")
    text = NUMBERS.sub(lambda found: " ".join(found[0].split()), json.dumps(facts, indent=1))
    temporary.write_text(text + "\n", encoding="utf-8")
    temporary.replace(path)


def read_json(path: Path) -> Any:
    """Results that were written before."""
    return json.loads(path.read_text(encoding="utf-8"))


def switches(doc: str | None, *names: str, **defaults: Any) -> argparse.ArgumentParser:
    """A parser with the switches of this folder: ``--folder``, ``--data``, those named, and those with a default.

    Args:
        doc: The docstring of a script.
        names: Names in `SWITCHES`.
        defaults: Defaults by such names.
    """
    parser = argparse.ArgumentParser(description=(doc or "").splitlines()[0])
    for name in ("folder", "data", *names, *defaults):
        given = {"default": defaults[name], "required": False} if name in defaults else {}
        parser.add_argument(f"--{name.replace('_', '-')}", **{**SWITCHES[name], **given})
    return parser


def single_thread() -> None:
    """Measure on one thread."""
    torch.set_num_threads(1)
