"""The file that a long run streams to: one JSON object a line, so that a killed run can resume."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping
from os import PathLike
from pathlib import Path
from typing import Any, Generic, TypeVar

from torch import Tensor

from alignkit.checkpoints.documents import Content, Format, with_digest, without_digest
from alignkit.checkpoints.opening import read_file
from alignkit.checkpoints.shard import memory_of
from alignkit.errors import AlignkitError
from alignkit.tasks.measures import measure_name
from alignkit.tasks.task import Task

RowT = TypeVar("RowT")


class RowsHeader(Content):
    """What the first line of a file of rows says: of which run they are."""

    of: dict[str, Any]


class RowFile(Generic[RowT]):
    """Rows on disk, each written as soon as it is known, of the run that ``identity`` describes.

    If the file exists, its rows are read into ``rows``. A last line that was cut off is dropped.

    Args:
        path: The file.
        form: What the file is.
        identity: What has to be equal for two runs to share rows, as plain values.
        read: Makes a row of the plain values of a line.

    Raises:
        AlignkitError: The file holds something else, or rows of another run; or it cannot be written. In the class of
            the format.
    """

    def __init__(
        self,
        path: str | PathLike[str],
        form: Format[RowsHeader],
        identity: Mapping[str, Any],
        read: Callable[[Mapping[str, Any]], RowT],
    ) -> None:
        self.path, self.form = Path(path), form
        self.rows: list[RowT] = []
        try:
            try:
                raw = read_file(self.path)
            except FileNotFoundError:
                raw = b""
            whole = raw.rfind(b"\n") + 1
            if raw and not whole and not json.dumps(form.header)[:20].encode().startswith(raw[:20]):
                raise self._foreign(f"it does not begin with the header of a {form.noun}")
            lines = raw[:whole].decode(errors="replace").splitlines()
            if not lines:
                self.path.write_text(form.to_json({"of": dict(identity)}, indent=None), encoding="utf-8")
                return
            try:
                written = form.from_json(lines[0], "its first line").of
            except AlignkitError as error:
                raise self._foreign(str(error).rstrip(".")) from error
            if changed := [key for key, value in identity.items() if written.get(key) != value]:
                raise self._foreign(f"its rows are of something else: {', '.join(changed)} differ")
            for number, line in enumerate(lines[1:], 2):
                with form.rebuilding(f"line {number} of {self.path}"):
                    self.rows.append(read(without_digest(json.loads(line))))
            if whole < len(raw):
                os.truncate(self.path, whole)
        except OSError as error:
            raise form.error(f"{self.path} cannot be used for the rows: {error.strerror}.") from error

    def append(self, values: Mapping[str, Any]) -> None:
        """Write a row of plain values; it is on the disk when this returns."""
        try:
            with self.path.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(with_digest(values), allow_nan=False) + "\n")
                stream.flush()
                os.fsync(stream.fileno())
        except OSError as error:
            raise self.form.error(f"a row cannot be written to {self.path}: {error.strerror}.") from error

    def _foreign(self, why: str) -> AlignkitError:
        return self.form.error(f"{self.path} cannot be resumed: {why}. Give another path, or move the file away.")


def digest_of(tensors: Iterable[tuple[str, Tensor]], head: str = "") -> str:
    """Return a digest of names, dtypes, shapes and values."""
    digest = hashlib.blake2b(head.encode(), digest_size=16)
    for name, tensor in tensors:
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(memory_of(tensor))
    return digest.hexdigest()


def digest_of_task(task: Task | None) -> str | None:
    """Return a digest of a task's loss, its metric and its first batch."""
    if task is None:
        return None
    tensors = ((str(i), tensor) for i, tensor in enumerate(next(iter(task.batches)).tensors))
    return digest_of(tensors, f"{measure_name(task.loss)} {task.metric_name}")
