"""Deep-Align: similarities of units from what they do and what depends on them, brought to agree over the graph."""

from __future__ import annotations

from pathlib import Path


def shipped_checkpoint() -> Path:
    """The universal aligner that comes with the package; see ``docs/model-card.md``."""
    return Path(__file__).parent / "universal.safetensors"
