"""Several MNIST MLPs at once, and many small networks against one reference.

    ALIGNKIT_DATA=... python tests/benchmarks/bench_many.py

First the mean squared distance of all pairs of 3 and of 5 aligned networks, the error of cycles (the share of units
that do not come back from a round trip over three networks), and CPU seconds. Then networks a second of `canonicalize`.
One thread.
"""

from __future__ import annotations

import time

import torch

import alignkit
import networks
from alignkit import SymmetryGraph, align_many, builders, canonicalize
from alignkit.jobs.spread import direct_pairs

SMALL_SPEC = {"w1": "a .", "b1": "a", "w2": "b a", "b2": "b", "w3": ". b", "b3": "."}
SMALL_SHAPES = {"w1": (32, 2), "b1": (32,), "w2": (32, 32), "b2": (32,), "w3": (1, 32), "b3": (1,)}


def many() -> None:
    """All methods of `align_many` beside pairs aligned directly."""
    print(f"{'networks':>8} {'method':16} {'mean squared distance':>22} {'cycle error':>12} {'CPU s':>8}")
    for count in (3, 5):
        models = [networks.mnist_mlp(seed) for seed in range(count)]
        graph = builders.mlp(models[0])
        start = time.process_time()
        direct = direct_pairs(graph, models)
        print(f"{count:8} {'direct pairs':16} {direct.spread:22.1f} {direct.cycle_error:12.2f} {_since(start):8.2f}")
        for method in ("reference", "merge_many", "universe"):
            start = time.process_time()
            aligned = align_many(graph, *models, method=method)
            print(
                f"{count:8} {method:16} {aligned.spread_after:22.1f} {aligned.cycle_error:12.2f} {_since(start):8.2f}"
            )


def small(count: int = 2000) -> None:
    """Networks a second, batched and one by one."""
    graph = SymmetryGraph.from_spec(SMALL_SPEC, SMALL_SHAPES)
    generator = torch.Generator().manual_seed(0)
    nets = [{n: torch.randn(s, generator=generator) for n, s in SMALL_SHAPES.items()} for _ in range(count + 1)]
    start = time.process_time()
    canonicalize(graph, nets[1:], nets[0])
    batched = count / _since(start)
    start = time.process_time()
    for net in nets[1:101]:
        alignkit.solve(graph, nets[0], net)
    single = 100 / _since(start)
    print(f"MLPs 2-32-32-1: {batched:.0f} networks a CPU second with canonicalize, {single:.0f} one by one with solve")


def _since(start: float) -> float:
    return time.process_time() - start


def main() -> None:
    """Print both tables."""
    torch.set_num_threads(1)
    many()
    small()


if __name__ == "__main__":
    main()
