"""The table of many networks in one, on the page on symmetries."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from seed_results import NAMES

RESULTS = Path(__file__).parents[1] / "results" / "many-seeds.json"


def results() -> list[dict[str, Any]]:
    """One entry for each kind and size of network, in the order of their names and sizes."""
    content: list[dict[str, Any]] = json.loads(RESULTS.read_text(encoding="utf-8"))
    return sorted(content, key=lambda kind: ([*NAMES].index(kind["kind"]), kind["width"]))


def table() -> str:
    """The excess of each way to average, for each number of networks, with the smallest and the largest."""
    ways = ("plain", "permutations", "all symmetries")
    titles = ("network", "networks", "averages", *ways)
    lines = [f"| {' | '.join(titles)} |", "|---" + "|---:" * (len(titles) - 1) + "|"]
    for kind in results():
        name = f"{NAMES[kind['kind']]}, {kind['layers']} layers, width {kind['width']}"
        rows = {(row["networks"], row["row"]): row for row in kind["rows"]}
        for count in dict.fromkeys(row["networks"] for row in kind["rows"]):
            cells = [rows[count, way] for way in ways]
            shown = " | ".join(excess(cell) for cell in cells)
            lines.append(f"| {name} | {count} | {cells[0]['averages']} | {shown} |")
    return "\n".join(lines)


def excess(cell: dict[str, Any]) -> str:
    """One mean, with its range where there are several averages."""
    span = f" ({cell['low']:.3f} to {cell['high']:.3f})" if cell["averages"] > 1 else ""
    return f"{cell['excess']:.3f}{span}"
