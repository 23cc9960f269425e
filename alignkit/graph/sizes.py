"""Sizes of groups and of fixed factors, worked out from the shapes of the tensors.

An axis with one unknown size tells it. In ``{"w1": "h .", "w2": ". (h 4)"}`` with shapes ``(5, 3)`` and ``(2, 20)``,
axis 0 of ``w1`` says that ``h`` has 5 units, axis 1 that its ``.`` has 3 positions, and axis 1 of ``w2``, where nothing
is unknown any more, that 5 * 4 is indeed 20.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from alignkit.errors import UndeterminedSizeError
from alignkit.graph.layout import Axis, Factor, Fixed, Layout, Segment, Units, factor_size, simplified
from alignkit.graph.notation import format_layout


@dataclass(frozen=True)
class _SizedAxis:
    """One axis of a tensor, and how long its shape says that it is."""

    tensor: str
    index: int
    axis: Axis
    size: int

    def __str__(self) -> str:
        return f"tensor {self.tensor!r}, axis {self.index}"

    @property
    def notation(self) -> str:
        return format_layout((self.axis,))

    def unknowns(self, sizes: Mapping[str, int]) -> tuple[set[str], int]:
        """Return the groups whose sizes are not known, and the number of ``.`` without a size."""
        leaves = f"which leaves the size of {', '.join(map(repr, sorted(groups))) or '.'} open"
        problem = f"{sized}: {sized.notation!r} must make {sized.size}, {leaves}. Give {' or '.join(ways)}."
        raise UndeterminedSizeError(problem, tuple(sorted(groups)))

    def fill(axis: Axis, size: int) -> Axis:
        return simplified(_fill(axis, table.sizes, _solve_size(axis, size, table.sizes)))

    return {n: tuple(map(fill, layout, shapes[n])) for n, layout in layouts.items()}, table.sizes


def open_sizes(
    layouts: Mapping[str, Layout], shapes: Mapping[str, tuple[int, ...]], sizes: Mapping[str, int]
) -> dict[str, int]:
    """Find the sizes that have to be written for the others to follow from the shapes.

    The layouts have no sizes of groups; ``sizes`` holds all. Where several would do, the first in its order is chosen.
    """
    table, written = _SizeTable(layouts, shapes), dict[str, int]()
    table.settle()
    while table.axes:
        groups, _ = table.axes[0].unknowns(table.sizes)
        name = next(name for name in sizes if name in groups)
        written[name] = sizes[name]
        table.record(name, sizes[name], "known")
        table.settle()
    return written


def _solve_size(axis: Axis, size: int, sizes: Mapping[str, int], smallest: int = 0) -> int | None:
    """Find the unknown size that makes the axis ``size`` long by bisection: the total grows with it."""

    def total(unknown: int) -> int:
        return factor_size(_fill(axis, sizes, unknown))

    low, high = smallest, max(size, smallest)
    if total(high) == size:  # Most axes are a single factor, or hold nothing unknown.
        return high
    while low < high:
        middle = (low + high) // 2
        low, high = (middle + 1, high) if total(middle) < size else (low, middle)
    return low if total(low) == size else None


def _fill(axis: Axis, sizes: Mapping[str, int], unknown: int | None) -> Axis:
    """Fill in the sizes of an axis, ``unknown`` for what has none."""

    def fill(factor: Factor) -> Factor:
        if isinstance(factor, Axis):
            return _fill(factor, sizes, unknown)
        if isinstance(factor, Units):
            return replace(factor, size=sizes.get(factor.group, unknown))
        return Fixed(unknown if factor.size is None else factor.size)

    return Axis(tuple(Segment(tuple(map(fill, segment.factors))) for segment in axis.segments))
