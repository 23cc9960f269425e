"""Tables of the page about federated averaging, from docs/results."""

from __future__ import annotations

import json
from pathlib import Path

STARTS = {"own": "each its own", "shared": "that of the server"}


def rows() -> list[dict[str, object]]:
    """What the benchmark wrote."""
    return json.loads(Path("docs/results/federated.json").read_text())["rows"]


def table() -> str:
    """Accuracies after the first round and after the last, plain and aligned."""
    last = len(rows()[0]["plain"])
    lines = [
        f"| clients | alpha | start | a client alone | round 1: plain | aligned | round {last}: plain | aligned |",
        "|---:|---:|---|---:|---:|---:|---:|---:|",
    ]
    for row in rows():
        plain, aligned = row["plain"], row["aligned"]
        cells = [f"{value:.3f}" for value in (row["alone"], plain[0], aligned[0], plain[-1], aligned[-1])]
        lines.append(f"| {row['clients']} | {row['alpha']:g} | {STARTS[row['start']]} | {' | '.join(cells)} |")
    return "\n".join(lines)
