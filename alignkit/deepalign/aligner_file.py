"""Aligners in safetensors files, with their settings and their model card."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

import safetensors
import torch

from alignkit.checkpoints.weights import write_weights
from alignkit.deepalign.aligner import Aligner
from alignkit.errors import AlignkitError, WeightsError
from alignkit.text import did_you_mean

FORMAT, VERSION = "alignkit.aligner", 1
KINDS = {"learned": "alignkit.deepalign.encoder:ProbeEncoder", "dws": "alignkit.deepalign.dws.aligner:DwsAligner"}
"""Kinds of aligners by the name of their encoder: module and class, imported when one is needed."""

Content = TypeVar("Content")


def aligner_class(encoder: str) -> type[Aligner]:
    """Import the class of a kind of aligner, a key of `KINDS`."""
    module, _, name = KINDS[encoder].partition(":")
    kind: type[Aligner] = getattr(import_module(module), name)
    return kind


def save_aligner(path: str | Path, aligner: Aligner, card: Mapping[str, str] | None = None) -> None:
    """Write an aligner and its model card to one safetensors file; the whole file appears or nothing.

    Args:
        path: File to write, ``.safetensors``.
        aligner: The aligner.
        card: What a reader should know: data, shapes, command, results, limits.

    Raises:
        WeightsError: The file cannot be written.
    """
    header = {"encoder": aligner.encoder, "settings": aligner.settings(), "version": VERSION}
    write_weights(path, aligner.state_dict(), {FORMAT: json.dumps(header), "card": json.dumps(dict(card or {}))})


def load_aligner(path: str | Path) -> Aligner:
    """Read an aligner that `save_aligner` wrote, in eval mode.

    Raises:
        WeightsError: The file is damaged, does not hold an aligner, or one of a newer version.
    """
    path = Path(path)
    header, tensors = _open(
        path,
        lambda file: (json.loads(file.metadata()[FORMAT]), {name: file.get_tensor(name) for name in file.keys()}),  # noqa: SIM118, not a mapping
    )
    if header.get("version", 0) > VERSION:
        raise WeightsError(f"{path} was written by a newer alignkit (format {header['version']}). Upgrade alignkit.")
    encoder = str(header.get("encoder"))
    if encoder not in KINDS:
        raise WeightsError(
            f"{path} holds an aligner with the unknown encoder {encoder!r}.{did_you_mean(encoder, KINDS)}"
        )
    try:
        aligner = aligner_class(encoder).from_settings(header["settings"])
        aligner.load_state_dict(tensors)
    except (AlignkitError, RuntimeError, TypeError, KeyError, ValueError) as error:
        raise WeightsError(f"{path}: its parameters do not fit its settings: {error}") from error
    if not all(bool(torch.isfinite(tensor).all()) for tensor in tensors.values()):
        raise WeightsError(f"{path} holds NaN or infinity. Train it again, or take an earlier checkpoint.")
    return aligner.eval()


def read_card(path: str | Path) -> dict[str, str]:
    """Read the model card of an aligner's file.

    Raises:
        WeightsError: As in `load_aligner`.
    """
    return _open(Path(path), lambda file: dict(json.loads((file.metadata() or {}).get("card", "{}"))))


def _open(path: Path, read: Callable[[Any], Content]) -> Content:
    if not path.is_file():
        raise WeightsError(f"{path} does not exist. Give the file of an aligner, or leave the shipped one.")
    try:
        with safetensors.safe_open(path, "pt") as file:
            if FORMAT not in (file.metadata() or {}):
                raise WeightsError(f"{path} holds no aligner. Aligners are written by alignkit train-deepalign.")
            return read(file)
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        if isinstance(error, AlignkitError):
            raise
        raise WeightsError(f"{path} cannot be read as an aligner: {error}.") from error
