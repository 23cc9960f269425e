"""Domain aligners on shapes and families that they were not trained on, beside what needs no data and what does.

    python tests/benchmarks/paper/data.py --folder SETS --data IDX --domains
    python tests/benchmarks/paper/domains.py --folder SETS --data IDX --aligners OUT --output domains.json

Aligners that are not in OUT yet are trained there, one for each domain and seed. Of large sets the networks before
``--skip`` are left out, as those that settings were chosen on. A row is a set of networks and the domain of an aligner;
where the networks learned other images of the same shape, the aligner does not refuse them. The last columns end in
Sinkhorn with labels: from weight matching, and in half the steps from the soft alignment of the domain aligner, which
has seen no data; and in the same without labels, by outputs.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import columns
import data as made
import measure
from measure import PROBES, STAND_INS, WEIGHTS_BEST, Measured, Method
from universal import rounded

import alignkit.zoo as zoo
from alignkit.deepalign import load_aligner, save_aligner
from alignkit.deepalign.input_domain import MIDDLE_INPUTS
from alignkit.training import learn_domain, settings_for, starting_aligner, train
from alignkit.training.pairs import describe_networks

OURS = "domain aligner"
DATA = Method("probes, 512 inputs", "deepalign", {"encoder": "probes"}, data=True)
FROM_WEIGHTS, FROM_OURS = "weight matching > sinkhorn", f"{OURS} > sinkhorn"
BY_OUTPUTS = f"{FROM_OURS}, by outputs"
SETTINGS = {"pairs": 2, "samples": 5000}
RATIOS = (
    (STAND_INS.name, PROBES.name),
    (OURS, PROBES.name),
    (OURS, DATA.name),
    (FROM_OURS, FROM_WEIGHTS),
    (BY_OUTPUTS, FROM_WEIGHTS),
)


def trained(sets: Sequence[zoo.NetworkSet], seed: int, path: Path, data: Path | None, steps: int) -> Path:
    """Train the aligner of a domain unless it is there."""
    if not path.exists():
        aligner = starting_aligner(sets, "learned", None, {}, seed)
        learn_domain(aligner, sets, data, seed)
        settings = settings_for("learned", seed, steps, SETTINGS | {"validate_every": steps})
        result = train(aligner, sets, settings, path.with_suffix(""), data=data, resume=True)
        save_aligner(path, result.aligner, {"seed": str(seed)})
    return path


def domain_methods(checkpoints: Mapping[int, Path]) -> list[Method]:
    """What is compared on all pairs: the aligner of every seed among them."""
    options = {seed: {"encoder": "learned", "checkpoint": path} for seed, path in checkpoints.items()}
    ours = [Method(f"{OURS}, seed {seed}", "deepalign", own) for seed, own in options.items()]
    return [WEIGHTS_BEST, PROBES, STAND_INS, *ours, DATA]


def with_sinkhorn(checkpoint: Path, steps: int, **options: Any) -> list[Method]:
    """What ends in Sinkhorn with these options, which learns from data; the aligner does not look at them."""
    ours = {"encoder": "learned", "checkpoint": checkpoint, "inputs": "random", "max_steps": steps // 2, **options}
    return [
        Method(FROM_WEIGHTS, "weight_matching > sinkhorn", {"max_steps": steps, **options}, data=True),
        Method(FROM_OURS, "deepalign > sinkhorn", ours, data=True),
        Method(BY_OUTPUTS, "deepalign > sinkhorn", {**ours, "objective": "outputs"}, data=True),
    ]


def judged_pairs(networks: zoo.NetworkSet, count: int, skip: int) -> list[tuple[int, int]]:
    """Pairs of networks that chose nothing: each meets the next one, then the one after that, and so on."""
    judged = networks.indices("test")
    judged = judged[skip:] if len(judged) >= 2 * skip else judged
    apart = range(1, len(judged) // 2 + 1)
    met = [(one, judged[(at + step) % len(judged)]) for step in apart for at, one in enumerate(judged)]
    return [*dict.fromkeys((min(pair), max(pair)) for pair in met)][:count]


def over_seeds(found: Measured) -> dict[str, list[float]]:
    """Barriers by method; those of the aligner are means over the seeds of its training."""
    barriers = {name: values for name, values in found.barriers.items() if not name.startswith(OURS)}
    seeds = [values for name, values in found.barriers.items() if name.startswith(OURS)]
    return {**barriers, OURS: [sum(values) / len(values) for values in zip(*seeds, strict=True)]}


def summary(found: Measured, ends: Measured) -> dict[str, Any]:
    """Means, ratios with intervals, and seconds; ``ends`` are the methods with Sinkhorn, on the first pairs."""
    few = len(ends.pairs)
    everything = over_seeds(found)
    seeds = {name.rpartition(" ")[2]: values for name, values in found.barriers.items() if name.startswith(OURS)}
    whole = Measured(found.name, found.pairs, everything, {}, {}, {})
    both = Measured(found.name, ends.pairs, {n: v[:few] for n, v in everything.items()} | ends.barriers, {}, {}, {})
    ratios = {}
    for above, below in RATIOS:
        pairs = both if above in ends.barriers else whole
        ratios[f"{above} / {below}"] = measure.bootstrap(
            pairs, lambda means, a=above, b=below: means[a] / max(means[b], 1e-12)
        )  # type: ignore[misc]
    seconds = {**found.seconds, **ends.seconds}
    return {
        "pairs": len(found.pairs),
        "networks": len({network for pair in found.pairs for network in pair}),
        "sinkhorn pairs": few,
        "barrier": measure.means(whole) | {name: sum(v) / len(v) for name, v in ends.barriers.items()},
        "seeds": {seed: sum(values) / len(values) for seed, values in seeds.items()},
        "ratios": ratios,
        "milliseconds": {name: 1000 * sum(values) / len(values) for name, values in seconds.items()},
        "barriers": everything | ends.barriers,
    }


def main() -> None:
    """Measure sets that are not in the output yet."""
    parser = measure.switches(
        __doc__, "aligners", "output", "only", seeds=(0, 1, 2), pairs=36, sinkhorn_pairs=12,
        sinkhorn_steps=columns.SINKHORN_STEPS, skip=12, samples=1000,
    )  # fmt: skip
    parser.add_argument("--training-steps", type=int, default=60)
    arguments = parser.parse_args()
    measure.single_thread()
    arguments.aligners.mkdir(parents=True, exist_ok=True)
    results: dict[str, Any] = measure.read_json(arguments.output) if arguments.output.exists() else {}
    for domain, (learned, judged) in made.DOMAINS.items():
        names = [name for name in judged if not arguments.only or name in arguments.only]
        sets = [zoo.NetworkSet.open(arguments.folder / name) for name in learned] if names else []
        for name in names:
            row = f"{name}, {domain}"
            if row in results:
                continue
            checkpoints = {
                seed: trained(
                    sets, seed, arguments.aligners / f"{domain.replace(' ', '-')}-{seed}.safetensors", arguments.data,
                    arguments.training_steps,
                )
                for seed in arguments.seeds
            }  # fmt: skip
            results[row] = measured(name, checkpoints, arguments) | {
                "domain": domain,
                "trained on": [describe_networks(networks) for networks in sets],
            }
            measure.write_json(arguments.output, rounded(results))
            print(row, results[row]["barrier"], results[row]["ratios"], flush=True)


def measured(name: str, checkpoints: Mapping[int, Path], arguments: argparse.Namespace) -> dict[str, Any]:
    """What is to be said about one set."""
    networks = zoo.NetworkSet.open(arguments.folder / name)
    pairs = judged_pairs(networks, arguments.pairs, arguments.skip)

    def run(methods: list[Method], count: int, images: int) -> Measured:
        return measure.measure(
            name, networks, methods, data=arguments.data, pairs=pairs[:count], samples=arguments.samples,
            images=images, progress=lambda text: print(text, flush=True),
        )  # fmt: skip

    first = next(iter(checkpoints.values()))
    found = run(domain_methods(checkpoints), arguments.pairs, 2000)
    ends = run(with_sinkhorn(first, arguments.sinkhorn_steps), arguments.sinkhorn_pairs, columns.SINKHORN_IMAGES)
    plan = networks.manifest.plan
    return {
        "about": f"{plan.architecture.describe()}, {plan.source.describe()}",
        "source": plan.source.describe(),
        "aligners": {seed: load_aligner(path).fingerprint for seed, path in checkpoints.items()},
        "kilobytes": round(first.stat().st_size / 1000),
        "sinkhorn steps": arguments.sinkhorn_steps,
        "drawn": MIDDLE_INPUTS,
        "samples": arguments.samples,
        **summary(found, ends),
    }


if __name__ == "__main__":
    main()
