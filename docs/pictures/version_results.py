"""The table of permutation solvers of 0.1.0 beside today's, on the page of benchmarks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parents[1] / "results" / "versions.json"


def results() -> list[dict[str, Any]]:
    """One entry for each kind of network and each way to solve."""
    content: list[dict[str, Any]] = json.loads(RESULTS.read_text(encoding="utf-8"))
    return content


def table() -> str:
    """What is left of the squared distance, or of the loss in the middle, on average over pairs."""
    lines = ["| network | solver | measured | unaligned | 0.1.0 | today | pairs: better, worse |"]
    lines.append("|---|---|---|---:|---:|---:|---:|")
    for row in results():
        means = " | ".join(f"{row[name]:.4g}" for name in ("before", "older", "today"))
        counts = f"{row['pairs']}: {row['better']}, {row['worse']}"
        lines.append(f"| {row['network']} | `{row['solver']}` | {row['measure']} | {means} | {counts} |")
    return "\n".join(lines)
