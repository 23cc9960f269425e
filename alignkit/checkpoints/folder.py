"""Folders of checkpoints: which files hold the weights, which go along, and which names are safe to follow."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path, PurePosixPath
from typing import Any

from alignkit.checkpoints.opening import read_file
from alignkit.checkpoints.safetensors_file import without_duplicates
from alignkit.checkpoints.shard import PICKLE_SUFFIXES, SAFETENSORS_SUFFIXES, file_kind
from alignkit.checkpoints.unfinished import is_unfinished
from alignkit.errors import WeightsError
from alignkit.text import list_some, show_value

INDEX_SUFFIX = ".index.json"
CONFIG = "config.json"
RUN_RECORD, CARD = "alignkit.json", "README.md"
"""The record of what made a folder, which never goes along to another, and the card of its model."""
_OTHERS = ".gguf .ggml .h5 .msgpack .npz .onnx .onnx_data .ot .pickle .pkl .tflite"
WEIGHTS_SUFFIXES = (*SAFETENSORS_SUFFIXES, *PICKLE_SUFFIXES, *_OTHERS.split())
"""Files with weights or pickles of any kind. Beside changed weights a copy would be wrong, so none is made."""
_SOUGHT: tuple[tuple[str, ...], ...] = (
    ("model.safetensors", "model.safetensors.index.json"),
    ("pytorch_model.bin", "pytorch_model.bin.index.json"),
    *((pattern,) for pattern in ("*.safetensors.index.json", "*.safetensors", "*.bin.index.json", "*.pt", "*.pth")),
    ("*.ckpt",),
    ("*.pth.tar",),
)
"""Weights files and indices that are looked for in a folder, in this order: first the names of Hugging Face."""


def find_weights(folder: Path) -> Path:
    """Find the weights file or index of a folder: by the names of Hugging Face, then any one file of a known format.

    Raises:
        WeightsError: There is none, or it is not clear which is meant.
    """
    for patterns in _SOUGHT:
        candidates = sorted(path for pattern in patterns for path in folder.glob(pattern) if os.path.isfile(path))
        if len(candidates) > 1:
            listed = list_some([path.name for path in candidates], 8)
            raise WeightsError(f"{folder} holds several weights files, {listed}. Name the one that is meant.")
        if candidates:
            return candidates[0]
    sought = "no model.safetensors, no model.safetensors.index.json, no pytorch_model.bin"
    problem = f"{folder} is a folder that holds no weights: {sought} and no other file of a known format"
    raise WeightsError(f"{problem}. Name the weights file.")


def read_index(path: Path) -> tuple[dict[str, list[str]], dict[str, Any]]:
    """Read an index, the file that says which shard holds each tensor.

    Returns:
        Names of the tensors of each shard, by the shard's path below the folder; and what the index says beside it,
        such as ``total_size``.

    Raises:
        WeightsError: It is not an index, names a tensor twice, or names a file that is missing or outside the folder.
    """
    try:
        index = json.loads(read_file(path), object_pairs_hook=without_duplicates)
        table = index["weight_map"]
        metadata = index.get("metadata") or {}
        if not (isinstance(metadata, dict) and table and all(isinstance(name, str) for name in table.values())):
            raise ValueError('"weight_map" has to map names of tensors to names of files')
    except OSError as error:
        raise WeightsError(f"{path} cannot be read: {error.strerror}.") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise WeightsError(f"{path} cannot be read as an index of shards: {error}.") from error
    shards: dict[str, list[str]] = {}
    for tensor, name in table.items():
        shards.setdefault(name, []).append(tensor)
    for name in shards:
        inside(path.parent, name, path)
    return shards, metadata


def files_of_weights(folder: Path) -> frozenset[Path]:
    """List shards and index of the checkpoint that a folder holds under a name of Hugging Face, relative to it.

    Empty where there is none, where two could be meant, or where its index cannot be followed.
    """
    for names in _SOUGHT[:2]:
        candidates = [folder / name for name in names if (folder / name).is_file()]
        if len(candidates) > 1:
            break
        for path in candidates:
            if not path.name.endswith(INDEX_SUFFIX):
                return frozenset({Path(path.name)})
            try:
                shards = {Path(name) for name in read_index(path)[0] if file_kind(Path(name)) is not None}
            except WeightsError:
                break
            return frozenset({Path(path.name), *shards})
    return frozenset()


def inside(folder: Path, name: str, said_by: Path) -> Path:
    """Find the file of a folder that a name read from a file stands for.

    Links may lead to another place of the same folder, and, in a cache of the Hugging Face hub, to its ``blobs``.

    Raises:
        WeightsError: The name leaves the folder, or is not one of a file.
    """
    pure = PurePosixPath(name)
    if not name or pure.is_absolute() or ".." in pure.parts or "\\" in name or "\0" in name or Path(name).drive:
        raise WeightsError(f"{said_by} names the file {show_value(name)}: only files inside {folder} are read.")
    path = folder / pure
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError, RuntimeError) as error:  # RuntimeError: links in a circle, before Python 3.13
        raise WeightsError(
            f"{said_by} names the file {show_value(name)}, which is missing or cannot be read."
        ) from error
    if not stat.S_ISREG(mode):
        raise WeightsError(f"{said_by} names {show_value(name)}, which is not a file.")
    if not stays_inside(path, folder):
        raise WeightsError(f"{path} is a link that leaves the folder: only files inside {folder} are read.")
    return path


def stays_inside(path: Path, folder: Path) -> bool:
    """Whether a path, links followed, is in the folder, or in the ``blobs`` beside it in a cache of the hub."""
    home, target = folder.resolve(), path.resolve()
    in_blobs = home.parent.name == "snapshots" and target.is_relative_to(home.parent.parent / "blobs")
    return in_blobs or target.is_relative_to(home)


def side_files(folder: Path, index: Path | None) -> tuple[Path, ...]:
    """List the files that go along with the weights (config, tokenizer, index), relative to the folder.

    Weights of other formats, hidden folders, records of alignkit and what is left of killed runs stay behind.

    Raises:
        WeightsError: A file is a link that leaves the folder, or a folder cannot be read.
    """
    side: list[Path] = []

    def refuse(error: OSError) -> None:
        raise WeightsError(f"{error.filename} cannot be read: {error.strerror}.") from error

    for place, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            path = Path(place, name)
            other_index = name.endswith(INDEX_SUFFIX) and path != index
            is_ours = is_unfinished(name) or name.endswith(RUN_RECORD)
            if name.endswith(WEIGHTS_SUFFIXES) or other_index or is_ours or not os.path.isfile(path):
                continue
            if not stays_inside(path, folder):
                raise WeightsError(f"{path} is a link that leaves the folder. Replace it by a file, or remove it.")
            side.append(path.relative_to(folder))
    return tuple(side)
