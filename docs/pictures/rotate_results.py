"""The table of what rotations are worth to rounding, from docs/results/rotate.json."""

from __future__ import annotations

import json
from pathlib import Path

RESULTS = Path(__file__).parents[1] / "results" / "rotate.json"
NAMES = {"gpt2": "GPT-2", "llama": "Llama", "vit": "ViT"}


def table() -> str:
    """Errors and losses at 4 and 3 bits, as Markdown."""
    head = ("Network", "Weights", "Loss", "Error, 4 bits", "Loss, 4 bits", "Error, 3 bits", "Loss, 3 bits")
    rows = [head, ("---",) * len(head)]
    for kind, made in json.loads(RESULTS.read_text()).items():
        for name, row in made.items():
            few = [row[f"{bits} bits"] for bits in (4, 3)]
            numbers = [row["loss"], *(value for one in few for value in (one["error"], one["loss"]))]
            rows.append((NAMES[kind], name, *(f"{number:.3f}" for number in numbers)))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
