"""Mappings that belong to what holds them: what others write later, to what they gave or were given, changes nothing.

Example: an alignment that was checked once stays what was checked::

    alignment = Alignment(graph, {"h": index})
    index.fill_(0)                       # the alignment holds a copy
    alignment.elements["h"].fill_(0)     # and hands out copies
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import TypeVar, cast

from torch import Tensor

T = TypeVar("T")


class ReadOnly(Mapping[str, T]):
    """The entries that a mapping has now. The values are those that were given: large tensors are not copied."""

    def __init__(self, values: Mapping[str, T]) -> None:
        self._values = dict(values)

    def __getitem__(self, name: str) -> T:
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return repr(self._values)


class Owned(ReadOnly[T]):
    """Copies of the values that a mapping has now; what it hands out are copies again. Gradients flow through them."""

    def __init__(self, values: Mapping[str, T]) -> None:
        super().__init__({name: _copied(value) for name, value in values.items()})

    def __getitem__(self, name: str) -> T:
        return _copied(self._values[name])


def _copied(value: T) -> T:
    return cast(T, value.clone()) if isinstance(value, Tensor) else copy.deepcopy(value)
