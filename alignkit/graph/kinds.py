"""Kinds of groups: what the elements of a group do to its units, and how that is written.

Every kind is a group of isometries: of permutations, of signs, of rotations (with reflections), or of what several of
these have in common. So an element acts alike on the axes that write a space of units and on those that read it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, TypeAlias

GroupKind: TypeAlias = Literal["permutation", "signed", "planes", "adjacent_planes", "orthogonal", "centred"]
"""How the units of a group may move; see the notation."""


@dataclass(frozen=True)
class KindFacts:
    """What is to be known about a kind: ``n`` is the number of units.

    Attributes:
        mark: Stands in front of the group's name in the notation.
        words: What the elements do to the units.
        rotates: Whether an element is a matrix; otherwise it is whole numbers.
    """

    mark: str
    words: str
    rotates: bool = True

    def __str__(self) -> str:
        return f"{self.words} ({self.mark or 'no mark'})"


KINDS: Mapping[GroupKind, KindFacts] = MappingProxyType(
    {
        "permutation": KindFacts("", "permuted", rotates=False),
        "signed": KindFacts("-", "permuted with signs", rotates=False),
        "planes": KindFacts("%", "rotated in the planes (i, i + n/2)"),
        "adjacent_planes": KindFacts("%%", "rotated in the planes (2i, 2i + 1)"),
        "orthogonal": KindFacts("~", "rotated"),
        "centred": KindFacts("^", "rotated with the vector of ones fixed"),
    }
)
KIND_OF_MARK: Mapping[str, GroupKind] = MappingProxyType({facts.mark: kind for kind, facts in KINDS.items()})
WITH_MEAN: frozenset[GroupKind] = frozenset(("permutation", "centred"))
"""Kinds whose elements all keep the vector of ones: their mean averages units. The mean of every other kind is 0."""
FULL: frozenset[GroupKind] = frozenset(("orthogonal", "centred"))
"""Kinds that rotate all units into each other."""
PLANES: frozenset[GroupKind] = frozenset(("planes", "adjacent_planes"))
"""Kinds that rotate units in pairs: their number has to be even."""


def dimension(kind: GroupKind, size: int) -> int:
    """Return the dimension of the group of a kind on ``size`` units: the number of its free continuous parameters."""
    free = size - 1 if kind == "centred" else size
    return size // 2 if kind in PLANES else free * (free - 1) // 2 if KINDS[kind].rotates else 0


def component_count(kind: GroupKind, size: int) -> int:
    """Return the number of connected parts of the group of a kind on ``size`` units: of its elements, if discrete."""
    if KINDS[kind].rotates:  # rotations and reflections
        return 2 if kind == "orthogonal" or (kind == "centred" and size > 1) else 1
    return math.factorial(size) * (2**size if kind == "signed" else 1)


def moves(kind: GroupKind, size: int) -> bool:
    """Tell whether the group of a kind on ``size`` units has other elements than the identity: one unit has a sign."""
    return dimension(kind, size) > 0 or component_count(kind, size) > 1


def log10_component_count(kind: GroupKind, size: int) -> float:
    """Return the decimal logarithm of `component_count`."""
    if KINDS[kind].rotates:
        return math.log10(component_count(kind, size))
    return math.lgamma(size + 1) / math.log(10) + (size * math.log10(2) if kind == "signed" else 0)
