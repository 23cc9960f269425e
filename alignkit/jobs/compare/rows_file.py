"""The file that a comparison streams to: one JSON object a line, so that a killed run can resume."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from os import PathLike
from pathlib import Path
from typing import Any

from torch import Tensor

from alignkit.checkpoints.documents import Content, Format, with_digest, without_digest
from alignkit.checkpoints.opening import read_file
from alignkit.checkpoints.shard import memory_of
from alignkit.checkpoints.staging import check_output
from alignkit.errors import ComparisonError, WeightsError
from alignkit.jobs.compare.comparison import ComparisonRow
from alignkit.jobs.compare.job import ComparisonSetup
from alignkit.tasks.task import Task, measure_name


class _RowsHeader(Content):
    of: dict[str, Any]


FORMAT = Format("alignkit.comparison-rows", "file of rows", "compare(..., path=...)", ComparisonError, _RowsHeader)


def identity_of(setup: ComparisonSetup) -> dict[str, Any]:
    """Return what has to be equal for two comparisons to share rows, as plain values.

    Weights count in full; a task counts with its loss, its metric and its first batch.
    """
    return {
        "graph": setup.pair.graph.fingerprint,
        "weights of A": _digest(sorted(setup.pair.a.items())),
        "weights of B": _digest(sorted(setup.pair.b.items())),
        "task": _task_digest(setup.task),
        "task for the test": _task_digest(setup.test),
        "points": setup.evaluation.points,
        "repair": setup.evaluation.repair,
        "device": str(setup.where),
    }


class RowFile:
    """Rows on disk, each written as soon as it is known, of the comparison that `identity_of` describes.

    If the file exists, its rows are read into ``rows``. A last line that was cut off is dropped.

    Raises:
        ComparisonError: The file holds something else, or the comparison of another pair, task or line; or it cannot
            be written.
    """

    def __init__(self, path: str | PathLike[str], identity: Mapping[str, Any]) -> None:
        self.path = Path(path)
        self.rows: list[ComparisonRow] = []
        try:
            check_output(self.path, folder=False, overwrite=True)
        except WeightsError as error:
            raise ComparisonError(f"{self.path} cannot be used for the rows: {error}") from error
        try:
            try:
                raw = read_file(self.path)
            except FileNotFoundError:
                raw = b""
            whole = raw.rfind(b"\n") + 1
            if raw and not whole and not json.dumps(FORMAT.header)[:20].encode().startswith(raw[:20]):
                raise self._foreign("it does not begin with the header of a comparison")
            lines = raw[:whole].decode(errors="replace").splitlines()
            if not lines:
                self.path.write_text(FORMAT.to_json({"of": dict(identity)}, indent=None), encoding="utf-8")
                return
            try:
                written = FORMAT.from_json(lines[0], "its first line").of
            except ComparisonError as error:
                raise self._foreign(str(error).rstrip(".")) from error
            if changed := [key for key, value in identity.items() if written.get(key) != value]:
                raise self._foreign(f"it is the comparison of something else: {', '.join(changed)} differ")
            for number, line in enumerate(lines[1:], 2):
                with FORMAT.rebuilding(f"line {number} of {self.path}"):
                    self.rows.append(ComparisonRow.from_dict(without_digest(json.loads(line))))
            if whole < len(raw):
                os.truncate(self.path, whole)
        except OSError as error:
            raise ComparisonError(f"{self.path} cannot be used for the rows: {error.strerror}.") from error

    def append(self, row: ComparisonRow) -> None:
        """Write a row; it is on the disk when this returns."""
        try:
            with self.path.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(with_digest(row.to_dict()), allow_nan=False) + "\n")
                stream.flush()
                os.fsync(stream.fileno())
        except OSError as error:
            raise ComparisonError(f"a row cannot be written to {self.path}: {error.strerror}.") from error

    def _foreign(self, why: str) -> ComparisonError:
        return ComparisonError(f"{self.path} cannot be resumed: {why}. Give another path, or move the file away.")


def _digest(tensors: Iterable[tuple[str, Tensor]], head: str = "") -> str:
    """Return a digest of names, dtypes, shapes and values."""
    digest = hashlib.blake2b(head.encode(), digest_size=16)
    for name, tensor in tensors:
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(memory_of(tensor))
    return digest.hexdigest()


def _task_digest(task: Task | None) -> str | None:
    if task is None:
        return None
    tensors = ((str(i), tensor) for i, tensor in enumerate(next(iter(task.batches)).tensors))
    return _digest(tensors, f"{measure_name(task.loss)} {task.metric_name}")
