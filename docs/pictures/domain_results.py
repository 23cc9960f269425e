"""The table of domain aligners, drawn from ``docs/results/domains.json``."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

RESULTS = json.loads((Path(__file__).parents[1] / "results" / "domains.json").read_text(encoding="utf-8"))
COLUMNS = ("weight matching, best of 10", "probes", "probes, stand-ins", "domain aligner", "probes, 512 inputs")
NEEDED = {COLUMNS[-1]: "512 inputs"}


def table() -> str:
    """Mean barriers, a row a set of held-out networks."""
    shown = [NEEDED.get(name, name) for name in COLUMNS]
    lines = [f"| networks | pairs | {' | '.join(shown)} |", "|---|" + "---:|" * (len(shown) + 1)]
    for measured in RESULTS.values():
        cells = [f"{measured['barrier'][name]:.4f}" for name in COLUMNS]
        lines.append(f"| {measured['about']} | {measured['pairs']} | {' | '.join(cells)} |")
    means = [np.exp(np.mean([np.log(measured["barrier"][name]) for measured in RESULTS.values()])) for name in COLUMNS]
    lines.append(f"| geometric mean | | {' | '.join(f'{mean:.4f}' for mean in means)} |")
    return "\n".join(lines)


def words() -> str:
    """What the aligners were trained on, and what they are worth, in words."""
    kinds = {measured["aligner"]: measured for measured in RESULTS.values()}
    trained = "; ".join(f"{', '.join(one['trained on'])} ({one['kilobytes']} kB)" for one in kinds.values())
    ratios = {
        name: float(np.exp(np.mean([np.log(measured["ratios"][name][0]) for measured in RESULTS.values()])))
        for name in next(iter(RESULTS.values()))["ratios"]
    }
    return (
        f"Aligners were trained on: {trained}. Ratios of barriers, geometric means over {len(RESULTS)} sets of "
        f"networks that chose nothing: {', '.join(f'{name} {ratio:.2f}' for name, ratio in ratios.items())}."
    )


def seconds() -> str:
    """CPU milliseconds a pair, in words."""
    times = {name: np.mean([measured["milliseconds"][name] for measured in RESULTS.values()]) for name in COLUMNS}
    return ", ".join(f"{name} {time:.0f}" for name, time in times.items())
