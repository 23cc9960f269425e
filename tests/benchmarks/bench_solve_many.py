"""1,000 pairs of MNIST MLPs 784-128x3-10: the plain algorithm, `solve` one after the other, and `solve_many`.

    ALIGNKIT_DATA=... python tests/benchmarks/bench_solve_many.py [--pairs 1000] [--networks 16] [--epochs 3]

CPU seconds of one thread, binding included, networks in memory. All methods take turns on parts of the pairs, so that
other work on the machine slows all of them alike. Distances of `solve` and `solve_many` are held against each other.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
from collections.abc import Callable
from pathlib import Path
from time import process_time

import torch
from torch import Tensor

import alignkit
import alignkit.zoo as zoo
from bench_weight_matching import distance2, plain_reference
from networks import mnist_folder

State = dict[str, Tensor]
Pairs = list[tuple[State, State]]
PART = 100


def trained(count: int, epochs: int) -> tuple[alignkit.SymmetryGraph, list[State]]:
    """Networks as in docs/paper.md, but fewer and for fewer epochs; kept in the temporary folder."""
    folder = Path(tempfile.gettempdir()) / f"alignkit-benchmarks-mlps-{count}-{epochs}"
    plan = zoo.plan_set(zoo.Mlp(widths=(128, 128, 128)), zoo.source("mnist"), count, recipe=zoo.Recipe(epochs=epochs))
    zoo.write_set(folder, plan, data=mnist_folder())
    networks = zoo.NetworkSet.open(folder)
    print(f"{count} networks, test accuracy {min(n.accuracy for n in networks.manifest.networks):.4f} or more")
    return networks.graph, list(networks)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--pairs", type=int, default=1000)
    parser.add_argument("--networks", type=int, default=16)
    parser.add_argument("--epochs", type=int, default=3)
    options = parser.parse_args()
    graph, networks = trained(options.networks, options.epochs)
    torch.set_num_threads(1)
    pairs = list(itertools.islice(itertools.cycle(itertools.permutations(networks, 2)), options.pairs))
    methods: dict[str, Callable[[Pairs], list[float]]] = {
        "algorithm written plainly": lambda part: [distance2(a, plain_reference(a, b, 0)) for a, b in part],
        "solve, one by one": lambda part: [alignkit.solve(graph, a, b).objective_after for a, b in part],
        "solve_many": lambda part: [solution.objective_after for solution in alignkit.solve_many(graph, part)],
    }
    seconds, distances = dict.fromkeys(methods, 0.0), {name: [] for name in methods}
    for run in methods.values():
        run(pairs[:2])
    for start in range(0, len(pairs), PART):
        for name, run in methods.items():
            clock = process_time()
            distances[name] += run(pairs[start : start + PART])
            seconds[name] += process_time() - clock
    for name, spent in seconds.items():
        mean = sum(distances[name]) / len(pairs)
        print(f"{name:28} {spent:7.2f} CPU s, {1000 * spent / len(pairs):6.2f} ms a pair, mean distance {mean:.4f}")
    differences = [
        abs(one - other) / one
        for one, other in zip(distances["solve, one by one"], distances["solve_many"], strict=True)
    ]
    print(f"largest relative difference of solve_many to solve: {max(differences):.1e}")


if __name__ == "__main__":
    main()
