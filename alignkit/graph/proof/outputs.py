"""The tensors in what a model returns, whatever objects they are in."""

from __future__ import annotations

import enum
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import fields, is_dataclass
from types import CellType, FunctionType, MemberDescriptorType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from alignkit.errors import OutputError

_EMPTY = CellType()
_WITHOUT_TENSORS = (
    type(None), str, bytes, bool, int, float, complex, type, ModuleType, enum.Enum, np.generic, torch.dtype,
    torch.device, torch.layout, torch.Size, torch.Generator, range,
)  # fmt: skip

_HIDE_TENSORS = (Iterator, torch.UntypedStorage, torch.TypedStorage)


def output_tensors(result: object) -> list[Tensor]:
    """Return every tensor in the outputs of a model.

    They may be in containers, dataclasses, objects with attributes or slots, and what functions hold. Weights of
    modules are no outputs, and neither are key-value caches of transformers: they are state, in the order of the
    model's own heads and units.

    Raises:
        OutputError: An object may hold tensors that cannot be found, such as a generator, which makes them later.
    """
    tensors: list[Tensor] = []
    seen: dict[int, object] = {}
    waiting: list[object] = [result]
    while waiting:
        value = waiting.pop()
        if isinstance(value, Tensor):
            tensors.append(value)
        elif id(value) not in seen and not isinstance(value, _WITHOUT_TENSORS) and not _is_cache(value):
            seen[id(value)] = value
            waiting += reversed(_parts(value))
    return tensors


def named_outputs(result: object, chosen: Sequence[str] = ()) -> list[tuple[str, Tensor]]:
    """Return every tensor in the outputs of a model, each with the name of its output.

    The name is a key or a field of what the model returns, such as "logits", or a number where it returns a tuple or
    list, "" for anything else. `chosen` names outputs; all others are left out.

    Raises:
        OutputError: An output that is chosen is not there, or an object hides its tensors.
    """
    parts = _top_level(result)
    if missing := [name for name in chosen if name not in parts]:
        names = ", ".join(repr(name) for name in parts if name) or "a single one, without a name"
        raise OutputError(f"the model has no output {', '.join(map(repr, missing))}. Its outputs are: {names}.")
    if chosen:
        return [(name, tensor) for name in chosen for tensor in output_tensors(parts[name])]
    name_of = {id(tensor): name for name, part in parts.items() for tensor in output_tensors(part)}
    return [(name_of.get(id(tensor), ""), tensor) for tensor in output_tensors(result)]


def _top_level(result: object) -> dict[str, object]:
    """Return the outputs of a model by name."""
    if isinstance(result, Mapping) and all(isinstance(key, str) for key in result):
        return dict(result)
    if isinstance(result, tuple | list):
        return dict(zip(getattr(result, "_fields", map(str, range(len(result)))), result, strict=True))
    if is_dataclass(result) and not isinstance(result, type):
        return {field.name: getattr(result, field.name) for field in fields(result)}
    return {"": result}


def _is_cache(value: object) -> bool:
    names = {(base.__module__.partition(".")[0], base.__name__) for base in type(value).__mro__}
    return ("transformers", "Cache") in names


def _parts(value: object) -> list[Any]:
    """Return what an object holds."""
    if isinstance(value, FunctionType):
        held = [*(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).values()]
        return [*held, *(cell.cell_contents for cell in value.__closure__ or () if cell != _EMPTY)]
    members = [member for base in type(value).__mro__ for member in vars(base).values()]
    slots = [member for member in members if isinstance(member, MemberDescriptorType)]
    parts: list[Any] = []
    for slot in slots:
        with suppress(AttributeError):  # never set
            parts.append(slot.__get__(value))
    if isinstance(value, Mapping):
        parts += [*value.keys(), *value.values()]
    elif isinstance(value, np.ndarray):
        parts += value.ravel().tolist() if value.dtype == object else []
    elif isinstance(value, Collection):
        parts += list(value)
    elif isinstance(value, _HIDE_TENSORS) or not (slots or hasattr(value, "__dict__")):
        raise OutputError(
            f"the model returns an object of type {type(value).__name__}, in which its tensors cannot be found. Return "
            "tensors, or lists, tuples, dicts or dataclasses of them: list(...) of a generator, for example."
        )
    registered = ("_parameters", "_buffers", "_modules") if isinstance(value, nn.Module) else ()
    return [*parts, *(part for name, part in getattr(value, "__dict__", {}).items() if name not in registered)]
