"""The table of folders that went through the command line and back, from ``docs/results/folders.json``."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parents[1] / "results" / "folders.json"
HEAD = (
    "family",
    "class",
    "on disk",
    "groups",
    "verified at other sizes",
    "check",
    "merge",
    "transport",
    "reload",
    "outputs",
)


def results() -> dict[str, Any]:
    """The file of results."""
    content: dict[str, Any] = json.loads(RESULTS.read_text(encoding="utf-8"))
    return content


def summary() -> str:
    """How many families of each library went through, by how they are stored."""
    content = results()
    lines = ["| library | families | complete | of these renamed | of these in other pieces |", "|---|--:|--:|--:|--:|"]
    for library in dict.fromkeys(row["source"] for row in content["families"]):
        rows = [row for row in content["families"] if row["source"] == library]
        stored = Counter(row["stored"] for row in rows if row["status"] == "complete")
        name = f"{library} {content['versions'][library]}"
        counts = [len(rows), stored.total(), stored["renamed"], stored["in other pieces"]]
        lines.append(_line([name, *map(str, counts)]))
    return "\n".join(lines)


def table() -> str:
    """A line for each family that is complete."""
    lines = [_line(list(HEAD)), "|---|---|---|--:|---|---|---|---|---|--:|"]
    for row in _sorted():
        if row["status"] == "complete":
            others = ", ".join(row["others"]) or "takes no other"
            steps = ["yes" if row[step] else "no" for step in ("check", "merge", "transport", "reload")]
            cells = [
                row["name"],
                row["model"],
                row["stored"],
                str(row["groups"]),
                others,
                *steps,
                f"{row['error']:.0e}",
            ]
            lines.append(_line(cells))
    return "\n".join(lines)


def misses() -> str:
    """A line for each family that is not complete, with the reason."""
    lines = [_line(["family", "class", "stopped at", "why"]), "|---|---|---|---|"]
    missed = [row for row in _sorted() if row["status"] != "complete"]
    return "\n".join(lines + [_line([row["name"], row["model"], row["status"], row["reason"][:240]]) for row in missed])


def _sorted() -> list[dict[str, Any]]:
    return sorted(results()["families"], key=lambda row: (row["source"] != "transformers", row["source"], row["name"]))


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
