"""Losses and metrics: what is computed from outputs and targets."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor
from torch.nn import functional

from alignkit.errors import TaskError

Measure = Callable[[Any, Any], Any]
"""Called with outputs and targets; returns the mean over the samples as a scalar tensor or a float."""


def cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Compute the mean cross-entropy of logits ``[n, classes, ...]`` against classes ``[n, ...]`` or probabilities."""
    return functional.cross_entropy(outputs, targets)


def next_token(outputs: Tensor, targets: Tensor) -> Tensor:
    """Compute the mean cross-entropy of logits ``[n, tokens, vocabulary]`` against the next tokens ``[n, tokens]``."""
    return functional.cross_entropy(outputs.flatten(0, -2), targets.flatten())


def mse(outputs: Tensor, targets: Tensor) -> Tensor:
    """Compute the mean squared error of outputs and targets of one shape ``[n, ...]``; nothing is broadcast."""
    if outputs.shape != targets.shape:
        raise TaskError(
            f"mse: outputs have shape {list(outputs.shape)}, targets {list(targets.shape)}. Reshape one of them."
        )
    return functional.mse_loss(outputs, targets)


def model_loss(outputs: Any, targets: Any) -> Tensor:
    """Return the loss that a model computed itself, as those of transformers do from labels among their inputs."""
    loss = outputs.get("loss") if isinstance(outputs, Mapping) else getattr(outputs, "loss", None)
    if not isinstance(loss, Tensor):
        raise TaskError(
            f'loss="model": the model returned a {type(outputs).__name__} without a loss. Give it batches that are '
            'dicts with "labels", or another loss.'
        )
    return loss


def accuracy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Compute the share of samples whose largest logit ``[n, classes, ...]`` is that of the class ``[n, ...]``."""
    predicted = outputs.argmax(1)
    if predicted.shape != targets.shape:
        raise TaskError(
            f"accuracy: outputs have shape {list(outputs.shape)}, targets {list(targets.shape)}. "
            "Give logits [n, classes, ...] and classes [n, ...]."
        )
    return (predicted == targets).double().mean()


LOSSES: dict[str, Measure] = {"cross_entropy": cross_entropy, "mse": mse, "model": model_loss}
METRICS: dict[str, Measure] = {"accuracy": accuracy}


def measure(kind: str, given: str | Measure, known: Mapping[str, Measure]) -> Measure:
    """Return the loss or metric of a name, or the function that was given."""
    if isinstance(given, str):
        if given not in known:
            names = ", ".join(repr(name) for name in known)
            raise TaskError(f"no {kind} is named {given!r}. Known: {names}; or pass a callable(outputs, targets).")
        return known[given]
    return given


def measure_name(measure: Measure) -> str:
    """Return the name of a loss or metric: that of the function, or of the object's class."""
    name: str = getattr(measure, "__name__", type(measure).__name__)
    return name


def scalar(kind: str, value: Any, batch: str) -> float:
    """Return what a measure gave for a batch as a finite number; `TaskError` where it is none."""
    if isinstance(value, Tensor) and value.numel() != 1:
        raise TaskError(
            f"the {kind} of {batch} has shape {list(value.shape)}: return the mean over the samples, one number."
        )
    number = float(value)
    if not math.isfinite(number):
        raise TaskError(f"the {kind} of {batch} is {number}. Are its inputs, and the weights, finite?")
    return number
