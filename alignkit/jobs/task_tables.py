"""Tables of named tensors that tasks are made of: archives of numpy, text with commas, safetensors, torch.save."""

from __future__ import annotations

import csv
import math
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from alignkit.checkpoints import open_checkpoint
from alignkit.checkpoints.opening import read_file
from alignkit.checkpoints.shard import file_kind
from alignkit.errors import TaskError
from alignkit.text import describe_error, list_some, shorten

INPUTS = ("inputs", "x", "images", "features")
TARGETS = ("targets", "y", "labels", "target", "label")
"""Names of the tensors of a table, of which the first that is there is taken."""
DELIMITERS = {".csv": ",", ".tsv": "\t"}
TABLES = ".csv, .tsv, .npz, .npy, .safetensors, .pt"


def is_table(path: Path) -> bool:
    """Tell whether a file is a table, by its name."""
    return path.suffix in (*DELIMITERS, ".npz", ".npy") or file_kind(path) is not None


def read_table(path: Path) -> Mapping[str, Tensor]:
    """Read the named tensors of a table; those of numpy without running code.

    Raises:
        TaskError: It cannot be read, or its tensors have no names.
        WeightsError: The same for files of weights.
    """
    if path.suffix in DELIMITERS:
        return _read_text(path)
    if path.suffix not in (".npz", ".npy"):
        return open_checkpoint(path).read_all()
    try:
        loaded: Any = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            if loaded.dtype.names is None:
                raise TaskError(
                    f"the table {path} is one array without names. Save inputs and targets in one file: "
                    "np.savez('data.npz', inputs=..., targets=...)."
                )
            return {name: _tensor(loaded[name]) for name in loaded.dtype.names}
        with loaded as archive:
            return {name: _tensor(archive[name]) for name in archive.files}
    except (OSError, EOFError, ValueError, TypeError, zipfile.BadZipFile) as error:
        if isinstance(error, TaskError):
            raise
        raise TaskError(f"the table {path} cannot be read: {describe_error(error)}.") from error


def read_columns(folder: Path) -> dict[str, Tensor]:
    """Read a folder of arrays of numpy: ``inputs.npy`` is the tensor ``inputs``.

    Raises:
        TaskError: One cannot be read.
    """
    columns = {}
    for path in sorted(folder.glob("*.npy")):
        try:
            columns[path.stem] = _tensor(np.load(path, allow_pickle=False))
        except (OSError, EOFError, ValueError, TypeError) as error:
            raise TaskError(f"the array {path} cannot be read: {describe_error(error)}.") from error
    return columns


def _tensor(array: np.ndarray[Any, Any]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array.astype(array.dtype.newbyteorder("="))))


def _read_text(path: Path) -> dict[str, Tensor]:
    """Read numbers under a line of names: one column is the targets, all others are the inputs ``[n, columns]``.

    Targets without a decimal point are classes.
    """
    try:
        lines = read_file(path).decode("utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        raise TaskError(f"the table {path} cannot be read: {describe_error(error)}.") from error
    rows = [row for row in csv.reader(lines, delimiter=DELIMITERS[path.suffix]) if row]
    names = [name.strip() for name in rows[0]] if rows else []
    chosen = next((names.index(name) for name in TARGETS if name in names), None)
    if chosen is None or len(rows) < 2 or len(names) < 2 or len(set(names)) < len(names):
        raise TaskError(
            f"the table {path} needs a first line with the name of each column, one of them {', '.join(TARGETS)}, and "
            f"numbers below it; its first line is {shorten(lines[0], 60) if lines else 'missing'!r}."
        )
    values = torch.tensor([_numbers(path, at, row, names) for at, row in enumerate(rows[1:], 2)], dtype=torch.float64)
    targets = values[:, chosen]
    is_class = all(row[chosen].strip().isdecimal() for row in rows[1:])  # 2.0 is a number, 2 a class
    inputs = values[:, [at for at in range(len(names)) if at != chosen]]
    return {"inputs": inputs.float(), "targets": targets.long() if is_class else targets[:, None].float()}


def _numbers(path: Path, line: int, row: list[str], names: list[str]) -> list[float]:
    """Read a row of finite numbers, as many as there are names."""
    if len(row) != len(names):
        raise TaskError(f"the table {path} has {len(row)} values in row {line}, and {len(names)} columns.")
    numbers = []
    for name, text in zip(names, row, strict=True):
        try:
            numbers.append(float(text))
        except ValueError:
            numbers.append(math.nan)
        if not math.isfinite(numbers[-1]):
            raise TaskError(f"the table {path} holds {shorten(text, 40)!r} in row {line}, column {name}: no number.")
    return numbers


def describe_columns(table: Mapping[str, Tensor]) -> str:
    """Name the tensors of a table, for messages."""
    return list_some(sorted(table), 5) or "nothing"
