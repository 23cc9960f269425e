"""Figures that the literature is known for, small: one command each, drawn in docs/figures.md.

    python tests/benchmarks/bench_figures.py width  --json docs/results/figures.json
    python tests/benchmarks/bench_figures.py repair --json docs/results/figures.json
    python tests/benchmarks/bench_figures.py many   --json docs/results/figures.json

Networks are trained by `alignkit.zoo` on scikit-learn's digits, from seeds of their own. The excess is the test loss of
the average of two above the mean of theirs. Averages with BatchNorm get statistics of their own from the training
images. One thread.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from torch import nn

import alignkit
import alignkit.zoo as zoo

DIGITS = zoo.source("digits")
TRAIN, TEST = DIGITS.load(split="train"), DIGITS.load(split="test")
SOLVERS = ("identity", "weight_matching", "activation_matching")
MLP_WIDTHS, RESNET_WIDTHS = (8, 16, 32, 64, 128, 256, 512), (2, 4, 8, 16, 32)


def networks(architecture: zoo.Architecture, count: int, epochs: int) -> list[nn.Module]:
    """Train networks of one architecture, as modules."""
    trained = zoo.train(architecture, DIGITS, count, recipe=zoo.Recipe(epochs=epochs))
    models = []
    for i in range(count):
        model = architecture.build()
        model.load_state_dict({name: tensor[i] for name, tensor in trained.weights.items()})
        models.append(model.eval())
    return models


def excess(models: list[nn.Module], average: nn.Module) -> float:
    """Test loss of an average above the mean of the networks."""
    task = alignkit.Task(average, TEST, "cross_entropy", "accuracy")
    return task.evaluate(average).loss - statistics.fmean(task.evaluate(model).loss for model in models)


def width() -> list[dict[str, Any]]:
    """The excess against the width of an MLP and of a residual network with 20 layers."""
    rows = []
    families: list[tuple[str, tuple[int, ...], Callable[[int], zoo.Architecture], int]] = [
        ("MLP, 3 hidden layers", MLP_WIDTHS, lambda w: architecture("mlp", widths=(w, w, w)), 20),
        ("ResNet20 with BatchNorm", RESNET_WIDTHS, lambda w: architecture("resnet", width=w, blocks=(3, 3, 3)), 10),
    ]
    for family, widths, build, epochs in families:
        for size in widths:
            models = networks(build(size), 3, epochs)
            rows += [{"family": family, "width": size, **row} for row in _pairs(models)]
            print(rows[-len(SOLVERS) :], flush=True)
    return rows


def repair() -> list[dict[str, Any]]:
    """The excess before and after repair, against the depth of MLPs without norms."""
    rows = []
    for depth in (2, 4, 6, 8):
        models = networks(architecture("mlp", widths=(128,) * depth), 3, 20)
        rows += [{"depth": depth, **row} for row in _pairs(models, repaired=True)]
        print(rows[-len(SOLVERS) :], flush=True)
    return rows


def many() -> list[dict[str, Any]]:
    """Accuracy of the mean of 2 to 16 networks, by how they were brought to one order."""
    models = networks(architecture("mlp", widths=(128, 128)), 16, 20)
    task = alignkit.Task(models[0], TEST, "cross_entropy", "accuracy")
    graph = alignkit.trace(models[0], TEST[0][:2])
    rows = []
    for count in (2, 4, 8, 16):
        some = models[:count]
        for method in ("none", "reference", "merge_many", "universe"):
            started = time.process_time()
            aligned = some if method == "none" else alignkit.align_many(graph, *some, method=method).apply(some)
            seconds = time.process_time() - started
            metric = task.evaluate(alignkit.average(aligned)).metric
            rows.append({"networks": count, "method": method, "accuracy": metric, "cpu_seconds": round(seconds, 3)})
        print(rows[-4:], flush=True)
    return rows


def architecture(family: str, **fields: Any) -> zoo.Architecture:
    """An architecture for the digits."""
    return zoo.architecture(family, **fields, shape=tuple(TRAIN[0].shape[1:]), outputs=10)


def _pairs(models: list[nn.Module], *, repaired: bool = False) -> list[dict[str, Any]]:
    """Mean excess over all pairs for every solver, and after repair."""
    graph = alignkit.trace(models[0], TEST[0][:2])
    data = alignkit.Task(models[0], (TRAIN[0][:512], TRAIN[1][:512]), "cross_entropy")
    has_statistics = any(isinstance(part, nn.BatchNorm2d) for part in models[0].modules())
    rows = []
    for solver in SOLVERS:
        plain, mended = [], []
        for a, b in combinations(models, 2):
            aligned = alignkit.solve(graph, a, b, solver=solver, task=data).apply(b)
            average = alignkit.average([a, aligned])
            if has_statistics:
                average = alignkit.reset_batchnorm(average, data.batches)
            plain.append(excess([a, b], average))
            if repaired:
                mended.append(excess([a, b], alignkit.repair(average, [a, aligned], data.batches)))
        row = {"solver": solver, "pairs": len(plain), "excess": round(statistics.fmean(plain), 4)}
        rows.append({**row, "repaired": round(statistics.fmean(mended), 4)} if repaired else row)
    return rows


def main() -> None:
    """Measure one figure and put it into the file of all."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("figure", choices=("width", "repair", "many"))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = {"width": width, "repair": repair, "many": many}[options.figure]()
    if options.json:
        figures = json.loads(options.json.read_text()) if options.json.exists() else {}
        options.json.write_text(json.dumps({**figures, options.figure: rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
