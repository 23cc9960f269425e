"""Aligners in safetensors files, with their settings and their model card."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from alignkit.arguments import check_arguments
from alignkit.checkpoints.documents import Content, Format
from alignkit.deepalign.aligner import Aligner
from alignkit.errors import AlignkitError, WeightsError
from alignkit.text import did_you_mean, list_some


class _AlignerContent(Content):
    encoder: str
    settings: dict[str, Any]
    card: dict[str, str]


FORMAT = Format("alignkit.aligner", "aligner", "alignkit train-deepalign", WeightsError, _AlignerContent)
MAX_SETTING = 4096
"""Maximum of a width or a number of layers; recommended ones are at most 1024."""
KINDS = {"learned": "alignkit.deepalign.encoder:ProbeEncoder", "dws": "alignkit.deepalign.dws.aligner:DwsAligner"}
"""Kinds of aligners by the name of their encoder: module and class, imported when one is needed."""


def aligner_class(encoder: str) -> type[Aligner]:
    """Import the class of a kind of aligner, a key of `KINDS`."""
    module, _, name = KINDS[encoder].partition(":")
    kind: type[Aligner] = getattr(import_module(module), name)
    return kind


@check_arguments
def save_aligner(path: str | Path, aligner: Aligner, card: Mapping[str, str] | None = None) -> None:
    """Write an aligner and its model card to one safetensors file; the whole file appears or nothing.

    Args:
        path: File to write, ``.safetensors``, in place of one that is there.
        aligner: The aligner.
        card: What a reader should know: data, shapes, command, results, limits.

    Raises:
        WeightsError: The file cannot be written.
    """
    values = {"encoder": aligner.encoder, "settings": aligner.settings(), "card": dict(card or {})}
    FORMAT.write_tensors(Path(path), aligner.state_dict(), values)


@check_arguments
def load_aligner(path: str | Path) -> Aligner:
    """Read an aligner that `save_aligner` wrote, in eval mode.

    Raises:
        WeightsError: The file is damaged, or not an aligner of the version that this release reads.
    """
    path = Path(path)
    content, tensors = FORMAT.read_tensors(path)
    encoder = content.encoder
    if encoder not in KINDS:
        raise WeightsError(
            f"{path} holds an aligner with the unknown encoder {encoder!r}.{did_you_mean(encoder, KINDS)}"
        )
    try:
        _check_settings(aligner_class(encoder), content.settings, tensors)
        with torch.random.fork_rng(devices=[]):  # initial values are drawn, and then replaced
            aligner = aligner_class(encoder).from_settings(content.settings)
        aligner.load_state_dict(tensors)
    except (AlignkitError, RuntimeError, TypeError, KeyError, ValueError) as error:
        raise WeightsError(f"{path}: its parameters do not fit its settings: {error}") from error
    if not all(bool(torch.isfinite(tensor).all()) for tensor in tensors.values()):
        raise WeightsError(f"{path} holds NaN or infinity. Train it again, or take an earlier checkpoint.")
    return aligner.eval()


def _check_settings(kind: type[Aligner], settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Raise ValueError unless settings make the parameters of a file, before memory is taken for them."""
    for name, value in settings.items():
        if type(value) is int and name != "seed" and not 0 <= value <= MAX_SETTING:
            raise ValueError(f"{name} is {value}, the maximum is {MAX_SETTING}.")
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in kind.from_settings(settings).state_dict().items()}
    if differs := [name for name, tensor in tensors.items() if shapes.pop(name, None) != tensor.shape] or list(shapes):
        raise ValueError(f"{list_some(sorted(differs), 3)} are missing, unknown or of another shape.")


@check_arguments
def read_card(path: str | Path) -> dict[str, str]:
    """Read the model card of an aligner's file.

    Raises:
        WeightsError: As in `load_aligner`.
    """
    return FORMAT.read_values(Path(path)).card
