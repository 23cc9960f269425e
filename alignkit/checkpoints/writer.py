"""Writing a checkpoint with new values: same files, dtypes and metadata, shard by shard, all of it or nothing."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import TypeAlias

from alignkit.arguments import check_arguments
from alignkit.checkpoints.checkpoint import Checkpoint
from alignkit.checkpoints.folder import CARD, RUN_RECORD, files_of_weights
from alignkit.checkpoints.shard import PICKLE_SUFFIXES, SAFETENSORS_SUFFIXES, ValuesOf, file_kind
from alignkit.checkpoints.staging import check_output, check_room, prepare_output, staged
from alignkit.errors import WeightsError


@dataclass(frozen=True)
class ByteProgress:
    """One report of a pass over tensors.

    Attributes:
        done: Bytes processed.
        total: Bytes to process in this pass, as known now.
        seconds: Seconds since the pass began.
        stage: What is being done, such as ``"writing"`` or ``"sweep 2"``.
        share: Part of the work that is done, where bytes alone would say it wrongly; None where they say it.
    """

    done: int
    total: int
    seconds: float
    stage: str = ""
    share: float | None = None

    @property
    def fraction(self) -> float:
        """Part of the pass that is done, from 0 to 1."""
        if self.share is not None:
            return min(1.0, self.share)
        return min(1.0, self.done / self.total) if self.total else 1.0

    @property
    def remaining(self) -> float | None:
        """Seconds to the end of this pass at the pace so far; None before anything is done."""
        if not self.fraction:
            return None
        return self.seconds * (1 - self.fraction) / self.fraction


OnProgress: TypeAlias = Callable[[ByteProgress], None]


def byte_counter(on_progress: OnProgress | None, stage: str, total: int) -> Callable[[int], None]:
    """Return what is called with the bytes that were processed since the last call, and reports the pass."""
    began, done = perf_counter(), 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        if on_progress is not None:
            on_progress(ByteProgress(done, total, perf_counter() - began, stage))

    return advance


@check_arguments
def write_checkpoint(
    output: str | Path,
    like: Checkpoint,
    tensor: ValuesOf,
    on_progress: OnProgress | None = None,
    *,
    overwrite: bool = False,
) -> None:
    """Write new values in the form of a checkpoint: a folder where it is one, a file where it is one.

    Shards, names, dtypes, metadata and headers are those of ``like``, and its side files (config, tokenizer, index)
    are copied, or hold what its ``side_contents`` say. Weights of other formats are not: they would hold other values.
    Tensors are asked for one by one and dropped when written; of files of ``torch.save`` one shard at a time is
    held in memory. Everything is written beside the output, flushed to the disk and then renamed, so that a killed run
    leaves the output as it was.

    Args:
        output: Folder or file to write.
        like: The checkpoint whose form is kept. It is read only.
        tensor: From a name to the new values: a tensor of the dtype and shape in ``like``, or its rows in pieces, first
            to last.
        on_progress: Called with the bytes written so far.
        overwrite: Replace an output that exists. A folder is replaced only if it holds nothing but what is written
            anew, and the shards and the index of a checkpoint with a name of Hugging Face.

    Raises:
        WeightsError: The output cannot be written, exists, or there is not enough room for it; or new values do not
            fit. Nothing was changed then.
    """
    output = Path(output)
    replaces = check_place(output, like, overwrite)
    check_room(output, bytes_like(like))
    tensor, advance = like.stored_values(tensor), byte_counter(on_progress, "writing", like.nbytes)

    with staged(output, folder=like.folder is not None, overwrite=overwrite, replaces=replaces) as temporary:
        if like.folder is None:
            like.shards[0].write(temporary, tensor, advance)
            return
        for side in like.side_files:
            target = temporary / side
            target.parent.mkdir(parents=True, exist_ok=True)
            source = like.source_of_side(side)
            if source is None:
                target.write_text(str(like.side_contents[side]), encoding="utf-8")
            else:
                shutil.copyfile(source, target)
        for shard in like.shards:
            target = temporary / shard.path.relative_to(like.folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            shard.write(target, tensor, advance)


def bytes_like(like: Checkpoint) -> int:
    """Return the bytes that an output in the form of a checkpoint takes."""
    needed = max(like.nbytes, sum(shard.path.stat().st_size for shard in like.shards))
    if like.folder is None:
        return needed
    return needed + sum(path.stat().st_size for path in map(like.source_of_side, like.side_files) if path is not None)


def check_place(output: Path, like: Checkpoint, overwrite: bool) -> frozenset[Path]:
    """Refuse an output that is of another kind, that is there already, or that other files would be lost with.

    Returns:
        Paths of the files that a folder there may hold: those that are written anew, and those of the weights that are
        replaced.

    Raises:
        WeightsError: It is refused.
    """
    if not output.name or output.name == "..":
        raise WeightsError(f"cannot write {output}: give the output a name of its own.")
    if like.folder is None:
        kind = file_kind(like.shards[0].path)
        if file_kind(output) != kind:
            suffixes = SAFETENSORS_SUFFIXES if kind == "safetensors" else PICKLE_SUFFIXES
            ending = f"{like.path} is one file, so end the name in {' or '.join(suffixes)}"
            raise WeightsError(f"cannot write {output}: {ending}.")
        check_output(prepare_output(output), folder=False, overwrite=overwrite)
        return frozenset()
    here, there = prepare_output(output).resolve(), like.folder.resolve()
    if here != there and (here.is_relative_to(there) or there.is_relative_to(here)):
        raise WeightsError(f"cannot write {output}: one of it and {like.folder} is inside the other.")
    if here.is_file():
        raise WeightsError(f"cannot write {output}: it is a file, and {like.path} is a folder.")
    written = {*like.side_files, *(shard.path.relative_to(like.folder) for shard in like.shards)}
    # A folder that was written with a record has a card of its own, too.
    own = {Path(RUN_RECORD), Path(CARD)} if (here / RUN_RECORD).is_file() else set()
    replaces = files_of_weights(here).union(written, own)
    check_output(output, folder=True, overwrite=overwrite, replaces=replaces)
    return replaces
