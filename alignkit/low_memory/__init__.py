"""Work on checkpoints that are larger than memory: match them, align them, average them, from files to files."""

from alignkit.low_memory.applying import align_checkpoint, aligned_values, merge_checkpoints, merged_values
from alignkit.low_memory.budget import parse_memory
from alignkit.low_memory.matching import match_checkpoints

__all__ = [
    "align_checkpoint",
    "aligned_values",
    "match_checkpoints",
    "merge_checkpoints",
    "merged_values",
    "parse_memory",
]
