"""Networks on disk for tests."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from alignkit import SymmetryGraph, write_weights
from alignkit.checkpoints import Checkpoint, open_checkpoint
from alignkit.graph.stored import Budget
from alignkit.graph.stored.network import CheckpointNetwork


class InPieces(CheckpointNetwork):
    """A network that is read in pieces of a given size."""

    def __init__(self, graph: SymmetryGraph, checkpoint: Checkpoint, piece: int) -> None:
        super().__init__(graph, checkpoint, Budget(1 << 20))
        self._piece = piece

    @property
    def piece(self) -> int:
        return self._piece


def saved(folder: Path, **sides: Mapping[str, Tensor]) -> list[Checkpoint]:
    """Write networks to safetensors files by their names, and open them."""
    for name, weights in sides.items():
        write_weights(folder / f"{name}.safetensors", weights)
    return [open_checkpoint(folder / f"{name}.safetensors") for name in sides]
