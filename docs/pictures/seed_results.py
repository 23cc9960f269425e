"""The table of transformers from different seeds on the page on symmetries."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parents[1] / "results" / "seeds.json"
NAMES = {
    "gpt2": "GPT-2, tied head",
    "llama": "Llama, grouped queries",
    "llama-tied": "Llama, tied head",
    "vit": "ViT, MNIST",
    "siglip": "SigLIP's vision tower, MNIST",
    "vit-fashion": "ViT, Fashion-MNIST",
}
FAMILIES = {"GPT-2": ("gpt2",), "Llama": ("llama", "llama-tied"), "ViT": ("vit", "siglip", "vit-fashion")}
"""The kinds of networks of each table."""

SHARES = {
    "all symmetries": ("from weights alone", "(weight_matching|frank_wolfe)"),
    "all symmetries, deepalign": ("without data by deepalign", "deepalign"),
    "all symmetries, deepalign, with data": (
        "from 128 inputs by deepalign",
        "(activation_matching|deepalign), with data",
    ),
    "all symmetries, then 200 steps without labels": ("with 200 steps without labels", ".*, with data"),
}
"""Rows that are held against permutations, in words; and the permutation solvers that know as much."""
PARTS = ("plain", "permutations", "all symmetries", "start")
"""How the names of rows begin, in the order of the table."""
OWN_TEXTS = ("permutations, weight_matching", "permutations, deepalign", "all symmetries", "all symmetries, deepalign")


def results() -> list[dict[str, Any]]:
    """One entry for each kind of network and size, in the order of their names and sizes."""
    content: list[dict[str, Any]] = json.loads(RESULTS.read_text(encoding="utf-8"))
    return sorted(content, key=lambda kind: ([*NAMES].index(kind["kind"]), kind["width"], kind["layers"]))


def tables() -> str:
    """One table for each family of networks."""
    each = ([kind for kind in results() if kind["kind"] in names] for names in FAMILIES.values())
    return "\n\n".join(f"{family}:\n\n{table(kinds)}" for family, kinds in zip(FAMILIES, each, strict=True))


def table(kinds: list[dict[str, Any]]) -> str:
    """The excess of each way to average, for each kind of network; empty where it was not measured."""
    titles = [f"{NAMES[kind['kind']]}, {kind['layers']} layers, width {kind['width']}" for kind in kinds]
    lines = ["| average | same architecture? | " + " | ".join(titles) + " |", "|---|---|" + "---:|" * len(kinds)]
    by_name = [{row["row"]: row for row in kind["rows"]} for kind in kinds]
    for name in row_names(kinds):
        cells = [rows.get(name) for rows in by_name]
        same = "yes" if all(cell["same_architecture"] for cell in cells if cell) else "no"
        lines.append(f"| {name} | {same} | " + " | ".join("" if c is None else shown(c) for c in cells) + " |")
    return "\n".join(lines)


def shown(cell: dict[str, Any]) -> str:
    """One excess with its interval, or with the number of pairs where there are too few for one."""
    interval = f"{cell['low']:.3f} to {cell['high']:.3f}" if cell["pairs"] > 2 else f"pairs: {cell['pairs']}"
    return f"{cell['excess']:.3f} ({interval})"


def row_names(kinds: list[dict[str, Any]]) -> list[str]:
    """The names of all rows: permutations, then all symmetries, then other starts, as the longest lists have them."""
    longest = sorted((kind["rows"] for kind in kinds), key=len, reverse=True)
    names = dict.fromkeys(row["row"] for rows in longest for row in rows)
    return sorted(names, key=lambda name: next(at for at, part in enumerate(PARTS) if name.startswith(part)))


def facts() -> str:
    """What the parents lose, and how much symmetries leave of the excess of the best permutations."""
    sentences = []
    for kind in results():
        rows = {row["row"]: row for row in kind["rows"]}
        low, high = min(kind["parents"]), max(kind["parents"])
        parts = [f"the {kind['seeds']} parents have losses of {low:.3f} to {high:.3f}"]
        for name, (how, rivals) in SHARES.items():
            if name in rows and (best := best_permutations(rows, rivals)) is not None:
                left, seconds = rows[name]["excess"], rows[name]["cpu_seconds"]
                solver = best["row"].removeprefix("permutations, ").removesuffix(", with data")
                share = f"{left / best['excess']:.2f} of that of permutations by {solver}"
                parts.append(f"{how} an excess of {left:.3f} is left, {share}, in {seconds:.1f} CPU s a pair")
        name = f"{NAMES[kind['kind']]}, {kind['layers']} layers, width {kind['width']}"
        sentences.append(f"- {name}: {'; '.join(parts)}.")
    return "\n".join(sentences)


def best_permutations(rows: dict[str, dict[str, Any]], solvers: str) -> dict[str, Any] | None:
    """The row with the least excess of the permutation solvers whose names match; None if none was measured."""
    rivals = [row for name, row in rows.items() if re.fullmatch(f"permutations, {solvers}", name)]
    return min(rivals, key=lambda row: float(row["excess"]), default=None)


def own_texts() -> str:
    """What texts that networks write are worth where there are no data, beside what weights alone are worth."""
    titles = ("weight matching", "Deep-Align", "weight matching, all symmetries", "Deep-Align, all symmetries")
    lines = [f"| networks | {' | '.join(titles)} |", "|---|" + "---:|" * len(titles)]
    shares: dict[str, list[float]] = {}
    pairs: set[int] = set()
    for kind in results():
        rows = {row["row"]: row for row in kind["rows"]}
        if kind["kind"] in FAMILIES["ViT"] or any(name not in rows for name in OWN_TEXTS):
            continue
        excess = [rows[name]["excess"] for name in OWN_TEXTS]
        name = f"{NAMES[kind['kind']]}, width {kind['width']}"
        lines.append(f"| {name} | {' | '.join(shown(rows[row]) for row in OWN_TEXTS)} |")
        pairs.update(rows[row]["pairs"] for row in OWN_TEXTS)
        shares[name] = [excess[1] / excess[0], excess[3] / excess[2]]
    permuted, turned = (
        " to ".join(dict.fromkeys([f"{min(values):.2f}", f"{max(values):.2f}"]))
        for values in zip(*shares.values(), strict=True)
    )
    return "\n".join(lines) + (
        f"\n\nLosses of averages above the mean of their parents, without any data, over {min(pairs)} to {max(pairs)} "
        f"pairs with 95 % intervals of a bootstrap over networks. Own texts leave {permuted} of the excess of weight "
        f"matching by permutations, and {turned} of that by all symmetries."
    )
