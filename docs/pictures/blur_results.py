"""What it is worth to blur stand-ins for images, drawn from ``docs/results/blur.json``."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

RESULTS = json.loads((Path(__file__).parents[1] / "results" / "blur.json").read_text(encoding="utf-8"))
PLAIN, BLURRED = "stand-ins, not blurred", "stand-ins"


def words() -> str:
    """Ratios over all shapes and of the shapes that differ most, with their intervals."""
    ratios = {name: measured["ratio"] for name, measured in RESULTS.items()}
    mean = float(np.exp(np.mean([np.log(ratio[0]) for ratio in ratios.values()])))
    order = sorted(ratios, key=lambda name: ratios[name][0])
    best, worst = (f"{name} {{:.2f}} [{{:.2f}}, {{:.2f}}]".format(*ratios[name]) for name in (order[0], order[-1]))
    surely = [name for name, ratio in ratios.items() if ratio[1] > 1]
    pairs = sorted({measured["pairs"] for measured in RESULTS.values()})
    verdict = f"It is surely above 1 for {', '.join(surely)}." if surely else "No interval is above 1."
    return (
        f"Over {len(ratios)} held-out shapes ({pairs[0]} to {pairs[-1]} pairs each) barriers with the blur are "
        f"{mean:.2f} of those without it (geometric mean), from {best} to {worst}. {verdict}"
    )


def table() -> str:
    """Mean barriers without and with the blur, a row a shape."""
    lines = [f"| shape | pairs | {PLAIN} | {BLURRED} | ratio |", "|---|---:|---:|---:|---:|"]
    for name, measured in RESULTS.items():
        barriers = " | ".join(f"{measured['barrier'][column]:.4f}" for column in (PLAIN, BLURRED))
        lines.append(
            f"| {name} | {measured['pairs']} | {barriers} | {{:.2f}} [{{:.2f}}, {{:.2f}}] |".format(*measured["ratio"])
        )
    return "\n".join(lines)
