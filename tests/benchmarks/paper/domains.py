"""Domain aligners on shapes and families that they were not trained on, beside what needs no data and what does.

    alignkit train-deepalign SETS/mlp-128x3 SETS/mlp-32x4 SETS/mlp-gelu-96x3 -o small.safetensors --domain --data IDX
    python tests/benchmarks/paper/domains.py --folder SETS --data IDX --checkpoint small.safetensors \
        --only mlp-48x6 cnn-12-24-24 --output domains.json

SETS is what ``data.py`` made. Networks before ``--skip`` are left out, as those that settings were chosen on.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import measure
from measure import PROBES, STAND_INS, WEIGHTS_BEST, Method
from universal import rounded

import alignkit.zoo as zoo
from alignkit.deepalign import load_aligner, read_card

DOMAIN = "domain aligner"
DATA = Method("probes, 512 inputs", "deepalign", {"encoder": "probes"}, data=True)


def main() -> None:
    """Measure sets that are not in the output yet."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True, help="what data.py made")
    parser.add_argument("--data", type=Path, help="holds the folder mnist")
    parser.add_argument("--checkpoint", type=Path, required=True, help="what train-deepalign --domain wrote")
    parser.add_argument("--only", nargs="+", required=True, help="names of sets")
    parser.add_argument("--pairs", type=int, default=24)
    parser.add_argument("--skip", type=int, default=0, help="pairs that are left out")
    parser.add_argument("--samples", type=int, default=1000, help="test samples of a barrier")
    parser.add_argument("--output", type=Path, required=True, help="JSON file")
    arguments = parser.parse_args()
    measure.single_thread()
    results: dict[str, Any] = measure.read_json(arguments.output) if arguments.output.exists() else {}
    card = read_card(arguments.checkpoint)
    ours = Method(DOMAIN, "deepalign", {"encoder": "learned", "checkpoint": arguments.checkpoint})
    methods = [WEIGHTS_BEST, PROBES, STAND_INS, ours, DATA]
    for name in arguments.only:
        if name in results:
            continue
        networks = zoo.NetworkSet.open(arguments.folder / name)
        measured = measure.measure(
            name,
            networks,
            methods,
            data=arguments.data,
            pairs=arguments.pairs,
            skip=arguments.skip,
            samples=arguments.samples,
            progress=lambda text: print(text, flush=True),
        )
        ratios = {
            f"{above} / {below.name}": measure.bootstrap(
                measured, lambda m, a=above, b=below.name: m[a] / max(m[b], 1e-12)
            )  # type: ignore[misc]
            for above, below in ((STAND_INS.name, PROBES), (DOMAIN, PROBES), (DOMAIN, DATA))
        }
        results[name] = {
            "about": f"{networks.manifest.plan.architecture.describe()}, {networks.manifest.plan.source.describe()}",
            "aligner": load_aligner(arguments.checkpoint).fingerprint,
            "trained on": json.loads(card["data"]),
            "kilobytes": round(arguments.checkpoint.stat().st_size / 1000),
            "pairs": len(measured.pairs),
            "networks": len({network for pair in measured.pairs for network in pair}),
            "barrier": measure.means(measured),
            "ratios": ratios,
            "milliseconds": {method: 1000 * sum(s) / len(s) for method, s in measured.seconds.items()},
            "barriers": measured.barriers,
        }
        measure.write_json(arguments.output, rounded(results))
        print(name, measure.means(measured), ratios, flush=True)


if __name__ == "__main__":
    main()
