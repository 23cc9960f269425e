"""Every solver on MLPs, a BatchNorm ResNet and a ViT, all trained on MNIST: the table of `alignkit.compare`.

    OMP_NUM_THREADS=1 ALIGNKIT_DATA=... python tests/benchmarks/bench_solvers.py [--kinds mlp resnet vit] [--pairs 1]

Means over pairs of networks from different seeds. ``plain_reference`` is [Ainsworth23]'s Algorithm 1 as one would
write it down, in this file; the last columns are seconds and squared distance divided by its own, in the same run.
Graphs with families (the heads of the ViT) are beyond it. Solvers learn from 2,000 training images (activation
matching, Sinkhorn, straight-through); barrier, AUC and accuracy are measured on test images, "repaired" is the
accuracy of the average after `alignkit.repair` on the training images. Seconds are wall-clock seconds of the solver
in one thread. The networks are trained when the script runs for the first time, and kept in the temporary folder.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

import alignkit
import image_networks
import networks
from alignkit.jobs.compare.comparison import Comparison, ComparisonRow
from alignkit.solver import Outcome, Problem, Report, Solver, SolverOptions, Step

PLAIN = "plain_reference"
COLUMNS = ("distance", "barrier", "auc", "middle_metric", "repaired_metric", "seconds", "peak_memory")


class PlainReference(Solver[SolverOptions]):
    """[Ainsworth23], Algorithm 1, written plainly: groups in random order, each in full, until none moves."""

    name = PLAIN

    def solve(self, problem: Problem, report: Report) -> Outcome:
        uses: dict[str, list[tuple[str, int]]] = {name: [] for name in problem.graph.groups}
        layouts = {name: layout.split() for name, layout in problem.graph.spec().items()}
        for tensor, axes in layouts.items():
            for axis, group in enumerate(axes):
                if group in uses:
                    uses[group].append((tensor, axis))
                elif group != "." and not group.isdigit():
                    raise ValueError(f"the plain algorithm cannot read {' '.join(axes)!r} of {tensor}")
        a = {name: tensor.detach().numpy() for name, tensor in problem.a.items()}
        b = {name: tensor.detach().numpy() for name, tensor in problem.b.items()}
        elements = {name: np.arange(group.size) for name, group in problem.graph.groups.items()}
        order = np.random.default_rng(problem.seed)
        sweeps, progress = 0, True
        while progress:
            progress, sweeps = False, sweeps + 1
            for group in order.permutation(list(elements)):
                size = len(elements[group])
                gain = np.zeros((size, size))
                for tensor, at in uses[group]:
                    right = b[tensor]
                    for axis, other in enumerate(layouts[tensor]):
                        if axis != at and other in elements:
                            right = np.take(right, elements[other], axis)
                    left = np.moveaxis(a[tensor], at, 0).reshape(size, -1)
                    gain += left @ np.moveaxis(right, at, 0).reshape(size, -1).T
                found = linear_sum_assignment(gain, maximize=True)[1]
                rows = np.arange(size)
                if gain[rows, found].sum() > gain[rows, elements[group]].sum() + 1e-12:
                    elements[group], progress = found, True
        alignment = alignkit.Alignment(
            problem.graph, {name: torch.as_tensor(element) for name, element in elements.items()}
        )
        report(Step(sweeps, problem.objective.distance2(alignment)))
        return Outcome(alignment)


@dataclass(frozen=True)
class Kind:
    """Networks of one architecture.

    Attributes:
        network: Makes the network of a seed.
        images: How many test images the line is measured on.
        points: Places on the line.
    """

    network: Callable[[int], nn.Module]
    images: int
    points: int


KINDS = {
    "mlp": Kind(networks.mnist_mlp, 10_000, 25),
    "resnet": Kind(lambda seed: image_networks.mnist_network("resnet", seed), 2_000, 11),
    "vit": Kind(lambda seed: image_networks.mnist_network("vit", seed), 2_000, 11),
}


def task(model: nn.Module, data: tuple[Tensor, Tensor], count: int) -> alignkit.Task:
    return alignkit.Task(model, (data[0][:count], data[1][:count]), "cross_entropy", "accuracy")


def compared(kind: Kind, seeds: tuple[int, int], solvers: Sequence[Any]) -> Comparison:
    """All solvers on one pair."""
    a, b = (kind.network(seed) for seed in seeds)
    graph = alignkit.trace(a, torch.zeros(2, 784))
    train, test = networks.mnist("train"), networks.mnist("t10k")
    alignkit.solve(graph, a, b, solver=PlainReference() if is_flat(graph) else "weight_matching")  # pays for imports
    return alignkit.compare(
        graph.bind(a, b),
        solvers=[*([PlainReference()] if is_flat(graph) else []), *solvers],
        task=task(a, train, 2_000),
        evaluation=alignkit.Evaluation(task(a, test, kind.images), kind.points, repair=True),
    )


def is_flat(graph: alignkit.SymmetryGraph) -> bool:
    """Whether every axis is fixed or holds one group."""
    return not any(sign in layout for layout in graph.spec().values() for sign in "(+[")


def mean(rows: Sequence[ComparisonRow], quantity: str) -> float:
    values = [value for row in rows if (value := getattr(row, quantity)) is not None]
    return fmean(values) if values else float("nan")


def show(name: str, tables: Sequence[Comparison], accuracy: float) -> None:
    print(f"\n{name}: {len(tables)} pairs, test accuracy of the networks {accuracy:.4f} or more")
    print(
        f"{'solver':38}{'distance':>10}{'gain':>8}{'barrier':>9}{'AUC':>9}{'accuracy':>10}{'repaired':>10}{'seconds':>9}"
        f"{'peak MB':>9}{'time ratio':>12}{'distance ratio':>16}"
    )
    rows = {solver: [table.row(solver) for table in tables] for solver in tables[0].solvers}
    base = {column: mean(rows[PLAIN], column) if PLAIN in rows else float("nan") for column in COLUMNS}
    for solver, found in rows.items():
        values = {column: mean(found, column) for column in COLUMNS}
        gain = 100 * mean(found, "gain") / mean(found, "distance_before")
        print(
            f"{solver:38}{values['distance']:10.2f}{gain:7.1f}%{values['barrier']:9.4f}{values['auc']:9.4f}"
            f"{values['middle_metric']:10.4f}{values['repaired_metric']:10.4f}{values['seconds']:9.3f}"
            f"{values['peak_memory'] / 2**20:9.1f}"
            f"{values['seconds'] / base['seconds']:12.2f}{values['distance'] / base['distance']:16.4f}"
        )
    for problem in dict.fromkeys(problem for table in tables for problem in table.problems()):
        print(problem)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--kinds", nargs="+", choices=tuple(KINDS), default=list(KINDS))
    parser.add_argument("--pairs", type=int, default=1)
    parser.add_argument("--solvers", nargs="+", help="default: all that are registered, and two chains")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    chains = ["activation_matching > weight_matching", "weight_matching > sinkhorn"]
    known = [name for name in alignkit.list_solvers() if name != "identity"]
    solvers = options.solvers or [*known, *(c for c in chains if set(c.split(" > ")) <= set(known))]
    results = {}
    for name in options.kinds:
        seeds = list(itertools.combinations(range(4), 2))[: options.pairs]
        accuracy = min(networks.accuracy(KINDS[name].network(seed)) for seed in {s for pair in seeds for s in pair})
        tables = [compared(KINDS[name], pair, solvers) for pair in seeds]
        show(name, tables, accuracy)
        results[name] = [json.loads(table.to_json()) for table in tables]
    if options.json:
        options.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
