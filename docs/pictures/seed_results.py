"""The table of transformers from different seeds on the page on symmetries."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parents[1] / "results" / "seeds.json"
NAMES = {"gpt2": "GPT-2, tied head", "llama": "Llama, grouped queries", "llama-tied": "Llama, tied head", "vit": "ViT"}


def results() -> list[dict[str, Any]]:
    """One entry for each kind of network and size."""
    content: list[dict[str, Any]] = json.loads(RESULTS.read_text(encoding="utf-8"))
    return content


def table() -> str:
    """The excess of each way to average, for each kind of network."""
    kinds = results()
    titles = [f"{NAMES[kind['kind']]}, {kind['layers']} layers, width {kind['width']}" for kind in kinds]
    lines = ["| average | " + " | ".join(titles) + " |", "|---|" + "---:|" * len(kinds)]
    for number, row in enumerate(kinds[0]["rows"]):
        cells = [kind["rows"][number] for kind in kinds]
        shown = (f"{c['excess']:.3f} ({c['low']:.3f} to {c['high']:.3f})" for c in cells)
        lines.append(f"| {row['row']} | " + " | ".join(shown) + " |")
    return "\n".join(lines)


def facts() -> str:
    """What the parents lose, how much all symmetries leave of the best permutation's excess, and what it takes."""
    sentences = []
    for kind in results():
        rows = {row["row"]: row for row in kind["rows"]}
        best = min(row["excess"] for name, row in rows.items() if name.startswith("permutations"))
        whole = rows["all symmetries"]
        low, high = min(kind["parents"]), max(kind["parents"])
        sentences.append(
            f"- {NAMES[kind['kind']]}: the {kind['seeds']} parents have losses of {low:.3f} to {high:.3f}. All "
            f"symmetries leave {whole['excess'] / best:.2f} of the excess of the best permutations, in "
            f"{whole['cpu_seconds']:.1f} CPU s a pair."
        )
    return "\n".join(sentences)
