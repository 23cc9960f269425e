"""The table of planted gauges on the page on symmetries."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parents[1] / "results" / "gauges.json"


def results() -> list[dict[str, Any]]:
    """One entry for each kind of network."""
    content: list[dict[str, Any]] = json.loads(RESULTS.read_text(encoding="utf-8"))
    return content


def table() -> str:
    """How many gauges were undone, what is left, and what is left with noise."""
    levels = list(results()[0]["noise"])
    noisy = " | ".join(f"with noise of {level}" for level in levels)
    lines = [
        f"| network | rotations | folds, balances | undone | residual | {noisy} |",
        "|---|" + "---:|" * (4 + len(levels)),
    ]
    for row in results():
        left = " | ".join(f"{row['noise'][level]['residual']:.2g}" for level in levels)
        lines.append(
            f"| {row['kind']} | {row['dimension']} | {row['folds']}, {row['balances']} | {row['undone']} of "
            f"{row['draws']} | {row['residual']:.0e} | {left} |"
        )
    return "\n".join(lines)


def facts() -> str:
    """How many gauges were undone in all, and how many unrelated pairs were called the same."""
    rows = results()
    undone, draws, false, unrelated = (sum(r[key] for r in rows) for key in ("undone", "draws", "false", "unrelated"))
    pairs = f"{false} of {unrelated} pairs of unrelated networks were called the same"
    return f"{undone} of {draws} gauges were undone, and {pairs}."
