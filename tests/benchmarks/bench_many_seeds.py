"""Several transformers of different seeds in one: permutations beside every exact symmetry, from weights alone.

    python tests/benchmarks/bench_many_seeds.py gpt2 --width 64 --seeds 8 --counts 2 4 8 --folder NETWORKS \
        --json docs/results/many-seeds.json

Networks are aligned by `alignkit.align_many` and averaged, 0 and 1, 2 and 3 and so on; each network is in one average
of a row. The excess is the held-out loss of the average less the mean of its parents'.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import mean
from time import process_time
from typing import Any

import torch

import alignkit
from alignkit import SymmetryGraph
from seed_networks import KINDS, Data, keep, new_model, trained

Loss = Callable[[Any], float]


def averages(networks: Sequence[Any], graph: SymmetryGraph, whole: SymmetryGraph) -> Iterator[tuple[str, Any, float]]:
    """Average some networks in every way; yield its name, the average and the CPU seconds that it took.

    Args:
        networks: The networks, as they were trained.
        graph: Their permutations.
        whole: All their symmetries.
    """
    folded = [alignkit.fold(network, whole).network for network in networks]
    for name, on, given in (
        ("plain", None, networks),
        ("permutations", graph, networks),
        ("all symmetries", whole, folded),
    ):
        began = process_time()
        aligned = given if on is None else alignkit.align_many(on, *given).apply(given)
        yield name, alignkit.average(aligned), process_time() - began


def rows(
    networks: Sequence[Any], counts: Sequence[int], loss: Loss, graphs: tuple[SymmetryGraph, SymmetryGraph]
) -> Iterator[dict[str, Any]]:
    """Yield a row for each number of networks and each way to average them; ``graphs`` as for `averages`."""
    losses = [loss(network) for network in networks]
    for count in counts:
        excess: dict[str, list[float]] = {}
        seconds: dict[str, list[float]] = {}
        for first in range(0, len(networks) - count + 1, count):
            line = mean(losses[first : first + count])
            for name, merged, taken in averages(networks[first : first + count], *graphs):
                excess.setdefault(name, []).append(loss(merged) - line)
                seconds.setdefault(name, []).append(taken)
        for name, values in excess.items():
            row = {"row": name, "networks": count, "averages": len(values), "excess": mean(values)}
            yield {**row, "low": min(values), "high": max(values), "cpu_seconds": mean(seconds[name])}


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table of one kind and size; put it into a JSON file row by row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--counts", type=int, nargs="*", default=[2, 4])
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--folder", type=Path, required=True, help="where the networks are, or are put")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    given.folder.mkdir(parents=True, exist_ok=True)
    data, size = Data(given.kind), (given.kind, given.width, given.layers)
    networks = [trained(*size, seed, given.folder, data) for seed in range(given.seeds)]
    model, example = new_model(*size, 0), data.example()
    graphs = alignkit.trace(model, **example), alignkit.trace(model, symmetries="all", **example)
    result: dict[str, Any] = {"kind": given.kind, "width": given.width, "layers": given.layers, "rows": []}
    for row in rows(networks, given.counts, lambda network: data.quick_task(network).evaluate(network).loss, graphs):
        print(row, flush=True)
        result["rows"].append(row)
        if given.json is not None:
            keep(given.json, result)


if __name__ == "__main__":
    main()
