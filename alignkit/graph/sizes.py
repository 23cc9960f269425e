"""Sizes of groups and of fixed factors, worked out from the shapes of the tensors.

An axis with one unknown size tells it. In ``{"w1": "h .", "w2": ". (h 4)"}`` with shapes ``(5, 3)`` and ``(2, 20)``,
axis 0 of ``w1`` says that ``h`` has 5 units, axis 1 that its ``.`` has 3 positions, and axis 1 of ``w2``, where nothing
is unknown any more, that 5 * 4 is indeed 20.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from alignkit.errors import GraphError, ShapeMismatchError, UndeterminedSizeError
from alignkit.graph.layout import Axis, Factor, Fixed, Layout, Segment, Units, factor_size, simplified
from alignkit.graph.notation import format_layout
from alignkit.text import show_value


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
        leaves = list(self.axis.leaves())
        groups = {leaf.group for leaf in leaves if isinstance(leaf, Units) and leaf.group not in sizes}
        return groups, sum(isinstance(leaf, Fixed) and leaf.size is None for leaf in leaves)


class _SizeTable:
    """The sizes of groups that are known so far, where each was found, and the axes that still leave a size open."""

    def __init__(self, layouts: Mapping[str, Layout], shapes: Mapping[str, tuple[int, ...]]) -> None:
        self.sizes: dict[str, int] = {}
        self.origin: dict[str, str] = {}
        axes = [(tensor, i, axis) for tensor, layout in layouts.items() for i, axis in enumerate(layout)]
        self.axes = [_SizedAxis(tensor, i, axis, shapes[tensor][i]) for tensor, i, axis in axes]

    def record(self, group: str, size: int, origin: str) -> None:
        """Record a size; a second, different one is an error that names both origins."""
        known = self.sizes.setdefault(group, size)
        self.origin.setdefault(group, origin)
        if known != size:
            clash = f"group {group!r} has {known} units ({self.origin[group]}) but {size} ({origin})"
            hint = f"say how many positions each unit owns: '({group} {max(known, size) // min(known, size)})'"
            raise ShapeMismatchError(f"{clash}. If a flatten stands between them, {hint}.")

    def settle(self) -> None:
        """Use axes one after the other, and drop those about which nothing is open, until none tells anything new."""
        count = -1
        while len(self.axes) != count:
            count = len(self.axes)
            self.axes = [axis for axis in self.axes if not self.use(axis)]

    def use(self, sized: _SizedAxis) -> bool:
        """Learn from one axis; True when nothing about it is left open."""
        open_groups, dots = sized.unknowns(self.sizes)
        if len(open_groups) + dots > 1:
            return False
        # Only an axis that is all '.' may have no positions: '.' beside groups stands for at least one.
        smallest = 1 if open_groups or (dots and not sized.axis.is_fixed) else 0
        size = _solve_size(sized.axis, sized.size, self.sizes, smallest)
        if size is not None:
            for group in open_groups:
                self.record(group, size, str(sized))
            return True
        # Say which sizes contradict the shape and where they come from; guess at a flatten that was forgotten.
        groups = list(dict.fromkeys(units.group for units in sized.axis.units()))
        named = [f"{group} = {self.sizes[group]}" for group in groups if group in self.sizes]
        known = f" with {', '.join(named)}" if named else ""
        if open_groups:
            problem = f"no whole size of group {min(open_groups)!r} makes {sized.notation!r} {sized.size} long{known}"
            raise ShapeMismatchError(f"{sized}: {problem}. Check the layout against the shape.")
        total, hint = factor_size(_fill(sized.axis, self.sizes, 1)), ""
        if len(groups) == 1 and total and sized.size:
            (group,), ask = groups, " Is a flatten between them? Then"
            if sized.size % total == 0:
                hint = f"{ask} say how many positions each unit owns: '({group} {sized.size // total})'."
            elif sized.size > 1 and total % sized.size == 0 and self.origin[group].startswith("tensor"):
                hint = f"{ask} write '({group} {total // sized.size})' for {self.origin[group]}."
        origins = [f"{group!r} from {self.origin[group]}" for group in groups]
        where = f"{known} ({', '.join(origins)})" if groups else ""
        raise ShapeMismatchError(f"{sized} has size {sized.size}, but {sized.notation!r} makes {total}{where}.{hint}")


def resolve_sizes(
    layouts: Mapping[str, Layout], shapes: Mapping[str, tuple[int, ...]], given: Mapping[str, int]
) -> tuple[dict[str, Layout], dict[str, int]]:
    """Fill in every size of the layouts.

    Args:
        layouts: Layout of each tensor, sizes possibly unknown.
        shapes: Shape of each of these tensors.
        given: Sizes of groups that the caller knows.

    Returns:
        The layouts with all sizes known, and the size of each group.

    Raises:
        ShapeMismatchError: Sizes contradict the shapes; names tensor, axis and group.
        UndeterminedSizeError: A size cannot be worked out; names the axis and how to give it.
    """
    table = _SizeTable(layouts, shapes)
    if not isinstance(given, Mapping):
        raise GraphError(f"sizes: a mapping from groups to whole numbers is needed, found {type(given).__name__}.")
    for group, size in given.items():
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise GraphError(f"sizes: group {group!r} needs a positive whole number, found {show_value(size)}.")
        table.record(group, size, "given in sizes")
    for sized in table.axes:
        for units in sized.axis.units():
            if units.size is not None:
                table.record(units.group, units.size, f"written in the layout of {sized.tensor!r}")
    table.settle()
    if table.axes:
        sized = table.axes[0]
        groups, dots = sized.unknowns(table.sizes)
        ways = [f"sizes={{{name!r}: ...}} or '{name}:SIZE' in the layout" for name in sorted(groups)[:1]]
        ways += ["a number in place of '.'"] if dots else []
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
