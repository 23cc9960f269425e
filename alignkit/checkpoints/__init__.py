"""Checkpoints on disk: one lazy mapping over any number of files, and writing that leaves all or nothing."""

from alignkit.checkpoints.byte_progress import ByteProgress, OnProgress
from alignkit.checkpoints.checkpoint import Checkpoint, open_checkpoint
from alignkit.checkpoints.shard import Shard, TensorEntry
from alignkit.checkpoints.writer import write_checkpoint

__all__ = ["ByteProgress", "Checkpoint", "OnProgress", "Shard", "TensorEntry", "open_checkpoint", "write_checkpoint"]
