"""The table of networks of two widths, on the page of benchmarks."""

from __future__ import annotations

import json
from pathlib import Path

RESULTS = Path(__file__).parents[1] / "results" / "widths.json"


def table() -> str:
    """The excess of the average over its parents for each way to align, with the smallest and the largest."""
    content = json.loads(RESULTS.read_text(encoding="utf-8"))
    rows = [f"| {r['row']} | {r['excess']:.3f} ({r['low']:.3f} to {r['high']:.3f}) |" for r in content["rows"]]
    title = f"| narrow network, {content['pairs']} pairs | excess of the average (range) |"
    return "\n".join([title, "|---|---:|", *rows])
