"""What a spec is written for: names, shapes, dtypes and ties of a model's or a mapping's tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from alignkit.checkpoints.ties import first_names
from alignkit.errors import GraphError
from alignkit.graph.nodes import Role
from alignkit.text import dtype_name

Like = nn.Module | Mapping[str, Tensor] | Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class TensorFacts:
    """A tensor before it has a layout; ``names`` has more than one entry when tensors are tied."""

    names: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: str
    role: Role


def tensor_facts(like: Like) -> dict[str, TensorFacts]:
    """Read names, shapes, dtypes, roles and ties of tensors, by first name; only metadata is read.

    Raises:
        GraphError: A value is neither a tensor nor a shape.
    """
    if isinstance(like, nn.Module):
        parameters = {name for name, _ in like.named_parameters(remove_duplicate=False)}
        tensors = {n: t for n, t in like.state_dict(keep_vars=True).items() if isinstance(t, Tensor)}
        return _facts(tensors, lambda name: "parameter" if name in parameters else "buffer")
    if not isinstance(like, Mapping):
        raise GraphError(
            f"like= takes a module, a state dict or a mapping of names to shapes, found {type(like).__name__}."
        )
    if any(isinstance(value, Tensor) for value in like.values()):
        return _facts(dict(like), lambda name: "tensor")
    return {name: TensorFacts((name,), _shape(name, value), "", "tensor") for name, value in like.items()}


def _shape(name: str, value: object) -> tuple[int, ...]:
    if isinstance(value, tuple | list | torch.Size) and all(isinstance(n, int) and n >= 0 for n in value):
        return tuple(value)
    raise GraphError(f"like[{name!r}] is neither a tensor nor a shape such as (128, 784): {value!r}.")


def _facts(tensors: Mapping[str, object], role: Callable[[str], Role]) -> dict[str, TensorFacts]:
    checked: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor):
            raise GraphError(f"like[{name!r}] is not a tensor but {type(tensor).__name__}.")
        checked[name] = tensor
    names: dict[str, list[str]] = {}
    for name, first in first_names(checked).items():
        names.setdefault(first, []).append(name)
    return {
        first: TensorFacts(tuple(tied), tuple(checked[first].shape), dtype_name(checked[first].dtype), role(first))
        for first, tied in names.items()
    }
