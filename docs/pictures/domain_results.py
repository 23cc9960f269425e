"""The table of domain aligners, and what is said of it, drawn from ``docs/results/domains.json``."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

RESULTS = json.loads((Path(__file__).parents[1] / "results" / "domains.json").read_text(encoding="utf-8"))
COLUMNS = ("weight matching, best of 10", "probes", "probes, stand-ins", "domain aligner", "probes, 512 inputs")
FROM_WEIGHTS, FROM_OURS = "weight matching > sinkhorn", "domain aligner > sinkhorn"
NEEDED = {
    COLUMNS[-1]: "512 inputs",
    FROM_WEIGHTS: "weight matching, then Sinkhorn",
    FROM_OURS: "domain aligner, then Sinkhorn in half the steps",
}


def geometric(values: list[float]) -> float:
    """Geometric mean of positive numbers."""
    return float(np.exp(np.mean(np.log(values))))


def ratio(name: str) -> float:
    """Ratio of two methods, geometric mean over the sets."""
    return geometric([measured["ratios"][name][0] for measured in RESULTS.values()])


def table() -> str:
    """Mean barriers, a row a set of held-out networks."""
    names = (*COLUMNS, FROM_WEIGHTS, FROM_OURS)
    shown = [NEEDED.get(name, name) for name in names]
    lines = [f"| networks | pairs | {' | '.join(shown)} |", "|---|" + "---:|" * (len(shown) + 1)]
    for measured in RESULTS.values():
        cells = [f"{measured['barrier'][name]:.4f}" for name in names]
        lines.append(f"| {measured['about']} | {measured['pairs']} | {' | '.join(cells)} |")
    means = [geometric([measured["barrier"][name] for measured in RESULTS.values()]) for name in names]
    return "\n".join([*lines, f"| geometric mean | | {' | '.join(f'{mean:.4f}' for mean in means)} |"])


def ratios() -> str:
    """Ratios of mean barriers with their intervals, a row a set."""
    names = list(next(iter(RESULTS.values()))["ratios"])
    lines = [f"| networks | {' | '.join(names)} |", "|---|" + "---:|" * len(names)]
    for measured in RESULTS.values():
        cells = ["{:.2f} [{:.2f}, {:.2f}]".format(*measured["ratios"][name]) for name in names]
        lines.append(f"| {measured['about']} | {' | '.join(cells)} |")
    return "\n".join([*lines, f"| geometric mean | {' | '.join(f'{ratio(name):.2f}' for name in names)} |"])


def words() -> str:
    """What the aligners were trained on, what they are worth, and what was to be reached."""
    kinds = {tuple(measured["trained on"]): measured for measured in RESULTS.values()}
    trained = "; ".join(f"{', '.join(one['trained on'])} ({one['kilobytes']} kB)" for one in kinds.values())
    seeds = [list(measured["seeds"].values()) for measured in RESULTS.values()]
    spread = max(max(values) / min(values) for values in seeds)
    last = list(RESULTS.values())[-1]
    steps = last["sinkhorn steps"]
    ours, data = (ratio(f"domain aligner / {other}") for other in ("probes", "probes, 512 inputs"))
    without, labelled, from_weights = (last["barrier"][name] for name in ("domain aligner", FROM_OURS, FROM_WEIGHTS))
    return (
        f"Aligners were trained on: {trained}. Barriers are means over {len(seeds[0])} trainings with other seeds, "
        f"whose means differ by a factor of at most {spread:.2f}. Sinkhorn takes {steps} steps from weight matching, "
        f"and {steps // 2} from the soft alignment of the first domain aligner, on the first {last['sinkhorn pairs']} "
        "pairs. Intervals are bootstraps over networks.\n\n"
        f"These goals were set beforehand: at most 0.75 of probes alone (measured: {ours:.2f}), and within 1.15 of "
        f"probes on 512 inputs ({data:.2f}). On {last['about']} at most 0.013 without data ({without:.4f}), and at "
        f"most 0.006 with labels and Sinkhorn after it ({labelled:.4f}; from weight matching {from_weights:.4f})."
    )


def in_short() -> str:
    """What they are worth, in a sentence."""
    names = (COLUMNS[0], "probes", "domain aligner", COLUMNS[-1])
    weights, probes, ours, data = (geometric([one["barrier"][name] for one in RESULTS.values()]) for name in names)
    return (
        f"Over {len(RESULTS)} sets of networks of other shapes and families than it was trained on an aligner of the "
        f"domain has {ours:.3f} without data, where probes have {probes:.3f}, probes on 512 inputs {data:.3f} and "
        f"weight matching {weights:.3f}."
    )


def seconds() -> str:
    """CPU milliseconds a pair, in words."""
    shown = {
        name: np.mean([measured["milliseconds"].get(name, np.nan) for measured in RESULTS.values()])
        for name in next(iter(RESULTS.values()))["milliseconds"]
        if not name.startswith("domain aligner, seed") or name.endswith("seed 0")
    }
    return ", ".join(f"{name.removesuffix(', seed 0')} {time:.0f}" for name, time in shown.items())
