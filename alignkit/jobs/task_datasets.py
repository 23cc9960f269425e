"""Data sets that the library `datasets` saved, or that are parquet files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from alignkit.errors import MissingExtraError, TaskError
from alignkit.jobs.task_images import ImageBatches
from alignkit.jobs.task_tables import TARGETS
from alignkit.models import Example
from alignkit.text import describe_error, install_extra, list_some

SPLITS, SAVED, PARQUET, ARROW = "dataset_dict.json", "state.json", ".parquet", ".arrow"
"""What ``save_to_disk`` writes of several splits, and of one; and the suffixes of files of rows."""


def is_dataset(path: Path) -> bool:
    """Tell whether a path is a data set of ``save_to_disk``, or holds parquet files."""
    if path.is_dir():
        return any((path / name).exists() for name in (SPLITS, SAVED)) or bool(_parquet_files(path))
    return path.suffix in (PARQUET, ARROW)


def read_dataset(path: Path) -> Any:
    """Open a data set; of several splits the one that is called ``train``.

    Raises:
        TaskError: It cannot be read, or no split is called ``train``.
        MissingExtraError: `datasets` is not installed.
    """
    try:
        import datasets
        import pyarrow.parquet
    except ImportError as error:
        missing = f"--task {path} is a data set of the library datasets, which cannot be imported ({error})"
        raise MissingExtraError(f"{missing}: {install_extra('data')}.") from error
    try:
        if path.is_dir() and not _parquet_files(path):
            rows = datasets.load_from_disk(str(path))
        elif path.suffix == ARROW:
            rows = datasets.Dataset.from_file(str(path))
        else:
            files = _parquet_files(path) if path.is_dir() else [path]
            rows = datasets.Dataset(pyarrow.concat_tables([pyarrow.parquet.read_table(file) for file in files]))
    except Exception as error:  # each reader has errors of its own
        raise TaskError(f"the data set {path} cannot be read: {describe_error(error)}.") from error
    if not isinstance(rows, datasets.DatasetDict):
        return rows
    if "train" not in rows and len(rows) != 1:
        raise TaskError(f"--task {path} holds the splits {list_some(sorted(rows), 5)}: name the folder of one of them.")
    return rows["train"] if "train" in rows else next(iter(rows.values()))


def texts_of(rows: Any) -> list[str] | None:
    """Return the texts of a data set for a language model; None where it has other columns than these."""
    kinds = {name: getattr(feature, "dtype", "") for name, feature in rows.features.items()}
    texts = [name for name, kind in kinds.items() if kind in ("string", "large_string")]
    return list(rows[texts[0]]) if texts and len(texts) == len(kinds) else None


def images_of_rows(rows: Any, path: Path, example: Example, folder: Path | None) -> ImageBatches | None:
    """Return batches of the images of a data set with their classes; None where it has none; see `ImageBatches`.

    Raises:
        TaskError: There is no column of classes beside them, or the model takes no images.
    """
    column = next((name for name, kind in rows.features.items() if type(kind).__name__ == "Image"), None)
    if column is None:
        return None
    named = next((name for name in TARGETS if name in rows.features), None)
    if named is None or not all(isinstance(label, int) for label in rows[named]):
        raise TaskError(f"the data set {path} has images, and no column of whole numbers {' or '.join(TARGETS)}.")
    images = [(f"of row {at} of {path}", label) for at, label in enumerate(rows[named])]
    return ImageBatches(images, lambda at: rows[at][column], example, folder)


def columns_of(rows: Any, path: Path) -> Mapping[str, Tensor]:
    """Return the columns of numbers of a data set as tensors.

    Raises:
        TaskError: The rows of a column have different lengths, or it holds no numbers.
    """
    table = {}
    for name, values in rows.with_format("torch")[:].items():
        if not isinstance(values, Tensor):
            shapes = {tuple(row.shape) for row in values if isinstance(row, Tensor)}
            why = "rows of different lengths, which have to be padded" if len(shapes) > 1 else "something else"
            raise TaskError(f"the column {name!r} of the data set {path} has {why}: only numbers make a tensor.")
        table[name] = values if values.dtype != torch.float64 else values.float()
    return table


def _parquet_files(folder: Path) -> list[Path]:
    """List the parquet files of a folder or of its folder ``data``; those of training where others are named."""
    files = sorted(folder.glob(f"*{PARQUET}")) or sorted(folder.glob(f"data/*{PARQUET}"))
    return [file for file in files if file.name.startswith("train")] or files
