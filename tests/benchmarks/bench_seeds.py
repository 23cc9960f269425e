"""Transformers of several seeds, merged by pairs: permutations beside every exact symmetry, with and without data.

    python tests/benchmarks/bench_seeds.py gpt2 --width 128 --layers 2 --seeds 4 --folder NETWORKS --json out.json
    python tests/benchmarks/bench_seeds.py gpt2 --folder NETWORKS --json out.json --rows "200 steps" --pairs 2

The excess of an average is its held-out loss less the mean of its parents'. Confidence intervals are bootstraps over
networks: seeds are drawn with replacement, and pairs of different ones count. CPU seconds are of one thread, from the
networks as trained to their average. A row that is in the file already, with as many pairs, is not run again.
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
from alignkit.solver import Solver
from alignkit.solvers.activation_matching import ActivationMatching
from alignkit.solvers.sinkhorn import Sinkhorn
from alignkit.solvers.straight_through import StraightThrough
from seed_networks import KINDS, Data, keep, new_model, trained

WEIGHTS = ("weight_matching", "frank_wolfe", "deepalign")
DATA = ("activation_matching", "activation_matching > weight_matching", "deepalign", "sinkhorn", "straight_through")
"""Permutation solvers without and with data: 128 inputs, and 200 steps of those that follow gradients."""
Average = Callable[[Any, Any], Any]
DRAWS = 2000
"""Bootstrap draws."""


def permuting(graph: SymmetryGraph, names: Sequence[str]) -> SymmetryGraph:
    """Return a graph some of whose rotating groups are permutations only."""
    spec = graph.spec()
    for name in names:
        mention = re.compile(rf"[~^%]+({re.escape(name)})(?![\w.\-/])")
        spec = {tensor: mention.sub(r"\1", text) for tensor, text in spec.items()}
    shapes = {name: node.shape for name, node in graph.tensors.items()}
    sizes = {name: group.size for name, group in graph.groups.items()}
    return SymmetryGraph.from_spec(spec, shapes, sizes=sizes, folds=graph.folds)


def without_folds(model: Any, whole: SymmetryGraph, plain: SymmetryGraph) -> SymmetryGraph:
    """Return what may be done to networks as they are, whose gains stay: streams, and their norms, are permuted.

    Args:
        model: Such a network.
        whole: All symmetries of folded networks, with a tied head that stays tied.
        plain: Permutations of networks as they are.
    """
    graph = permuting(whole, [name for name in whole.roots if whole.rotates(name)])
    spec = {name: text if graph.tensors[name].groups else plain.spec()[name] for name, text in graph.spec().items()}
    return SymmetryGraph.from_spec(spec, like=model, sizes={name: group.size for name, group in graph.groups.items()})


class Averages:
    """What makes an average of two networks of one kind and size, by the name of its row."""

    def __init__(self, kind: str, width: int, layers: int, data: Data) -> None:
        self.model, self.data = new_model(kind, width, layers, 0), data
        self.batch = 16 if data.is_text else 256
        example = data.example()
        self.graph = alignkit.trace(self.model, **example)
        self.whole = alignkit.trace(self.model, symmetries="all", **example)
        tied = alignkit.trace(self.model, symmetries="all", keep_tied=True, **example)
        self.unfolded = without_folds(self.model, tied, self.graph)

    def task(self, network: Any, batches: int) -> alignkit.Task:
        """Return the task on training data: that many batches of 64 samples."""
        drawn = self.data.batches(5, 64)
        return alignkit.Task(network, [next(drawn) for _ in range(batches)], "model")

    def steps(self, solver: type[Solver[Any]], **options: Any) -> Solver[Any]:
        """Return 200 steps on 3,200 pieces of text, 16 a step, or on 51,200 images, 256 a step.

        A piece of text asks for 64 characters and an image for one class. On GPT-2 64 pieces a step gave nothing; on a
        ViT 64 images left twice what 256 leave.
        """
        seen = {"samples": 200 * self.batch, "batch_size": self.batch, "score_samples": 128}
        return solver(max_steps=200, check_every=50, patience=10, **seen, **options)

    def unfolding(self, a: Any, b: Any) -> Any:
        """Return the average of networks as they were trained by what rotates in them, from weights."""
        return alignkit.average([a, alignkit.solve(self.unfolded, a, b).apply(b)])

    def permuted(self, solver: str, batches: int) -> Average:
        """Return the average by permutations of the networks as they were trained."""
        learning = {"sinkhorn": Sinkhorn, "straight_through": StraightThrough}
        chain = self.steps(learning[solver]) if solver in learning else solver
        task = self.task(self.model, batches) if batches else None
        return lambda a, b: alignkit.average([a, alignkit.solve(self.graph, a, b, solver=chain, task=task).apply(b)])

    def turned(
        self,
        chain: Sequence[Any],
        *,
        graph: SymmetryGraph | None = None,
        balance: bool = True,
        batches: int = 0,
        stretch: int = 0,
        **options: Any,
    ) -> Average:
        """Return the average of folded networks by all symmetries of a graph, solved by a chain, then stretched."""

        def average(a: Any, b: Any) -> Any:
            left, right = (alignkit.fold(network, self.whole, balance=balance).network for network in (a, b))
            task = self.task(left, batches) if batches else None
            solution = alignkit.solve(graph or self.whole, left, right, solver=chain, task=task, **options)
            right = solution.apply(right)
            if stretch:
                seen = {"samples": stretch * self.batch, "batch_size": self.batch}
                right = alignkit.stretch(self.whole, left, right, task=task, steps=stretch, **seen).network
            return alignkit.average([left, right])

        return average

    def rows(self) -> dict[str, Average]:
        """Return every row of the table."""
        whole, weights, seen = self.whole, ["weight_matching"], ["activation_matching"]
        inside = [name for name, group in whole.groups.items() if whole.rotates(name) and group.parent is not None]
        stream = [name for name in whole.roots if whole.rotates(name)]
        unlabelled, labelled = (self.steps(Sinkhorn, objective=objective) for objective in ("outputs", "midpoint"))
        few, many = 2, 50 if self.data.is_text else 800
        needed = {solver: many if solver in ("sinkhorn", "straight_through") else few for solver in DATA}
        rows: dict[str, Average] = {"plain": lambda a, b: alignkit.average([a, b])}
        rows |= {f"permutations, {solver}": self.permuted(solver, 0) for solver in WEIGHTS}
        rows |= {f"permutations, {solver}, with data": self.permuted(solver, count) for solver, count in needed.items()}
        rows["all symmetries"] = self.turned(weights)
        rows["all symmetries, from activations"] = self.turned(seen, batches=few)
        rows["all symmetries, deepalign"] = self.turned(["deepalign"])
        rows["all symmetries, deepalign, with data"] = self.turned(["deepalign"], batches=few)
        rows["all symmetries, deepalign, with 512 inputs"] = self.turned(["deepalign"], batches=4 * few)
        rows["all symmetries, then 200 steps without labels"] = self.turned([*weights, unlabelled], batches=many)
        rows["all symmetries, then 200 steps without labels, 100 that stretch"] = self.turned(
            [*weights, unlabelled], batches=many, stretch=100
        )
        rows["all symmetries, then 200 steps with labels"] = self.turned([*weights, labelled], batches=many)
        rows["all symmetries, from activations, then 200 steps without labels"] = self.turned(
            [ActivationMatching(max_batches=few), unlabelled], batches=many
        )
        rows["start: embeddings and head, one pass"] = self.turned(weights, max_steps=1)
        rows["start: activations, then ascent on weights"] = self.turned(
            [ActivationMatching(weights=0), *weights], batches=few
        )
        rows["all symmetries, not balanced"] = self.turned(weights, balance=False)
        rows["all symmetries, not folded"] = self.unfolding
        rows["all symmetries, residual permuted"] = self.turned(weights, graph=permuting(whole, stream))
        rows["all symmetries, heads permuted inside"] = self.turned(weights, graph=permuting(whole, inside))
        return rows


def bootstrap(values: Mapping[tuple[int, int], float], seeds: int) -> tuple[float, float]:
    """Return a 95 % interval of the mean over pairs, from draws of networks with replacement."""
    generator = np.random.default_rng(0)
    means = []
    while len(means) < DRAWS:
        drawn = generator.integers(seeds, size=seeds)
        both = [(min(i, j), max(i, j)) for i, j in itertools.combinations(drawn.tolist(), 2) if i != j]
        pairs = [values[pair] for pair in both if pair in values]
        if pairs:
            means.append(mean(pairs))
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def pairs_of(seeds: int, count: int | None) -> list[tuple[int, int]]:
    """Return pairs of networks; the first ones share none, (0, 1), (2, 3), as far as there are any."""
    apart = [(seed, seed + 1) for seed in range(0, seeds - 1, 2)]
    every = [*apart, *(pair for pair in itertools.combinations(range(seeds), 2) if pair not in apart)]
    return every[:count]


def run(given: argparse.Namespace, known: dict[str, Any], write: Callable[[dict[str, Any]], None]) -> None:
    """Train what is not there, average every pair in each way that is asked for, and write each row when it is done."""
    data = Data(given.kind)
    size = given.kind, given.width, given.layers
    networks = [trained(*size, seed, given.folder, data) for seed in range(given.seeds)]
    losses = known.get("parents") or [data.task(network).evaluate(network).loss for network in networks]
    print("losses of the parents", [round(loss, 4) for loss in losses], flush=True)
    about = {"kind": given.kind, "width": given.width, "layers": given.layers, "seeds": given.seeds, "parents": losses}
    wanted = pairs_of(given.seeds, given.pairs)
    every = Averages(*size, data).rows()
    rows = {row["row"]: row for row in known.get("rows", [])}
    for name, average in every.items():
        if not re.search(given.rows, name) or rows.get(name, {}).get("pairs", 0) >= len(wanted):
            continue
        excess: dict[tuple[int, int], float] = {}
        seconds: list[float] = []
        for i, j in wanted:
            began = process_time()
            merged = average(networks[i], networks[j])
            seconds.append(process_time() - began)
            excess[i, j] = data.task(merged).evaluate(merged).loss - (losses[i] + losses[j]) / 2
        low, high = bootstrap(excess, given.seeds)
        rows[name] = {
            "row": name,
            "excess": mean(excess.values()),
            "low": low,
            "high": high,
            "cpu_seconds": mean(seconds),
            "pairs": len(wanted),
            "same_architecture": type(merged) is type(networks[0]) and sizes(merged) == sizes(networks[0]),
        }
        print(f"{name:<60} {rows[name]['excess']:.3f} [{low:.3f}, {high:.3f}]  {mean(seconds):.1f} s", flush=True)
        write({**about, "rows": [rows[name] for name in (*every, *(set(rows) - set(every))) if name in rows]})


def sizes(network: Any) -> dict[str, Any]:
    """Return the configuration of a network without what says whether its head is tied."""
    apart = ("tie_word_embeddings", "_name_or_path", "architectures")
    return {name: value for name, value in network.config.to_dict().items() if name not in apart}


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table of one kind and size; add it to a JSON file row by row."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--pairs", type=int, help="only so many pairs, which share no network as far as they can")
    parser.add_argument("--rows", default="", help="only rows with this regular expression in their names")
    parser.add_argument("--folder", type=Path, required=True, help="where the networks are, or are put")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    given.folder.mkdir(parents=True, exist_ok=True)
    key = {"kind": given.kind, "width": given.width, "layers": given.layers}
    tables = json.loads(given.json.read_text()) if given.json is not None and given.json.exists() else []
    known = next((table for table in tables if key.items() <= table.items()), {})
    run(given, known, lambda result: None if given.json is None else keep(given.json, result))


if __name__ == "__main__":
    main()
