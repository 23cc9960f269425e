"""Tasks from files: a table of inputs and targets, or a text for a language model."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from alignkit.checkpoints import open_checkpoint
from alignkit.checkpoints.opening import read_file
from alignkit.checkpoints.shard import file_kind
from alignkit.errors import TaskError
from alignkit.models.texts import token_blocks
from alignkit.tasks.task import Task
from alignkit.text import list_some

INPUTS = ("inputs", "x", "images", "features")
TARGETS = ("targets", "y", "labels")
"""Names of the tensors of a table, of which the first that is there is taken."""
TEXTS = (".txt", ".md")
TABLES = ".npz, .safetensors, .pt"
CONTEXT = 128
"""Number of tokens in a block of text, where the model reads as many."""
ROWS = 32
"""Samples that a model of labels sees at once."""
FORMS = (
    f"package.module:function that returns an alignkit.Task; a table ({TABLES}) with the tensors inputs and targets, "
    "or with the arguments of the model, labels among them; or a .txt file, for folders of language models"
)


def task_from_file(path: Path, model: nn.Module, folder: Path | None) -> Task:
    """Make a task of a file.

    Whole targets of one number a sample are classes: cross-entropy and accuracy. Other targets are met by the mean
    squared error. Tables with ``labels`` beside arguments of the model, and texts, take the loss that the model
    returns.

    Args:
        path: A table or a text.
        model: The architecture.
        folder: Folder of the model, with its tokenizer; None where there is none.

    Raises:
        TaskError: The file cannot be read, or does not hold what a task needs.
        ModelSourceError: The tokenizer cannot be used.
    """
    if os.path.isdir(path):
        raise TaskError(f"--task {path} is a folder. Give {FORMS}.")
    if path.suffix in TEXTS:
        return _task_of_text(path, model, folder)
    table = _read_table(path)
    inputs, targets = ([table[name] for name in names if name in table] for names in (INPUTS, TARGETS))
    if inputs and targets:
        classes = targets[0].ndim == 1 and not targets[0].is_floating_point()
        if classes:
            return Task(model, (inputs[0], targets[0].long()), "cross_entropy", "accuracy")
        return Task(model, (inputs[0], targets[0]), "mse")
    if "labels" in table and len(table) > 1:
        return Task(model, [dict(table)], "model", chunk=ROWS)
    raise TaskError(f"the table {path} holds {list_some(sorted(table), 5) or 'nothing'}. Give {FORMS}.")


def _read_table(path: Path) -> Mapping[str, Tensor]:
    """Read named tensors; those of numpy without running code."""
    if path.suffix != ".npz":
        if file_kind(path) is None:
            raise TaskError(f"--task {path} is of no known kind. Give {FORMS}.")
        return open_checkpoint(path).read_all()
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: torch.from_numpy(np.ascontiguousarray(archive[name])) for name in archive.files}
    except (OSError, ValueError, TypeError, zipfile.BadZipFile) as error:
        raise TaskError(f"the table {path} cannot be read: {error}.") from error


def _task_of_text(path: Path, model: nn.Module, folder: Path | None) -> Task:
    if folder is None or not hasattr(model, "config"):
        raise TaskError(f"--task {path}: a text needs folders of a language model of transformers, with its tokenizer.")
    try:
        text = read_file(path).decode("utf-8")
    except (OSError, ValueError) as error:
        raise TaskError(f"the text {path} cannot be read: {error}.") from error
    longest = getattr(model.config, "max_position_embeddings", CONTEXT) or CONTEXT
    blocks = token_blocks(folder, text, min(CONTEXT, longest))
    return Task(model, [{"input_ids": blocks, "labels": blocks}], "model", chunk=ROWS)
