"""Bytes on disk: checkpoints of any size, weights in memory, and documents; each is written whole or not at all."""

from alignkit.checkpoints.checkpoint import Checkpoint, open_checkpoint
from alignkit.checkpoints.converted import Conversion, ConvertedCheckpoint, Rearranged, prefix_conversion
from alignkit.checkpoints.documents import format_of
from alignkit.checkpoints.file_set import FileSet, written_together
from alignkit.checkpoints.foreign import check_is_there
from alignkit.checkpoints.hub import is_hub_id
from alignkit.checkpoints.optimizer_file import read_optimizer, write_optimizer
from alignkit.checkpoints.shard import KNOWN_SUFFIXES, Shard, TensorEntry, file_kind
from alignkit.checkpoints.staging import check_writable, prepare_output, scratch_beside, write_text
from alignkit.checkpoints.weights import read_weights, write_weights
from alignkit.checkpoints.writer import ByteProgress, OnProgress, write_checkpoint

__all__ = ["ByteProgress", "Checkpoint", "Conversion", "ConvertedCheckpoint", "FileSet", "OnProgress", "Rearranged"]
__all__ += ["KNOWN_SUFFIXES", "Shard", "TensorEntry", "file_kind", "format_of", "is_hub_id", "open_checkpoint"]
__all__ += [
    "check_is_there",
    "check_writable",
    "prefix_conversion",
    "prepare_output",
    "read_optimizer",
    "read_weights",
    "scratch_beside",
    "write_checkpoint",
    "write_optimizer",
    "write_text",
    "write_weights",
    "written_together",
]
