"""How many inputs midpoint steps want from a domain, and what Sinkhorn makes of an aligner on all training images.

    python tests/benchmarks/paper/domain_inputs.py --folder SETS --data IDX --aligners OUT \
        --sets domain-28-128x3 --sinkhorn domain-28-128x3 --samples 10000 --output domain-inputs.json

SETS and OUT are those of ``domains.py``, of which this takes the networks that are judged and the aligners of all
seeds. What the output holds already is not measured again.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import columns
import data as made
import domains
import measure
from measure import Method

import alignkit.zoo as zoo
from alignkit.deepalign import probing

COUNTS = (512, 1024)
"""Inputs that are drawn: as before, and as now."""
ALL_IMAGES = {"samples": 60_000, "score_samples": 10_000, "learning_rate": 0.4}
"""Options of Sinkhorn that were chosen on MNIST MLPs of other seeds, with as many steps as the paper takes."""


def by_count(name: str, networks: zoo.NetworkSet, arguments: argparse.Namespace) -> dict[str, Any]:
    """Barriers by the number of inputs, over the seeds of the aligner."""
    methods = [
        Method(f"seed {seed}", "deepalign", {"encoder": "learned", "checkpoint": checkpoint(name, seed, arguments)})
        for seed in arguments.seeds
    ]
    pairs = domains.judged_pairs(networks, arguments.pairs, arguments.skip)
    barriers: dict[str, Any] = {}
    for count in COUNTS:
        probing.MIDDLE_INPUTS = count  # type: ignore[misc]
        found = measure.measure(
            name, networks, methods, data=arguments.data, pairs=pairs, samples=arguments.samples, images=COUNTS[0]
        )
        barriers[str(count)] = {seed: columns.rounded(values) for seed, values in found.barriers.items()}
        print(name, count, measure.means(found), flush=True)
    return {"pairs": len(pairs), "samples": arguments.samples, "barriers": barriers}


def after_sinkhorn(name: str, networks: zoo.NetworkSet, arguments: argparse.Namespace) -> dict[str, Any]:
    """Barriers after Sinkhorn on all training images: from weight matching, and in half the steps from the aligner."""
    steps = arguments.sinkhorn_steps
    methods = domains.with_sinkhorn(checkpoint(name, arguments.seeds[0], arguments), steps, **ALL_IMAGES)
    pairs = domains.judged_pairs(networks, arguments.sinkhorn_pairs, arguments.skip)
    found = measure.measure(
        name, networks, methods, data=arguments.data, pairs=pairs, samples=arguments.samples,
        images=ALL_IMAGES["samples"], progress=lambda text: print(text, flush=True),
    )  # fmt: skip
    print(name, measure.means(found), flush=True)
    barriers = {method: columns.rounded(values) for method, values in found.barriers.items()}
    return {"steps": steps, "options": ALL_IMAGES, "samples": arguments.samples, "barriers": barriers}


def checkpoint(name: str, seed: int, arguments: argparse.Namespace) -> Path:
    """The aligner of the domain of a set."""
    domain = next(key for key, (_, judged) in made.DOMAINS.items() if name in judged)
    return arguments.aligners / f"{domain.replace(' ', '-')}-{seed}.safetensors"


def main() -> None:
    """Measure sets that are not in the output yet."""
    parser = measure.switches(
        __doc__, "aligners", "output", seeds=(0, 1, 2), pairs=36, sinkhorn_pairs=12, sinkhorn_steps=1000, skip=12,
        samples=1000,
    )  # fmt: skip
    parser.add_argument("--sets", nargs="+", required=True)
    parser.add_argument("--sinkhorn", nargs="*", default=(), help="sets on which Sinkhorn follows")
    arguments = parser.parse_args()
    measure.single_thread()
    results: dict[str, Any] = measure.read_json(arguments.output) if arguments.output.exists() else {}
    for name in arguments.sets:
        networks = zoo.NetworkSet.open(arguments.folder / name)
        row = results.setdefault(name, {"about": networks.manifest.plan.architecture.describe()})
        if "barriers" not in row:
            row |= by_count(name, networks, arguments)
            measure.write_json(arguments.output, results)
        if name in arguments.sinkhorn and "sinkhorn" not in row:
            row["sinkhorn"] = after_sinkhorn(name, networks, arguments)
            measure.write_json(arguments.output, results)


if __name__ == "__main__":
    main()
