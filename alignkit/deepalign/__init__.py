"""Deep-Align: similarities of units from what they do and what depends on them, brought to agree over the graph."""

from pathlib import Path

from alignkit.deepalign.aligner import Aligner, AlignerInput
from alignkit.deepalign.aligner_file import load_aligner, read_card, save_aligner
from alignkit.deepalign.dws.aligner import DwsAligner
from alignkit.deepalign.encoder import ProbeEncoder

SHIPPED_CHECKPOINT = Path(__file__).parent / "universal.safetensors"
"""The universal aligner that comes with the package; see ``docs/model-card.md``."""

__all__ = [
    "SHIPPED_CHECKPOINT",
    "Aligner",
    "AlignerInput",
    "DwsAligner",
    "ProbeEncoder",
    "load_aligner",
    "read_card",
    "save_aligner",
]
