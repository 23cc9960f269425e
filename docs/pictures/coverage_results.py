"""The tables of the coverage run, from ``docs/results/coverage.json`` and ``docs/results/folders.json``."""

from __future__ import annotations

import json
import re
import statistics
from collections import Counter
from pathlib import Path
from typing import Any

import folder_results

Row = dict[str, Any]
RESULTS = Path(__file__).parents[1] / "results" / "coverage.json"
RUNS = ("verified", "unsound", "trace failed", "not judged", "time", "memory")
KINDS = ("batch", "length", "resolution", "number")


def results() -> dict[str, Any]:
    """The file of results."""
    content: dict[str, Any] = json.loads(RESULTS.read_text(encoding="utf-8"))
    return content


def kinds_of_sizes(row: Row) -> list[str]:
    """Which kinds of sizes of the inputs were changed in the verification of a model."""
    found = set()
    for text in row["others"]:
        where = text.split(" in place of ")[1].partition(" ")[2]
        found.add(
            "batch"
            if where == "in the batch"
            else "number"
            if where.startswith("as argument")
            else "resolution"
            if re.match(r"along axes .*\d, \d", where)
            else "length"
        )
    return [kind for kind in KINDS if kind in found]


def folder_of(row: Row) -> str:
    """How the folder of a model went through the command line and back; empty where it was not tried."""
    for family in folder_results.results()["families"]:
        if (family["source"], family["name"]) == (row["source"], row["name"]):
            return "complete" if family["status"] == "complete" else f"stopped at {family['status']}"
    return ""


def states() -> str:
    """On which states of alignkit the models ran, with which limits."""
    content = results()
    lines = [
        "| commit | date | models | processor seconds for one, at most | GiB for one, at most |",
        "|---|---|--:|--:|--:|",
    ]
    count = Counter((row["commit"], row["date"], row["limit"], row["memory"]) for row in content["models"])
    for (commit, date, limit, memory), number in sorted(count.items(), key=lambda item: -item[1]):
        lines.append(_line([f"`{commit}`", date, number, f"{limit:.0f}", f"{memory:.0f}"]))
    return "\n".join(lines)


def not_run() -> str:
    """Which models of the list the run has not reached, in a sentence; empty where it reached all."""
    names = results()["not_run"]
    if not names:
        return ""
    return f"{len(names)} models of the list were not reached: {', '.join(names)}. They are in no number below."


def versions() -> str:
    """The libraries of the run, in words."""
    named = [f"{library} {version}" for library, version in results()["versions"].items()]
    return f"{', '.join(named[:-1])} and {named[-1]}"


def summary() -> str:
    """A line for each library: what came out."""
    rows = results()["models"]
    lines = [
        "| source | forward runs | verified | unsound | trace failed | not judged | time or memory | no forward |",
        "|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for source in (*dict.fromkeys(row["source"] for row in rows), "all"):
        count = Counter(row["status"] for row in rows if source in (row["source"], "all"))
        ran = sum(count[status] for status in RUNS)
        verified = f"{count['verified']} ({count['verified'] / max(1, ran):.1%})"
        cells = [source, ran, verified, count["unsound"], count["trace failed"], count["not judged"]]
        lines.append(_line([*cells, count["time"] + count["memory"], count["no forward"]]))
    return "\n".join(lines)


def checks() -> str:
    """A line for each library: how many models were verified at other sizes, by hand, and from their folders."""
    others = (f"at another {kind}" for kind in KINDS[:3])
    lines = [_line(["source", "verified", *others, "takes no other", "equal to hand", "folders"])]
    lines.append("|---|--:|--:|--:|--:|--:|--:|--:|")
    verified = [row for row in results()["models"] if row["status"] == "verified"]
    for source in (*dict.fromkeys(row["source"] for row in verified), "all"):
        rows = [row for row in verified if source in (row["source"], "all")]
        sizes = Counter(kind for row in rows for kind in kinds_of_sizes(row) or [""])
        hand = Counter(row["by_hand"] for row in rows)
        folders = Counter(folder_of(row) for row in rows)
        cells = [source, len(rows), *(sizes[kind] for kind in KINDS[:3]), sizes[""]]
        by_hand = f"{hand['equal']} of {hand['equal'] + hand['differ']}"
        lines.append(_line([*cells, by_hand, f"{folders['complete']} of {folders.total() - folders['']}"]))
    return "\n".join(lines)


def costs() -> str:
    """What traces took, and how exact the outputs stayed, in a paragraph."""
    rows = [row for row in results()["models"] if row["status"] == "verified"]
    slowest = max(rows, key=lambda row: row["seconds"])
    wide, narrow = ([row for row in rows if row["dtype"] == dtype] for dtype in ("float64", "float32"))
    real = sum(row["tensors"] == "real" for row in rows)
    largest = max(rows, key=lambda row: row["gigabytes"])
    median = statistics.median(row["seconds"] for row in rows)
    return (
        f"Median time of a trace {median:.1f} s of one processor, the slowest "
        f"{slowest['seconds']:.0f} s ({slowest['name']}). The largest error in float64 is "
        f"{max(row['error'] for row in wide):.0e} of the largest output. {len(narrow)} models were judged in float32, "
        f"with errors up to {max((row['error'] for row in narrow), default=0):.0e}: kernels of theirs, or the memory, "
        f"leave no float64. {real} were traced on real tensors, the others on fake ones. The most memory was "
        f"{largest['gigabytes']:.1f} GiB ({largest['name']}, {largest['parameters'] / 1e6:.0f} million parameters)."
    )


def misses() -> str:
    """A line for each model that runs and is not verified, with the reason; a sentence where there is none."""
    rows = [row for row in results()["models"] if row["status"] in RUNS and row["status"] != "verified"]
    if not rows:
        return "None: every model that runs is verified."
    lines = ["| model | outcome | reason |", "|---|---|---|"]
    return "\n".join([*lines, *(_line([_name(row), row["status"], row["reason"][:300]]) for row in rows)])


def differences() -> str:
    """Models whose trace is not what was derived by hand, or a sentence that there is none."""
    names = [_name(row) for row in results()["models"] if row["by_hand"] == "differ"]
    return f"They differ for {', '.join(names)}." if names else "No trace differs."


def table() -> str:
    """A line for each verified model."""
    lines = [
        "| model | class | parameters | groups | families | free | other sizes | by hand | folder | seconds | error |",
        "|---|---|--:|--:|--:|--:|---|---|---|--:|--:|",
    ]
    for row in results()["models"]:
        if row["status"] == "verified":
            cells = [_name(row), row["model"], f"{row['parameters']:,}", row["groups"], row["families"]]
            sizes = ", ".join(kinds_of_sizes(row)) or "takes no other"
            error = f"{row['error']:.0e}" + (" (float32)" if row["dtype"] == "float32" else "")
            cells += [f"{row['free']:.0%}", sizes, row["by_hand"], folder_of(row), row["seconds"], error]
            lines.append(_line(cells))
    return "\n".join(lines)


def _name(row: Row) -> str:
    return f"{row['source']}:{row['name']}"


def _line(cells: list[Any]) -> str:
    return "| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |"
