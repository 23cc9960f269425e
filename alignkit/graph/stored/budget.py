"""How much memory may be used, and how it is shared out."""

from __future__ import annotations

import ctypes
import math
import re
import sys
from dataclasses import dataclass
from math import prod

from alignkit.errors import SolverError, UsageError
from alignkit.graph.structure import GraphStructure

UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
UNITS |= {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}
_ASSIGNMENT = 2
"""Similarity matrices alive while one is assigned: itself, and the copy that the assignment works on."""
_SMALLEST, _LARGEST = 1 << 12, 1 << 26
"""Bounds of a piece of a tensor, in bytes."""
_WHOLE = 8
"""Copies of a tensor that is rotated which may be alive at once, in 64 bits; seven were seen. Each number of it is made
of many, so that no part can be had alone."""
_ALIVE = 16
"""Pieces of tensors, in several dtypes, that may be alive at once."""


def release_freed() -> None:
    """Give memory that was freed back to the system; the allocator of glibc keeps pieces of up to 32 MB otherwise."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


LEAST = 1_000_000
"""Bytes below which an amount without a unit is not meant as bytes."""


def parse_memory(text: str | int) -> int:
    """Read an amount of memory, such as ``"2GB"`` (2 * 10**9), ``"512 MiB"`` (512 * 2**20) or a number of bytes.

    Raises:
        UsageError: It is not a positive amount.
    """
    if isinstance(text, int):
        return text
    amount = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)\s*", text)
    factor = UNITS.get(amount[2].upper()) if amount else None
    if amount is None or factor is None or not int(float(amount[1]) * factor):
        raise UsageError(f"{text!r} is not an amount of memory: write a number with a unit, such as 2GB or 512MiB.")
    if not amount[2] and float(amount[1]) < LEAST:
        raise UsageError(
            f"{text!r} bytes of memory hold nothing: write the unit, such as {amount[1]}GB or {amount[1]}MB."
        )
    return int(float(amount[1]) * factor)


@dataclass(frozen=True)
class Budget:
    """Memory in bytes for one solve or one pass, beyond what the process uses anyway."""

    memory: int
    matrices: int = 0
    """What the largest similarity matrix and its assignment take of it."""

    @property
    def room(self) -> int:
        """Entries of similarities that may be kept: half of what is left beside one that is assigned."""
        return max(0, self.memory - self.matrices - _ALIVE * _SMALLEST) // 16

    @property
    def piece(self) -> int:
        """Bytes, in float64, of one piece of a tensor."""
        # While a matrix is summed up there is one of it; its copies come when all pieces are gone.
        left = self.memory - self.matrices // _ASSIGNMENT - 8 * self.room
        return max(_SMALLEST, min(_LARGEST, left // _ALIVE))

    @classmethod
    def of(cls, graph: GraphStructure, memory: int | str, own: int = 0, owner: str = "") -> Budget:
        """Share out memory for matching units over a graph.

        Args:
            graph: The graph.
            memory: Bytes, or text that `parse_memory` reads.
            own: Bytes that something else keeps for itself.
            owner: What messages call it, such as ``"solver 'deepalign'"``.

        Raises:
            UsageError: The text is not an amount.
            SolverError: The similarities of some group do not fit. The message names the group and what it takes.
        """
        limit = parse_memory(memory)
        units = {root: max(graph.unit_count(name) for name in graph.tree(root)) for root in graph.roots}
        largest = max(units, key=lambda root: units[root], default="")
        needed = _ASSIGNMENT * 8 * units.get(largest, 0) ** 2
        if limit < (least := needed + _ALIVE * _SMALLEST + own):
            beside = f" beside the {own} bytes of {owner}" if own else ""
            raise SolverError(
                f"memory={limit} bytes do not suffice: the similarities of the units of {largest!r} and their "
                f"assignment take {needed} bytes{beside}. Give at least {math.ceil(least / 1e6)} MB."
            )
        turned = {n: prod(node.shape) for n, node in graph.tensors.items() if any(map(graph.rotates, node.groups))}
        whole = max(turned, key=lambda name: turned[name], default="")
        if whole and limit < (least := least + _WHOLE * 8 * turned[whole]):
            raise SolverError(
                f"memory={limit} bytes do not suffice: units of {whole!r} are rotated, so that all of it is held, in "
                f"{_WHOLE} copies of 64 bits beside {needed} bytes. Give at least {math.ceil(least / 1e6)} MB."
            )
        return cls(limit - own, needed)
