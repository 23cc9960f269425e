"""What users give a model as inputs, as the arguments of a call."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def call_arguments(inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the positional and keyword arguments with which a model is called on `inputs`.

    Args:
        inputs: A tuple or list holds positional arguments, a mapping arguments by name; anything else, such as a
            tensor, is the only argument.
    """
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    return (tuple(inputs) if isinstance(inputs, tuple | list) else (inputs,)), {}


def example_call(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments of an example call `f(model, *args, **kwargs)`.

    A single mapping holds inputs by name, as in the batches of a `Task`: `trace(model, {"x": x})` is
    `trace(model, x=x)`. A model that takes a dict as its argument gets it by the argument's name.
    """
    if len(args) == 1 and not kwargs and isinstance(args[0], Mapping):
        return call_arguments(args[0])
    return args, dict(kwargs)
