"""The universal aligner on shapes that it was not trained on: barriers beside those of the other methods.

    python tests/benchmarks/paper/universal.py --folder SETS --data IDX --output universal.json

SETS is what ``data.py`` made. Settings were fixed on networks of the training sets. Intervals are bootstraps over
networks.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import data as made
import measure
from measure import ACTIVATIONS, BOTH, LEARNED, NAIVE, PROBES, STAND_INS, WEIGHTS_BEST, Measured, Method

import alignkit.zoo as zoo

PLAIN = Method("weight matching, from the identity", "weight_matching", {"start": "identity"})
"""As in [Ainsworth23]; alignkit's own start is better."""
METHODS = [
    NAIVE,
    PLAIN,
    WEIGHTS_BEST,
    ACTIVATIONS,
    BOTH,
    PROBES,
    STAND_INS,
    LEARNED,
    Method("probes, data", "deepalign", {"encoder": "probes", "midpoint_steps": 0}, data=True),
    Method("learned, data", "deepalign", {"encoder": "learned", "midpoint_steps": 0}, data=True),
    Method("probes, midpoint", "deepalign", {"encoder": "probes"}, data=True),
    Method("learned, midpoint", "deepalign", {"encoder": "learned"}, data=True),
]
SINKHORN = Method("Sinkhorn, 100 steps", "sinkhorn", {"max_steps": 100}, data=True)
COLUMNS = ("barriers", "areas", "seconds", "distances")
RATIOS = {
    "probes / weight matching from the identity": (PROBES.name, PLAIN.name),
    "probes / weight matching": (PROBES.name, WEIGHTS_BEST.name),
    "learned / weight matching": (LEARNED.name, WEIGHTS_BEST.name),
    "learned / probes": (LEARNED.name, PROBES.name),
    "probes, stand-ins / probes": (STAND_INS.name, PROBES.name),
    "learned, data / probes, data": ("learned, data", "probes, data"),
    "probes, midpoint / weight matching": ("probes, midpoint", WEIGHTS_BEST.name),
    "probes, midpoint / probes, data": ("probes, midpoint", "probes, data"),
    "learned, midpoint / probes, midpoint": ("learned, midpoint", "probes, midpoint"),
}


def summary(found: Measured, methods: list[Method]) -> dict[str, Any]:
    """Means, ratios with intervals and seconds of one data set."""
    average = measure.means(found)
    ratios = {
        name: measure.bootstrap(found, lambda m, a=above, b=below: m[a] / max(m[b], 1e-12))  # type: ignore[misc]
        for name, (above, below) in RATIOS.items()
        if above in average and below in average
    }
    difference = measure.bootstrap(found, lambda m: m[PROBES.name] - m[LEARNED.name]) if LEARNED in methods else None
    return {
        "pairs": len(found.pairs),
        "networks": len({network for pair in found.pairs for network in pair}),
        "barrier": average,
        "ratios": ratios,
        "probes minus learned": difference,
        "milliseconds": {name: 1000 * sum(s) / len(s) for name, s in found.seconds.items()},
        "raw": asdict(found),
    }


def rounded(value: Any) -> Any:
    """Numbers of six digits; lists of numbers on one line of a file as text."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {name: rounded(one) for name, one in value.items()}
    return [rounded(one) for one in value] if isinstance(value, list | tuple) else value


def measured_before(results: dict[str, Any] | None, again: list[str]) -> Measured | None:
    """What a file says about a set, less the methods that are to be measured again."""
    if results is None:
        return None
    raw = dict(results["raw"])
    for column in COLUMNS:
        raw[column] = {name: found for name, found in raw[column].items() if name not in again}
    return Measured(**{**raw, "pairs": [(i, j) for i, j in raw["pairs"]]})


def joined(before: Measured, found: Measured) -> Measured:
    """Both, of the same pairs."""
    if before.pairs != found.pairs:
        raise SystemExit(f"{before.name}: the file was measured on other pairs. Remove it.")
    columns = {column: {**getattr(before, column), **getattr(found, column)} for column in COLUMNS}
    return Measured(before.name, before.pairs, **columns)


def main() -> None:
    """Measure all held-out sets that exist in the folder."""
    parser = measure.switches(__doc__, "output", "only", pairs=36, samples=2000)
    parser.add_argument("--split", default="test", help="whose networks; validation ones are for choosing settings")
    parser.add_argument("--checkpoint", type=Path, help="an aligner in place of the shipped one")
    parser.add_argument(
        "--seeds", type=Path, nargs="*", default=[], help="the aligner trained from seed 1, 2 and so on"
    )
    parser.add_argument("--sinkhorn", action="store_true", help="measure Sinkhorn too, the slowest by far")
    parser.add_argument(
        "--again", nargs="*", default=[], help="methods to measure again in sets that are there already"
    )
    arguments = parser.parse_args()
    measure.single_thread()
    methods = [measure.with_checkpoint(m, arguments.checkpoint) for m in METHODS + [SINKHORN] * arguments.sinkhorn]
    for seed, path in enumerate(arguments.seeds, start=1):
        methods.append(Method(f"learned, seed {seed}", "deepalign", {**LEARNED.options, "checkpoint": path}))
    results: dict[str, Any] = {}
    if arguments.output.exists():
        results = measure.read_json(arguments.output)
    for name in arguments.only or [wanted.name for wanted in made.ALL if wanted.splits == made.HELD_OUT]:
        folder = arguments.folder / name
        if not made.is_complete(folder):
            continue
        before = measured_before(results.get(name), arguments.again)
        wanted = [method for method in methods if before is None or method.name not in before.barriers]
        if not wanted:
            continue
        found = measure.measure(
            name,
            zoo.NetworkSet.open(folder),
            wanted,
            data=arguments.data,
            split=arguments.split,
            pairs=arguments.pairs,
            samples=arguments.samples,
        )
        found = found if before is None else joined(before, found)
        results[name] = summary(found, methods)
        measure.write_json(arguments.output, {name: rounded(one) for name, one in results.items()})
        print(name, {n: round(b, 4) for n, b in results[name]["barrier"].items()}, flush=True)
        print("  ", {n: [round(x, 3) for x in r] for n, r in results[name]["ratios"].items()}, flush=True)
        print("  ms", {n: round(b) for n, b in results[name]["milliseconds"].items()}, flush=True)


if __name__ == "__main__":
    main()
