"""Images in the idx layout of MNIST and Fashion-MNIST, and scikit-learn's digits."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import Tensor

from alignkit.errors import MissingExtraError, ZooError
from alignkit.tasks.idx import read_idx
from alignkit.text import install_extra

FOLDERS = ("mnist", "fashion-mnist")
PREFIX = {"train": "train", "test": "t10k"}
DIGITS_TEST = 450
"""Images of the test split, a quarter of the digits."""


def read_images(name: str, folder: str | Path | None, split: str) -> tuple[Tensor, Tensor]:
    """Read grey images as float32 ``[n, 1, h, w]`` in 0..1 and their classes as int64 ``[n]``.

    Args:
        name: ``"mnist"``, ``"fashion-mnist"`` or ``"digits"`` (scikit-learn's, 8x8, which needs no folder).
        folder: Holds ``train-images-idx3-ubyte.gz`` and its three companions, or a folder of that name with them.
            The files may be unpacked (no ``.gz``).
        split: ``"train"`` or ``"test"``.

    Raises:
        ZooError: The folder or a file is missing or damaged; the message says which file was looked for.
        MissingExtraError: The digits are asked for and scikit-learn is not installed.
    """
    if name == "digits":
        try:
            from sklearn.datasets import load_digits
            from sklearn.model_selection import train_test_split
        except ImportError as error:
            raise MissingExtraError(f"the digits come with scikit-learn: {install_extra('demo')}.") from error
        pixels, labels = load_digits(return_X_y=True)
        rows = train_test_split(range(len(labels)), test_size=DIGITS_TEST, stratify=labels, random_state=0)
        chosen = torch.as_tensor(rows[split == "test"])
        return torch.as_tensor(pixels.reshape(-1, 1, 8, 8)).float()[chosen] / 16, torch.as_tensor(labels).long()[chosen]
    if folder is None:
        raise ZooError(
            f"{name} is read from idx files: give the folder that holds {PREFIX[split]}-images-idx3-ubyte.gz and its "
            f"three companions, or a folder {name!r} with them."
        )
    images = read_idx(_find(name, Path(folder), f"{PREFIX[split]}-images-idx3-ubyte"), 3, ZooError)
    labels = read_idx(_find(name, Path(folder), f"{PREFIX[split]}-labels-idx1-ubyte"), 1, ZooError)
    if len(images) != len(labels):
        raise ZooError(f"{name} in {folder}: {len(images)} images of the {split} split, but {len(labels)} labels.")
    return images[:, None].float() / 255, labels.long()


def _find(name: str, folder: Path, stem: str) -> Path:
    """Find the file of this stem in ``folder/name`` or, unless it is named after another data set, in ``folder``."""
    folders = [folder / name]
    if folder.name not in FOLDERS or folder.name == name:
        folders.append(folder)
    wanted = [parent / f"{stem}{suffix}" for parent in folders for suffix in (".gz", "")]
    for path in wanted:
        if os.path.isfile(path):
            return path
    looked = ", ".join(str(path) for path in wanted)
    why = "" if os.path.isdir(folder) else f" There is no folder {folder}."
    raise ZooError(f"{name}: the file {stem}.gz is missing. Looked for {looked}.{why}")
