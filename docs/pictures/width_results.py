"""The table of networks of two widths, on the page on widening."""

from __future__ import annotations

import json
from pathlib import Path

from seed_results import NAMES

RESULTS = Path(__file__).parents[1] / "results" / "widths.json"


def table(*wanted: str) -> str:
    """The excess of the average over its parents for each way to align, of those kinds that were measured."""
    known = {kind["kind"]: kind for kind in json.loads(RESULTS.read_text(encoding="utf-8"))}
    kinds = [known[kind] for kind in wanted if kind in known]
    names = {"mlp": "MLP", **NAMES}
    titles = [f"{names[kind['kind']]}, {max(row['pairs'] for row in kind['rows'])} pairs" for kind in kinds]
    lines = [f"| average | {' | '.join(titles)} |", "|---" + "|---:" * len(kinds) + "|"]
    for name in dict.fromkeys(
        row["row"] for kind in sorted(kinds, key=lambda k: -len(k["rows"])) for row in kind["rows"]
    ):
        cells = [next((row for row in kind["rows"] if row["row"] == name), None) for kind in kinds]
        shown = ["" if c is None else f"{c['excess']:.3f} ({c['low']:.3f} to {c['high']:.3f})" for c in cells]
        lines.append(f"| {name} | {' | '.join(shown)} |")
    return "\n".join(lines)
