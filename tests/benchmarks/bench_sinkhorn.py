"""Sinkhorn re-basin and straight-through matching against weight matching, on pairs of MNIST MLPs.

    OMP_NUM_THREADS=1 ALIGNKIT_DATA=... python tests/benchmarks/bench_sinkhorn.py [pairs]

Learns from the training images and measures the barrier on the test images, 25 points on the line. Seconds are CPU
seconds of this process, the start from weight matching included.
"""

from __future__ import annotations

import sys
import time

import torch

import alignkit
import networks
from alignkit.solver import Solver
from alignkit.solvers.sinkhorn import Sinkhorn
from alignkit.solvers.straight_through import StraightThrough
from alignkit.solvers.weight_matching import WeightMatching

PAIRS = [(0, 1), (2, 3), (4, 5), (6, 7), (0, 2), (1, 3), (4, 6), (5, 7)]
SPEC = {"6.weight": ". h3", "6.bias": "."}
SPEC |= {f"{2 * i}.weight": f"h{i + 1} " + (f"h{i}" if i else ".") for i in range(3)}
SPEC |= {f"{2 * i}.bias": f"h{i + 1}" for i in range(3)}
SOLVERS: dict[str, Solver] = {
    "weight_matching": WeightMatching(),
    "sinkhorn distance": Sinkhorn(objective="distance"),
    "sinkhorn distance, from identity": Sinkhorn(objective="distance", start="identity", confidence=0.01),
    "sinkhorn interpolation": Sinkhorn(objective="interpolation"),
    "sinkhorn mixed": Sinkhorn(objective="mixed"),
    "sinkhorn midpoint": Sinkhorn(objective="midpoint"),
    "straight_through": StraightThrough(),
}


def main(count: int) -> None:
    """Print one line a solver: means over the pairs."""
    torch.set_num_threads(1)
    learn = alignkit.Task(networks.mnist_mlp(0), networks.mnist("train"), "cross_entropy")
    test = alignkit.Task(networks.mnist_mlp(0), networks.mnist("t10k"), "cross_entropy")
    print(f"{'solver':34}{'barrier':>9}{'worst':>9}{'AUC':>9}{'distance':>10}{'CPU s':>8}   mean of {count} pairs")
    for name, solver in SOLVERS.items():
        rows = []
        for i, j in PAIRS[:count]:
            a, b = networks.mnist_mlp(i), networks.mnist_mlp(j)
            pair = alignkit.SymmetryGraph.from_spec(SPEC, like=a).bind(a, b)
            started = time.process_time()
            solution = alignkit.solve(pair, solver=solver, task=learn)
            seconds = time.process_time() - started
            curve = alignkit.interpolate(test, a, solution.apply(b), points=25)
            rows.append((curve.barrier, curve.auc, solution.objective_after, seconds))
        barrier, auc, distance, seconds = torch.tensor(rows, dtype=torch.float64).mean(0).tolist()
        worst = max(row[0] for row in rows)
        print(f"{name:34}{barrier:9.4f}{worst:9.4f}{auc:9.4f}{distance:10.1f}{seconds:8.2f}", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else len(PAIRS))
