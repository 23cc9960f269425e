"""How many MNIST MLPs one core trains in a second: together by `alignkit.zoo`, and one at a time.

    ALIGNKIT_DATA=FOLDER python tests/benchmarks/bench_zoo.py [--networks 32]

Prints one JSON object. Seconds are CPU seconds of this process on one thread; data are read before the clock starts.
"""

from __future__ import annotations

import argparse
import json
import os
from time import process_time

import torch

import alignkit.zoo as zoo

FULL, SMALL = zoo.source("mnist"), zoo.source("mnist", size=14)
HALF = zoo.Recipe(epochs=4, batch_size=256, learning_rate=4e-3, precision="bf16")
CASES = {
    "784-128-128-128-10": (zoo.Mlp(widths=(128, 128, 128)), FULL, None),
    "784-128-128-128-10, bf16": (zoo.Mlp(widths=(128, 128, 128)), FULL, HALF),
    "196-64-64-10": (zoo.Mlp(widths=(64, 64)), SMALL, None),
    "196-64-64-10, bf16": (zoo.Mlp(widths=(64, 64)), SMALL, HALF),
}


def measured(case: str, networks: int, chunk: int | None) -> dict[str, float]:
    """Rate and accuracy of one case."""
    architecture, source, recipe = CASES[case]
    folder = os.environ["ALIGNKIT_DATA"]
    for split in ("train", "test"):
        source.load(folder, split)
    started = process_time()
    found = zoo.train(architecture, source, networks, recipe=recipe, data=folder, chunk=chunk)
    seconds = process_time() - started
    accuracies = [record.accuracy or 0.0 for record in found.records]
    return {
        "networks": networks,
        "cpu_seconds_a_network": round(seconds / networks, 3),
        "networks_a_second": round(networks / seconds, 2),
        "mean_accuracy": round(sum(accuracies) / networks, 4),
        "worst_accuracy": round(min(accuracies), 4),
    }


def main() -> None:
    """Measure all cases."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--networks", type=int, default=32)
    arguments = parser.parse_args()
    if "ALIGNKIT_DATA" not in os.environ:
        raise SystemExit("Set ALIGNKIT_DATA to a folder with mnist/train-images-idx3-ubyte.gz and its companions.")
    torch.set_num_threads(1)
    results = {}
    for case in CASES:
        results[case] = {
            "together": measured(case, arguments.networks, None),
            "one at a time": measured(case, 1, 1),
        }
    print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
