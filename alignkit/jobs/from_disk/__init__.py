"""Work on checkpoints that are larger than memory: match them, align them, average them, from files to files."""

from alignkit.jobs.from_disk.applying import align_checkpoint, aligned_values, merge_checkpoints
from alignkit.jobs.from_disk.budget import parse_memory
from alignkit.jobs.from_disk.matching import match_checkpoints

__all__ = ["align_checkpoint", "aligned_values", "match_checkpoints", "merge_checkpoints", "parse_memory"]
