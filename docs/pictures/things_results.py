"""The table of things that were carried from network to network, on the page on symmetries."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parents[1] / "results" / "things.json"
NAMES = {"gpt2": "GPT-2", "llama": "Llama", "vit": "ViT"}
THINGS = ("probe", "steering vector", "autoencoder", "LoRA adapter", "fine-tune")
PLACES = {"copy": "a copy in another basis", "other seed": "a network of another seed"}


def results() -> list[dict[str, Any]]:
    """One entry for each kind of network."""
    content: list[dict[str, Any]] = json.loads(RESULTS.read_text(encoding="utf-8"))
    return content


def table(where: str) -> str:
    """The part of the gain that is kept, by kind of network and way to align, with its interval."""
    lines = ["| network, aligned by | " + " | ".join(THINGS) + " |", "|---|" + "---:|" * len(THINGS)]
    for kind in results():
        for row in (row for row in kind["rows"] if row["where"] == where):
            cells = [row[thing] for thing in THINGS]
            shown = (f"{c['kept']:.2f} ({c['low']:.2f} to {c['high']:.2f})" for c in cells)
            lines.append(f"| {NAMES[kind['kind']]}, {row['row']} | " + " | ".join(shown) + " |")
    return "\n".join(lines)
