"""Transformers of several seeds, merged by pairs: permutations beside every exact symmetry, from weights alone.

    python tests/benchmarks/bench_seeds.py gpt2 --width 128 --layers 2 --seeds 4 --folder NETWORKS --json out.json

The excess of an average is its held-out loss less the mean of its parents'. Confidence intervals are bootstraps over
networks: seeds are drawn with replacement, and pairs of different ones count. CPU seconds are of one thread.
"""

from __future__ import annotations

import argparse
import itertools
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import mean
from time import process_time
from typing import Any

import numpy as np
import torch

import alignkit
from alignkit import SymmetryGraph
from seed_networks import KINDS, Data, new_model, trained

PERMUTATIONS = ("weight_matching", "activation_matching", "activation_matching > weight_matching")
Average = Callable[[Any, Any], Any]
DRAWS = 2000
"""Bootstrap draws."""


def permuting(graph: SymmetryGraph) -> SymmetryGraph:
    """Return a graph whose rotating groups without a parent, the residual streams, are permutations only."""
    spec = graph.spec()
    for name in graph.roots:
        mention = re.compile(rf"[~^]({re.escape(name)})(?![\w.\-/])")
        spec = {tensor: mention.sub(r"\1", text) for tensor, text in spec.items()}
    shapes = {name: node.shape for name, node in graph.tensors.items()}
    sizes = {name: group.size for name, group in graph.groups.items()}
    return SymmetryGraph.from_spec(spec, shapes, sizes=sizes, folds=graph.folds)


def averages(kind: str, width: int, layers: int, data: Data) -> dict[str, Average]:
    """Return what makes an average of two networks, by the name of its row."""
    model = new_model(kind, width, layers, 0)
    example = {name: tensor[:2] for name, tensor in next(data.batches(0, 2)).items() if name != "labels"}
    graph = alignkit.trace(model, **example)
    whole = alignkit.trace(model, symmetries="all", **example)
    batches = data.batches(5, 64)
    inputs = [next(batches) for _ in range(2)]

    def aligned(solver: str) -> Average:
        task = alignkit.Task(model, inputs, "model") if "activation" in solver else None
        return lambda a, b: alignkit.average([a, alignkit.solve(graph, a, b, solver=solver, task=task).apply(b)])

    def of_folded(on: SymmetryGraph, balance: bool) -> Average:
        def average(a: Any, b: Any) -> Any:
            left, right = (alignkit.fold(network, whole, balance=balance).network for network in (a, b))
            moved = alignkit.solve(on, left, right, solver="weight_matching").apply(right)
            return alignkit.average([left, moved])

        return average

    rows: dict[str, Average] = {"plain": lambda a, b: alignkit.average([a, b])}
    rows |= {f"permutations, {solver}": aligned(solver) for solver in PERMUTATIONS}
    rows["all symmetries"] = of_folded(whole, True)
    rows["all symmetries, not balanced"] = of_folded(whole, False)
    rows["all symmetries, residual permuted"] = of_folded(permuting(whole), True)
    return rows


def bootstrap(values: Mapping[tuple[int, int], float], seeds: int) -> tuple[float, float]:
    """Return a 95 % interval of the mean over pairs, from draws of networks with replacement."""
    generator = np.random.default_rng(0)
    means = []
    while len(means) < DRAWS:
        drawn = generator.integers(seeds, size=seeds)
        pairs = [values[min(i, j), max(i, j)] for i, j in itertools.combinations(drawn.tolist(), 2) if i != j]
        if pairs:
            means.append(mean(pairs))
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def run(kind: str, width: int, layers: int, seeds: int, folder: Path) -> dict[str, Any]:
    """Train what is not there, average every pair in every way, and return the rows."""
    data = Data(kind)
    networks = [trained(kind, width, layers, seed, folder, data) for seed in range(seeds)]
    losses = [data.task(network).evaluate(network).loss for network in networks]
    print("losses of the parents", [round(loss, 4) for loss in losses], flush=True)
    rows: list[dict[str, Any]] = []
    for name, average in averages(kind, width, layers, data).items():
        excess: dict[tuple[int, int], float] = {}
        seconds: list[float] = []
        for i, j in itertools.combinations(range(seeds), 2):
            began = process_time()
            merged = average(networks[i], networks[j])
            seconds.append(process_time() - began)
            excess[i, j] = data.task(merged).evaluate(merged).loss - (losses[i] + losses[j]) / 2
        low, high = bootstrap(excess, seeds)
        rows.append(
            {"row": name, "excess": mean(excess.values()), "low": low, "high": high, "cpu_seconds": mean(seconds)}
        )
        print(f"{name:<60} {rows[-1]['excess']:.3f} [{low:.3f}, {high:.3f}]  {mean(seconds):.1f} s", flush=True)
    return {"kind": kind, "width": width, "layers": layers, "seeds": seeds, "parents": losses, "rows": rows}


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table of one kind and size; add it to a JSON file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--folder", type=Path, required=True, help="where the networks are, or are put")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    given.folder.mkdir(parents=True, exist_ok=True)
    result = run(given.kind, given.width, given.layers, given.seeds, given.folder)
    if given.json is not None:
        key = ("kind", "width", "layers")
        known = json.loads(given.json.read_text()) if given.json.exists() else []
        kept = [other for other in known if [other[k] for k in key] != [result[k] for k in key]]
        given.json.write_text(json.dumps([*kept, result], indent=1) + "\n")


if __name__ == "__main__":
    main()
