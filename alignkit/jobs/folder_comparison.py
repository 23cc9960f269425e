"""What the folders of networks say about them, compared: configurations, tokenizers, tensors that no model has."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

import torch

from alignkit.checkpoints import Checkpoint
from alignkit.checkpoints.dtypes import coarser_dtype
from alignkit.errors import BindError, UsageError
from alignkit.models import Configuration, differing_files, list_differences, says_ties, source_of
from alignkit.text import list_some, plural


class FolderWarning(UserWarning):
    """Folders of networks differ in what their inputs and outputs mean."""


def compare_folders(
    checkpoints: Sequence[Checkpoint], ignored: Sequence[str] = (), *, unties: bool = False
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Compare what the folders of networks say about them with what the first one says.

    Args:
        checkpoints: The networks; those without a ``config.json`` are taken to have that of the first.
        ignored: Fields that may differ.
        unties: Whether heads that are tied to embeddings get weights of their own, so that some may have them before.

    Returns:
        The name of the model of each network; and sentences about differences that do not change a function.

    Raises:
        UsageError: A ``config.json`` names no known model.
        ModelSourceError: A library does not accept one.
        BindError: A field differs that may change the function of the same weights.
    """
    models = [_model_of(checkpoint) for checkpoint in checkpoints]
    first, *others = [None if model is None else Configuration.read(model) for model in models]
    if first is None:
        raise no_architecture(f" {checkpoints[0].config} names no model of transformers, diffusers or timm.")
    notes: list[str] = []
    for checkpoint, other in zip(checkpoints[1:], others, strict=True):
        names = str(checkpoints[0].path), str(checkpoint.path)
        if other is None:
            notes.append(f"{names[1]} has no config.json of a model, so only its tensors were held against {names[0]}.")
            continue
        both_values = first.differences(other).items()
        differing = {n: both for n, both in both_values if not (n in ignored or (unties and says_ties(n)))}
        told = {name: both for name, both in differing.items() if first.is_told(name, both)}
        if refused := {name: both for name, both in differing.items() if name not in told}:
            raise BindError(
                f"the configurations of {names[0]} and {names[1]} differ, so that the same weights compute something "
                f"else in each: {list_differences(refused, names)}. Use networks of one configuration, or mend the "
                "config.json that is wrong. A field that does not matter here: --ignore-config FIELD."
            )
        if told:
            notes.append(f"Inputs or outputs mean different things: {list_differences(told, names)}.")
        if checkpoints[0].folder is not None and checkpoint.folder is not None:
            notes += differing_files(checkpoints[0].folder, checkpoint.folder)
    return tuple(model or first.model for model in models), tuple(notes)


def _model_of(checkpoint: Checkpoint) -> str | None:
    """Name the model of a network; None where nothing is said, or a weights file lies beside what is not about it.

    Raises:
        UsageError: A folder's ``config.json`` names no model that a library builds.
    """
    model = None if checkpoint.config is None else source_of(checkpoint.config)
    if model is None and checkpoint.config is not None and checkpoint.folder is not None:
        raise no_architecture(f" {checkpoint.config} names no model of transformers, diffusers or timm.")
    return model


def no_architecture(about: str = "") -> UsageError:
    """Make the error for networks of which nothing says what they are; ``about`` is a sentence on why."""
    ways = "--spec spec.json, or --model torchvision:resnet18"
    return UsageError(f"say what the architecture is: either {ways}.{about}")


def refuse_lost(unknown: Sequence[str], checkpoints: Sequence[Checkpoint]) -> None:
    """Refuse weights that the model does not have, such as another head, unless they are the same in all networks.

    Real folders hold tensors that their model never reads, such as position ids and masks, which are. Others would stay
    those of one network beside weights that change.
    """

    def differs(name: str) -> bool:
        if not checkpoints[0].entry(name).dtype.is_floating_point or not checkpoints[0].entry(name).shape:
            return False
        first, *others = (checkpoint[name] for checkpoint in checkpoints if name in checkpoint)
        dtype = reduce(coarser_dtype, (tensor.dtype for tensor in (first, *others)))
        return any(other.shape != first.shape or not torch.equal(other.to(dtype), first.to(dtype)) for other in others)

    if lost := [name for name in unknown if differs(name)]:
        raise BindError(
            f"the model of {checkpoints[0].config} does not have {plural(len(lost), 'tensor')} that differ between the "
            f"networks: {list_some(lost, 5)}. They would be those of one network beside weights of another. Name the "
            "class that has them first under architectures, and see that the numbers of layers and experts are right."
        )
