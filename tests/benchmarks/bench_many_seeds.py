"""Several transformers of different seeds in one: permutations beside every exact symmetry, from weights alone.

    python tests/benchmarks/bench_many_seeds.py gpt2 --folder NETWORKS --json docs/results/many-seeds.json

Networks are aligned by `alignkit.align_many` and averaged. The excess is the held-out loss of the average less the mean
of its parents'.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from time import process_time
from typing import Any

import torch

import alignkit
from seed_networks import Data, keep, new_model, trained

SIZES = {"gpt2": (128, 2), "llama": (128, 2), "vit": (64, 3)}


def run(kind: str, counts: Sequence[int], seeds: int, folder: Path) -> dict[str, Any]:
    """Merge every choice of some networks, and return the mean excess of each way."""
    data, size = Data(kind), SIZES[kind]
    networks = [trained(kind, *size, seed, folder, data) for seed in range(seeds)]
    example = {name: tensor[:2] for name, tensor in next(data.batches(0, 2)).items() if name != "labels"}
    model = new_model(kind, *size, 0)
    graph, whole = alignkit.trace(model, **example), alignkit.trace(model, symmetries="all", **example)
    folded = [alignkit.fold(network, whole).network for network in networks]
    losses = [data.task(network).evaluate(network).loss for network in networks]
    rows: list[dict[str, Any]] = []
    for count in counts:
        for how, on, given in (
            ("plain", None, networks),
            ("permutations", graph, networks),
            ("all symmetries", whole, folded),
        ):
            excess, seconds = [], []
            for chosen in itertools.combinations(range(seeds), count):
                began = process_time()
                parts = [given[at] for at in chosen]
                aligned = parts if on is None else alignkit.align_many(on, *parts).apply(parts)
                merged = alignkit.average(aligned)
                seconds.append(process_time() - began)
                excess.append(data.task(merged).evaluate(merged).loss - mean(losses[at] for at in chosen))
            rows.append({"row": how, "networks": count, "excess": mean(excess), "cpu_seconds": mean(seconds)})
            print(f"{count} networks, {how:<16} {mean(excess):.3f}  {mean(seconds):.1f} s", flush=True)
    return {"kind": kind, "size": list(size), "seeds": seeds, "parents": losses, "rows": rows}


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table of one kind; add it to a JSON file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=SIZES)
    parser.add_argument("--counts", type=int, nargs="*", default=[2, 3, 4])
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--folder", type=Path, required=True, help="where the networks are, or are put")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    given.folder.mkdir(parents=True, exist_ok=True)
    result = run(given.kind, given.counts, given.seeds, given.folder)
    if given.json is not None:
        keep(given.json, result)


if __name__ == "__main__":
    main()
