"""What it is worth to blur the random images that stand in for data: barriers without data, with and without.

    python tests/benchmarks/paper/data.py --folder SETS --data IDX
    python tests/benchmarks/paper/blur.py --folder SETS --data IDX --output docs/results/blur.json

The blur was chosen on the sets ``domain-28-64x3`` and ``domain-28-gelu-96x2``, which are not among these.
"""

from __future__ import annotations

import argparse
from typing import Any

import data as made
import measure
from measure import Measured, Method
from universal import joined, rounded

import alignkit.zoo as zoo
from alignkit.deepalign import stand_ins

PLAIN, BLURRED = "stand-ins, not blurred", "stand-ins"
BLURS = {PLAIN: 1e-6, BLURRED: stand_ins.BLUR}


def measured(name: str, networks: zoo.NetworkSet, arguments: argparse.Namespace) -> Measured:
    """Barriers of one set with both kinds of stand-ins."""
    parts = []
    for label, blur in BLURS.items():
        stand_ins.BLUR = blur
        method = [Method(label, "deepalign")]
        few = {"pairs": arguments.pairs, "samples": arguments.samples}
        parts.append(measure.measure(name, networks, method, data=arguments.data, **few))
    return joined(*parts)


def summary(found: Measured) -> dict[str, Any]:
    """Means, and their ratio with a bootstrap over networks."""
    return {
        "pairs": len(found.pairs),
        "networks": len({network for pair in found.pairs for network in pair}),
        "barrier": measure.means(found),
        "ratio": measure.bootstrap(found, lambda means: means[BLURRED] / max(means[PLAIN], 1e-12)),
        "barriers": found.barriers,
    }


def main() -> None:
    """Measure held-out sets that are not in the output yet."""
    parser = measure.switches(__doc__, "output", "only", pairs=36, samples=1000)
    arguments = parser.parse_args()
    measure.single_thread()
    results: dict[str, Any] = measure.read_json(arguments.output) if arguments.output.exists() else {}
    for name in arguments.only or [wanted.name for wanted in made.ALL if wanted.splits == made.HELD_OUT]:
        if name not in results:
            networks = zoo.NetworkSet.open(arguments.folder / name)
            results[name] = summary(measured(name, networks, arguments))
            measure.write_json(arguments.output, rounded(results))
            print(name, results[name]["barrier"], results[name]["ratio"], flush=True)


if __name__ == "__main__":
    main()
