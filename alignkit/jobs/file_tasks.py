"""Tasks from files: tables of inputs and targets, images, data sets, or texts for a language model."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from alignkit.checkpoints.opening import read_file
from alignkit.errors import TaskError
from alignkit.jobs.task_datasets import columns_of, images_of_rows, is_dataset, read_dataset, texts_of
from alignkit.jobs.task_images import ImageBatches, idx_images, image_classes, images_of_files, read_labelled_idx
from alignkit.jobs.task_tables import INPUTS, TABLES, TARGETS, describe_columns, is_table, read_columns, read_table
from alignkit.models import Example
from alignkit.models.texts import token_blocks
from alignkit.tasks.task import Task

TEXTS = (".txt", ".md")
CONTEXT = 128
"""Number of tokens in a block of text, where the model reads as many."""
ROWS = 32
"""Samples that a model of labels sees at once."""
FORMS = (
    f"package.module:function that returns an alignkit.Task; a table ({TABLES}) with inputs and targets, or with the "
    "arguments of the model, labels among them; a folder with inputs.npy and targets.npy, or with a folder of images "
    "for each class, or with the idx files of MNIST; a data set of the library datasets (save_to_disk, .parquet); or a "
    ".txt or .md file, or a folder of them, for folders of language models"
)


def task_from_file(path: Path, example: Example, folder: Path | None) -> Task:
    """Make a task of a file or a folder.

    Whole targets of one number a sample are classes: cross-entropy and accuracy. Other targets are met by the mean
    squared error. Tables with ``labels`` beside arguments of the model, and texts, take the loss that the model
    returns.

    Args:
        path: A table, a text, or a folder of arrays, images or texts; images in idx layout; a data set.
        example: The architecture, with an example call.
        folder: Folder of the model, with its tokenizer; None where there is none.

    Raises:
        TaskError: The file cannot be read, or does not hold what a task needs.
        ModelSourceError: The tokenizer cannot be used.
        MissingExtraError: A library that reads it is missing.
    """
    if is_dataset(path):
        return _task_of_dataset(path, example, folder)
    if (images := idx_images(path)) is not None:
        return Task(example[0], read_labelled_idx(images, example), "cross_entropy", "accuracy")
    if os.path.isdir(path):
        return _task_of_folder(path, example, folder)
    if path.suffix in TEXTS:
        return _task_of_texts(_read_texts([path]), path, example, folder)
    if not is_table(path):
        raise TaskError(f"--task {path} is of no known kind. Give {FORMS}.")
    return _task_of_table(read_table(path), f"the table {path}", example)


def _task_of_folder(path: Path, example: Example, folder: Path | None) -> Task:
    columns, classes = sorted(path.glob("*.npy")), image_classes(path)
    texts = sorted(text for text in path.iterdir() if text.suffix in TEXTS)
    kinds = {"arrays (.npy)": columns, "folders of images": classes, "texts": texts}
    there = [kind for kind, found in kinds.items() if found]
    if len(there) != 1:
        what = " and ".join(there) if there else "no data that are known"
        raise TaskError(f"--task {path} is a folder that holds {what}. Give {FORMS}.")
    if texts:
        return _task_of_texts(_read_texts(texts), path, example, folder)
    if columns:
        return _task_of_table(read_columns(path), f"the folder {path}", example)
    return _task_of_images(images_of_files(classes, example, folder), example)


def _task_of_images(batches: ImageBatches, example: Example) -> Task:
    if batches.is_prepared:
        return Task(example[0], batches, "model")
    return Task(example[0], batches, "cross_entropy", "accuracy")


def _task_of_dataset(path: Path, example: Example, folder: Path | None) -> Task:
    rows = read_dataset(path)
    if (texts := texts_of(rows)) is not None:
        return _task_of_texts(texts, path, example, folder)
    if (images := images_of_rows(rows, path, example, folder)) is not None:
        return _task_of_images(images, example)
    return _task_of_table(columns_of(rows, path), f"the data set {path}", example)


def _task_of_table(table: Mapping[str, Tensor], called: str, example: Example) -> Task:
    model = example[0]
    inputs, targets = ([table[name] for name in names if name in table] for names in (INPUTS, TARGETS))
    if inputs and targets:
        classes = targets[0].ndim == 1 and not targets[0].is_floating_point()
        if classes:
            return Task(model, (inputs[0], targets[0].long()), "cross_entropy", "accuracy")
        return Task(model, (inputs[0], targets[0]), "mse")
    if "labels" in table and len(table) > 1:
        return Task(model, [dict(table)], "model", chunk=ROWS)
    raise TaskError(f"{called} holds {describe_columns(table)}. Give {FORMS}.")


def _read_texts(paths: Sequence[Path]) -> list[str]:
    texts = []
    for path in paths:
        try:
            texts.append(read_file(path).decode("utf-8"))
        except (OSError, ValueError) as error:
            raise TaskError(f"the text {path} cannot be read: {error}.") from error
    return texts


def _task_of_texts(texts: Sequence[str], path: Path, example: Example, folder: Path | None) -> Task:
    model = example[0]
    if folder is None or not hasattr(model, "config"):
        raise TaskError(f"--task {path}: a text needs folders of a language model of transformers, with its tokenizer.")
    longest = getattr(model.config, "max_position_embeddings", CONTEXT) or CONTEXT
    blocks = token_blocks(folder, "\n\n".join(texts), min(CONTEXT, longest))
    return Task(model, [{"input_ids": blocks, "labels": blocks}], "model", chunk=ROWS)
