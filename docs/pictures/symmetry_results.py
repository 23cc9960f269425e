"""The tables of the page on symmetries: what operations admit, and which models rotate."""

from __future__ import annotations

import inspect
import json
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

from alignkit.graph.kinds import KINDS
from alignkit.tracing.gauges.laws.built_in import BUILT_IN

RESULTS = Path(__file__).parents[1] / "results" / "symmetries.json"


def results() -> dict[str, dict[str, Any]]:
    """The types of models, each with what rotates in a tiny model of it."""
    content: dict[str, dict[str, Any]] = json.loads(RESULTS.read_text(encoding="utf-8"))
    return content


def laws() -> str:
    """A line for each law: the ops that it is of, and its docstring's first line."""
    ops: dict[object, list[str]] = {}
    words: dict[object, str] = {}
    for name, law in BUILT_IN.items():
        symmetry = law.keywords.get("symmetry") if isinstance(law, partial) else None
        key = symmetry or law
        ops.setdefault(key, []).append(name)
        words[key] = SYMMETRIES[symmetry] if symmetry else (inspect.getdoc(law) or "").split("\n\n")[0]
    lines = ["| operations | what they do to a space |", "|---|---|"]
    for key, names in ops.items():
        shown = ", ".join(f"`{name}`" for name in names[:6])
        more = f" and {len(names) - 6} more" if len(names) > 6 else ""
        lines.append(f"| {shown}{more} | {' '.join(words[key].split())} |")
    return "\n".join(lines)


SYMMETRIES = {
    "none": "Functions of each element: permutations.",
    "odd": "Odd functions of each element: signs.",
    "even": "Even functions of each element: signs go in, and none come out.",
    "positive": "Positively homogeneous functions: positive factors.",
}


def summary() -> str:
    """How many types have a residual stream that rotates, and heads that do."""
    rows = [row for row in results().values() if "error" not in row]
    tied = [row for row in rows if "untied" in row]
    counts = Counter(row["as it is"]["residual"] for row in rows)
    free = Counter(row.get("untied", row["as it is"])["residual"] for row in rows)
    heads = [row["as it is"]["heads"] for row in rows]
    values = sum("orthogonal" in kinds for kinds in heads)
    planes = sum(bool({"planes", "adjacent_planes"} & kinds.keys()) for kinds in heads)
    rotating = [sum(kinds[k] for k in ("orthogonal", "centred")) for kinds in (counts, free)]
    return (
        f"Of {len(rows)} types of models the residual stream rotates in {rotating[0]} as they are, and in "
        f"{rotating[1]} with an untied head ({len(tied)} have a tied one that is in the way). Dimensions inside heads "
        f"rotate in {values}, rotary planes of queries and keys in {planes}."
    )


def table() -> str:
    """A line for each type."""
    lines = ["| type | residual stream | with an untied head | inside heads | what keeps the stream from more |"]
    lines.append("|---|---|---|---|---|")
    for kind, row in sorted(results().items()):
        if "error" in row:
            lines.append(f"| {kind} | not traced: {row['error']} | | | |")
            continue
        free = row.get("untied", row["as it is"])
        untied = free["residual"] if "untied" in row else "the same"
        heads = ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in row["as it is"]["heads"].items())
        lines.append(f"| {kind} | {row['as it is']['residual']} | {untied} | {heads or 'none'} | {free['reason']} |")
    return "\n".join(lines)


def kinds() -> str:
    """A line for each kind of group."""
    lines = ["| kind | mark | elements |", "|---|---|---|"]
    lines += [
        f"| {kind.replace('_', ' ')} | {facts.mark and f'`{facts.mark}`'} | {facts.words} |"
        for kind, facts in KINDS.items()
    ]
    return "\n".join(lines)
