"""How many inputs midpoint steps want from a domain, and what Sinkhorn makes of an aligner, with labels or without.

    python tests/benchmarks/paper/domain_inputs.py --folder SETS --data IDX --aligners OUT \
        --sets mlp-48x6 mlp-tanh-128x2 cnn-12-24-24 domain-28-128x3 --sinkhorn domain-28-128x3 --output out.json

SETS and OUT are those of ``domains.py``, of which this takes the networks that are judged and the aligners of all
seeds. Sets that the output holds already are not measured again.
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
FROM_WEIGHTS, LABELS, OUTPUTS = "weight matching > sinkhorn", "with labels", "by outputs"


def ends(checkpoint: Path, steps: int) -> list[Method]:
    """Sinkhorn from weight matching, and in half the steps from the aligner, which looks at no data."""
    ours = {"encoder": "learned", "checkpoint": checkpoint, "inputs": "random", "max_steps": steps // 2}
    return [
        Method(FROM_WEIGHTS, "weight_matching > sinkhorn", {"max_steps": steps}, data=True),
        Method(LABELS, "deepalign > sinkhorn", ours, data=True),
        Method(OUTPUTS, "deepalign > sinkhorn", ours | {"objective": "outputs"}, data=True),
    ]


def measured(name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Mean barriers of one set by the number of inputs, over the seeds of the aligner; and those after Sinkhorn."""
    networks = zoo.NetworkSet.open(arguments.folder / name)
    domain = next(key for key, (_, judged) in made.DOMAINS.items() if name in judged)
    checkpoints = [arguments.aligners / f"{domain.replace(' ', '-')}-{seed}.safetensors" for seed in arguments.seeds]
    chosen = domains.judged_pairs(networks, arguments.pairs, arguments.skip)
    settings: dict[str, Any] = {"data": arguments.data, "samples": arguments.samples}
    methods = [
        Method(f"seed {seed}", "deepalign", {"encoder": "learned", "checkpoint": path})
        for seed, path in zip(arguments.seeds, checkpoints, strict=True)
    ]
    barriers: dict[str, Any] = {}
    for count in COUNTS:
        probing.MIDDLE_INPUTS = count  # type: ignore[misc]
        found = measure.measure(name, networks, methods, pairs=chosen, images=COUNTS[0], **settings)
        barriers[str(count)] = {seed: columns.rounded(values) for seed, values in found.barriers.items()}
        print(name, count, measure.means(found), flush=True)
    result = {"about": networks.manifest.plan.architecture.describe(), "pairs": len(chosen), "barriers": barriers}
    if name in arguments.sinkhorn:
        few = chosen[: arguments.sinkhorn_pairs]
        methods = ends(checkpoints[0], arguments.sinkhorn_steps)
        found = measure.measure(name, networks, methods, pairs=few, images=columns.SINKHORN_IMAGES, **settings)
        print(name, measure.means(found), flush=True)
        result["sinkhorn"] = {
            "steps": arguments.sinkhorn_steps,
            "barriers": {method: columns.rounded(values) for method, values in found.barriers.items()},
        }
    return result


def main() -> None:
    """Measure sets that are not in the output yet."""
    parser = measure.switches(
        __doc__, "aligners", "output", seeds=(0, 1, 2), pairs=36, sinkhorn_pairs=12,
        sinkhorn_steps=columns.SINKHORN_STEPS, skip=12, samples=1000,
    )  # fmt: skip
    parser.add_argument("--sets", nargs="+", required=True)
    parser.add_argument("--sinkhorn", nargs="*", default=(), help="sets on which Sinkhorn follows")
    arguments = parser.parse_args()
    measure.single_thread()
    results: dict[str, Any] = measure.read_json(arguments.output) if arguments.output.exists() else {}
    for name in arguments.sets:
        if name not in results:
            results[name] = measured(name, arguments)
            measure.write_json(arguments.output, results)


if __name__ == "__main__":
    main()
