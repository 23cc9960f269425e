"""Data that networks are only run on: batches of inputs, with what goes with them or without."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from alignkit.errors import TaskError
from alignkit.tasks.batches import DEFAULT_ROWS, Batches
from alignkit.text import with_article

LABELS = frozenset(("labels", "label", "targets", "target"))
"""Entries of a batch that are left out where the model does not take them."""


class InputBatches(Batches):
    """Batches that a model is run on, whose targets are not looked at.

    A batch is a tensor; a dict of keyword arguments; a tuple or list of positional arguments; or a pair of one of these
    with targets. Of several tensors the last is a target where the model does not need it.

    Args:
        source: An iterable of such batches, a list among them; or one batch: a tensor, a tuple of tensors or a dict.
        model: What is run.
    """

    def __init__(self, source: Any, model: nn.Module) -> None:
        is_one = isinstance(source, (Tensor, Mapping)) or (
            isinstance(source, tuple) and bool(source) and isinstance(source[-1], Tensor)
        )
        super().__init__([source] if is_one else source, DEFAULT_ROWS if is_one else None, is_whole=False)
        self._needed, self._unknown = _needed_arguments(model), LABELS - _argument_names(model)

    def read(self, batch: Any, name: str) -> tuple[Any, Any]:
        """Return the inputs of a batch, and its targets or nothing."""
        if isinstance(batch, Mapping):
            return {key: value for key, value in batch.items() if key not in self._unknown}, ()
        if isinstance(batch, Tensor):
            return batch, ()
        if not isinstance(batch, (tuple, list)) or not batch:
            raise TaskError(f"{name} is {with_article(type(batch).__name__)}: give tensors, tuples or dicts of them.")
        first, *others = batch
        if len(batch) == 1:
            return first, ()
        are_tensors = all(isinstance(part, Tensor) for part in batch)
        if are_tensors and len(batch) == self._needed:
            return tuple(batch), ()
        if len(batch) == 2:
            return first, others[0]
        if are_tensors and len(batch) == self._needed + 1:
            return tuple(batch[:-1]), batch[-1]
        raise TaskError(
            f"{name} has {len(batch)} entries, and the model needs {self._needed}: give a pair (inputs, targets), or "
            "the inputs alone."
        )


def _argument_names(model: nn.Module) -> frozenset[str]:
    """Return the labels that a model takes by name: all where it takes any names, or does not say."""
    try:
        parameters = inspect.signature(model.forward).parameters
    except (TypeError, ValueError):
        return LABELS
    takes_all = any(each.kind is inspect.Parameter.VAR_KEYWORD for each in parameters.values())
    return LABELS if takes_all else frozenset(parameters)


def _needed_arguments(model: nn.Module) -> int:
    """Count the positional arguments that a model cannot be called without; 1 where it does not say."""
    try:
        parameters = inspect.signature(model.forward).parameters.values()
    except (TypeError, ValueError):
        return 1
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return max(1, sum(each.kind in positional and each.default is each.empty for each in parameters))
