"""Records: what made an output, from what, and what came out. Each is written with the output that it is about."""

from __future__ import annotations

import hashlib
import math
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import alignkit
from alignkit.arguments import check_arguments
from alignkit.checkpoints import Checkpoint, file_kind, write_text, write_weights, written_together
from alignkit.checkpoints.documents import Content, Format
from alignkit.checkpoints.folder import RUN_RECORD
from alignkit.checkpoints.opening import open_file
from alignkit.checkpoints.safetensors_file import ENTRY, SafetensorsShard
from alignkit.checkpoints.shard import Shard
from alignkit.errors import UsageError, WeightsError

TIMES = frozenset(("seconds", "total_seconds", "networks_per_second", "peak_memory"))
"""Entries of results that another run measures differently. They are left out: the same run has the same record."""


class HashedFile(Content):
    """A file that was read."""

    name: str
    """Its name, below the input if that is a folder."""
    bytes: int
    sha256: str


class RecordedInput(Content):
    """A network, or an adapter, that was read."""

    name: str
    """Path or id, as the user gave it."""
    files: tuple[HashedFile, ...]
    """Its files of weights, and its configuration."""


class Record(Content):
    """What made an output."""

    job: str
    """Name of the command."""
    versions: dict[str, str]
    """Of alignkit, Python and torch."""
    parameters: dict[str, Any]
    """What the command was given. Those of a merge are a recipe."""
    inputs: tuple[RecordedInput, ...]
    """What was read, in the order of the command."""
    results: dict[str, Any]
    """The numbers that were reached, as ``--json`` prints them, without times."""

    def to_json(self) -> str:
        """Return the text of ``alignkit.json``."""
        return FORMAT.to_json(self.model_dump(mode="json"), indent=2)

    @property
    def header(self) -> dict[str, str]:
        """What stands in the header of each safetensors file: the same in one entry, as texts are all that it takes."""
        return {ENTRY: FORMAT.to_json(self.model_dump(mode="json"), indent=None).rstrip("\n")}

    def of_inputs(self, numbers: Sequence[int], results: Mapping[str, Any]) -> Record:
        """Return the record of an output that was made from some of the inputs only, with its own results."""
        inputs = tuple(self.inputs[number] for number in numbers)
        return self.model_copy(update={"inputs": inputs, "results": dict(results)})

    def changed_inputs(self, other: Record) -> list[str]:
        """Name the inputs that are other ones in another record: files with other bytes, more or fewer of them."""
        before = {one.name: {file.name: file.sha256 for file in one.files} for one in other.inputs}
        now = {one.name: {file.name: file.sha256 for file in one.files} for one in self.inputs}
        return [name for name in now if name in before and now[name] != before[name]]


FORMAT = Format("alignkit.record", "record", "a command of alignkit that writes weights", UsageError, Record)


@check_arguments
def make_record(
    job: str, parameters: Mapping[str, Any], inputs: Sequence[RecordedInput], results: Mapping[str, Any]
) -> Record:
    """Make a record with the versions of what runs here.

    Args:
        job: Name of the command, or of the function.
        parameters: What it was given, by name. Values become those of JSON.
        inputs: What was read; see `input_of`.
        results: What came out, as ``result.facts()`` says it.
    """
    versions = {"alignkit": alignkit.__version__, "python": platform.python_version(), "torch": str(torch.__version__)}
    measured = {name: value for name, value in results.items() if name not in TIMES}
    return Record(
        job=job, versions=versions, parameters=plain(parameters), inputs=tuple(inputs), results=plain(measured)
    )


def input_of(name: object, checkpoint: Checkpoint) -> RecordedInput:
    """Read a checkpoint through for the check sums of its files.

    Raises:
        WeightsError: A file was changed since the checkpoint was opened, or cannot be read.
    """
    root = checkpoint.folder or checkpoint.shards[0].path.parent
    files = [_hashed(shard.path, root, shard) for shard in checkpoint.shards]
    config = [] if checkpoint.folder is None or checkpoint.config is None else [_hashed(checkpoint.config, root)]
    return RecordedInput(name=str(name), files=(*files, *config))


@check_arguments
def input_of_path(path: Path) -> RecordedInput:
    """Read a file through for its check sum, or those of an adapter in its folder."""
    paths = sorted(path.glob("adapter_*")) if path.is_dir() else [path]
    return RecordedInput(name=str(path), files=tuple(_hashed(one, one.parent) for one in paths))


def _hashed(path: Path, root: Path, shard: Shard | None = None) -> HashedFile:
    try:
        with open_file(path) as stream:
            status = os.fstat(stream.fileno())
            if shard is not None:
                shard.check_unchanged(status)
            digest = hashlib.file_digest(stream, "sha256").hexdigest()  # type: ignore[arg-type]
    except OSError as error:
        raise WeightsError(f"{path} cannot be read: {error.strerror}.") from error
    return HashedFile(name=path.relative_to(root).as_posix(), bytes=status.st_size, sha256=digest)


@check_arguments
def read_record(path: str | Path) -> Record:
    """Read the record of an output.

    Args:
        path: The output, a folder or a file; or its ``alignkit.json``.

    Raises:
        UsageError: It has none, or the record was changed or is damaged.
        WeightsError: A weights file cannot be read.
    """
    path = Path(path)
    if path.is_dir():
        path = path / RUN_RECORD
    kind = file_kind(path)
    if kind == "safetensors":
        shard = SafetensorsShard(path)
        if ENTRY not in shard.metadata:
            raise UsageError(f"{path} holds no record: alignkit did not write it, or an earlier release did.")
        return FORMAT.from_json(shard.metadata[ENTRY], path)
    return FORMAT.read(sidecar(path) if kind == "pickle" else path)


@check_arguments
def sidecar(path: Path) -> Path:
    """Return where the record of a file stands that has no room for one: ``merged.pt.alignkit.json``."""
    return path.with_name(f"{path.name}.{RUN_RECORD}")


@check_arguments
def write_described(path: Path, weights: Mapping[str, Tensor], record: Record) -> None:
    """Write named tensors to a file, with the record of what made them in its header, or beside it."""
    with written_together():
        write_weights(path, weights, {"format": "pt", **record.header})
        write_sidecar(path, record)


@check_arguments
def write_sidecar(path: Path, record: Record) -> None:
    """Write the record of a file beside it, if the file has no header that holds it."""
    if file_kind(path) == "pickle":
        write_text(sidecar(path), record.to_json())


def plain(value: Any) -> Any:
    """Return a value as JSON takes it: texts for paths and the like, None for numbers that are not finite."""
    if isinstance(value, Mapping):
        return {str(key): plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(part) for part in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, bool | int | str) else str(value)
