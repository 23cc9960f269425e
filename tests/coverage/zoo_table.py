"""The results of the coverage run as Markdown."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

Row = dict[str, Any]
RUNS = ("verified", "unsound", "trace failed", "not judged", "time", "memory")


def write_table(rows: list[Row], path: Path) -> None:
    """Write a summary, the misses with their reasons, and a line for each model."""
    ordered = sorted(rows, key=lambda row: (row["source"], row["name"]))
    path.write_text("\n".join([*_summary(ordered), *_misses(ordered), *_models(ordered)]) + "\n", encoding="utf-8")


def _summary(rows: list[Row]) -> list[str]:
    lines = [
        "| source | forward runs | verified | unsound | trace failed | not judged | time or memory | no forward |",
        "|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for source in [*sorted({row["source"] for row in rows}), "all"]:
        count = Counter(row["status"] for row in rows if source in (row["source"], "all"))
        ran = sum(count[status] for status in RUNS)
        verified = f"{count['verified']} ({count['verified'] / max(1, ran):.1%})"
        cells = [source, ran, verified, count["unsound"], count["trace failed"], count["not judged"]]
        lines.append(_line([*cells, count["time"] + count["memory"], count["no forward"]]))
    return [*lines, ""]


def _misses(rows: list[Row]) -> list[str]:
    missed = [row for row in rows if row["status"] in RUNS and row["status"] != "verified"]
    if not missed:
        return []
    lines = ["| model | outcome | reason |", "|---|---|---|"]
    lines += [_line([f"{row['source']}:{row['name']}", row["status"], row["reason"][:200]]) for row in missed]
    return [*lines, ""]


def _models(rows: list[Row]) -> list[str]:
    lines = [
        "| model | class | parameters | groups | families | axes free | trace, s | tensors | dtype | error |",
        "|---|---|--:|--:|--:|--:|--:|---|---|--:|",
    ]
    for row in rows:
        if row["status"] == "verified":
            cells = [
                f"{row['source']}:{row['name']}",
                row["model"],
                f"{row['parameters']:,}",
                row["groups"],
                row["families"],
            ]
            lines.append(
                _line(
                    [*cells, f"{row['free']:.0%}", row["seconds"], row["tensors"], row["dtype"], f"{row['error']:.0e}"]
                )
            )
    return lines


def _line(cells: list[Any]) -> str:
    return "| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |"
