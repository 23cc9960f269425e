"""The paper's network on thousands of networks: what more of them, and more steps of training, are worth.

    python tests/benchmarks/paper/paper_data.py --folder SETS --data IDX --only many-mlp
    python tests/benchmarks/paper/many.py --folder SETS --data IDX --aligners OUT --set many-mlp \
        --runs 306:1500 3040:1500 3040:12000 --output many.json

A run is NETWORKS:STEPS, on the first networks of the training split. Rows that are in the output already are not
measured again; an aligner whose training was cut off goes on.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import aligners
import columns
import measure
from measure import ACTIVATIONS, NAIVE, PROBES, WEIGHTS, Method

import alignkit.zoo as zoo

LOOKS, PATIENCE = 16, 5
"""Looks at held-out pairs in a run, and looks without a lower barrier after which it stops."""
OTHERS = (NAIVE, WEIGHTS, ACTIVATIONS, PROBES, Method("probes on data", "deepalign", {"encoder": "probes"}, data=True))


class FirstNetworks(zoo.NetworkSet):
    """A set of which only the first networks are trained on."""

    def __init__(self, networks: zoo.NetworkSet, count: int) -> None:
        super().__init__(networks.folder, networks.manifest)
        self.count = count

    def indices(self, split: str) -> list[int]:
        """The networks of a split."""
        return super().indices(split)[: self.count] if split == "train" else super().indices(split)


def rows_of(networks: zoo.NetworkSet, methods: Sequence[Method], **settings: Any) -> dict[str, Any]:
    """Mean barriers of methods with their intervals, and CPU seconds a pair."""
    found = measure.measure(networks.folder.name, networks, methods, **settings)
    rows: dict[str, Any] = {}
    for name, barriers in found.barriers.items():
        mean, low, high = measure.bootstrap(found, lambda means, name=name: means[name])  # type: ignore[misc]
        rows[name] = {
            "barrier": mean,
            "interval": [low, high],
            "pairs": len(barriers),
            "seconds": sum(found.seconds[name]) / len(barriers),
            "barriers": columns.rounded(barriers),
        }
    return rows


def main() -> None:
    """Measure what needs no training, then train and measure one run after the other."""
    parser = measure.switches(__doc__, "aligners", "output", "set", pairs=48, samples=2000)
    parser.add_argument("--runs", nargs="*", default=(), help="NETWORKS:STEPS of each training")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    measure.single_thread()
    networks = zoo.NetworkSet.open(arguments.folder / arguments.set)
    results: dict[str, Any] = measure.read_json(arguments.output) if arguments.output.exists() else {}
    results = {
        "command": f"python tests/benchmarks/paper/many.py --set {arguments.set} --runs {' '.join(arguments.runs)} "
        f"--pairs {arguments.pairs} --samples {arguments.samples}",
        "about": columns.describe_set(networks),
        "rows": results.get("rows", {}),
    }
    settings = {
        "data": arguments.data, "pairs": arguments.pairs, "samples": arguments.samples, "images": arguments.samples,
    }  # fmt: skip

    def measured(methods: Sequence[Method], facts: dict[str, Any] | None = None) -> None:
        for name, row in rows_of(networks, methods, **settings).items():
            results["rows"][name] = row | ({"training": facts} if facts else {})
            print(name, row["barrier"], row["interval"], flush=True)
        measure.write_json(arguments.output, results)

    measured([method for method in OTHERS if method.name not in results["rows"]])
    for run in arguments.runs:
        name, (count, steps) = f"Deep-Align {run}", map(int, run.split(":"))
        if name in results["rows"]:
            continue
        folder = arguments.aligners / arguments.set / f"dws-{run.replace(':', '-')}"
        few, changes = FirstNetworks(networks, count), {"validate_every": steps // LOOKS, "patience": PATIENCE}
        facts = aligners.trained(few, "dws", arguments.seed, folder, arguments.data, steps, 16, **changes)
        options = {"encoder": "dws", "checkpoint": folder / aligners.ALIGNER}
        measured([Method(name, "deepalign", options)], facts)


if __name__ == "__main__":
    main()
