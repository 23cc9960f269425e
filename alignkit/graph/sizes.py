"""Sizes of groups and of fixed factors, worked out from the shapes of the tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import prod
from typing import TypeAlias

from alignkit.errors import GraphError, ShapeMismatchError, UndeterminedSizeError
from alignkit.graph.layout import Axis, Factor, Fixed, Layout, Segment, Units, simplified
from alignkit.graph.notation import format_layout

_Place: TypeAlias = tuple[str, int, Axis]


@dataclass
class SizeTable:
    """The sizes of groups found so far, and where each was found."""

    sizes: dict[str, int] = field(default_factory=dict)
    origin: dict[str, str] = field(default_factory=dict)

    def set(self, group: str, size: int, origin: str) -> None:
        """Record a size; a second, different one is an error that names both places."""
        known = self.sizes.setdefault(group, size)
        self.origin.setdefault(group, origin)
        if known != size:
            raise ShapeMismatchError(
                f"group {group!r} has {known} units ({self.origin[group]}) but {size} ({origin}). If a flatten stands "
                f"between them, say how many positions each unit owns: "
                f"'({group} {max(known, size) // min(known, size)})'."
            )


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
    table = SizeTable()
    if not isinstance(given, Mapping):
        raise GraphError(f"sizes: a mapping from groups to whole numbers is needed, found {type(given).__name__}.")
    for group, size in given.items():
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise GraphError(f"sizes: group {group!r} needs a positive whole number, found {size!r}.")
        table.set(group, size, "given in sizes")
    for tensor, layout in layouts.items():
        for axis in layout:
            for unit in axis.units():
                if unit.size is not None:
                    table.set(unit.group, unit.size, f"written in the layout of {tensor!r}")
    if left := _settle(_all_axes(layouts), shapes, table):
        raise _undetermined(*left[0], shapes, table)
    filled = {
        t: tuple(_fill(axis, shapes[t][i], table.sizes) for i, axis in enumerate(layout))
        for t, layout in layouts.items()
    }
    return filled, table.sizes


def open_sizes(
    layouts: Mapping[str, Layout], shapes: Mapping[str, tuple[int, ...]], sizes: Mapping[str, int]
) -> dict[str, int]:
    """The sizes that have to be written for the others to follow from the shapes.

    Args:
        layouts: Layout of each tensor, without sizes of groups.
        shapes: Shape of each of these tensors.
        sizes: Size of every group. Where several would do, the first in this order is chosen.
    """
    table, written = SizeTable(), dict[str, int]()
    left = _settle(_all_axes(layouts), shapes, table)
    while left:
        groups, _ = _unknowns(left[0][2], table.sizes)
        name = next(name for name in sizes if name in groups)
        written[name] = sizes[name]
        table.set(name, sizes[name], "known")
        left = _settle(left, shapes, table)
    return written


def _all_axes(layouts: Mapping[str, Layout]) -> list[_Place]:
    return [(tensor, index, axis) for tensor, layout in layouts.items() for index, axis in enumerate(layout)]


def _settle(places: list[_Place], shapes: Mapping[str, tuple[int, ...]], table: SizeTable) -> list[_Place]:
    """Use axes one after the other until none tells anything new; those that are still open come back."""
    while True:
        left = [(t, i, axis) for t, i, axis in places if not _solve_axis(t, i, axis, shapes[t][i], table)]
        if len(left) == len(places):
            return left
        places = left


def _unknowns(axis: Axis, sizes: Mapping[str, int]) -> tuple[set[str], int]:
    groups: set[str] = set()
    dots = 0
    for segment in axis.segments:
        for factor in segment.factors:
            if isinstance(factor, Axis):
                inner, more = _unknowns(factor, sizes)
                groups |= inner
                dots += more
            elif isinstance(factor, Units):
                groups |= set() if factor.group in sizes else {factor.group}
            else:
                dots += factor.size is None
    return groups, dots


def _total(axis: Axis, sizes: Mapping[str, int], unknown: int) -> int:
    """Size of the axis when whatever is not known has the size ``unknown``."""

    def one(factor: Factor) -> int:
        if isinstance(factor, Axis):
            return _total(factor, sizes, unknown)
        known = sizes.get(factor.group) if isinstance(factor, Units) else factor.size
        return unknown if known is None else known

    return sum(prod(one(f) for f in segment.factors) for segment in axis.segments)


def _solve_axis(tensor: str, index: int, axis: Axis, size: int, table: SizeTable) -> bool:
    """Use one axis; True when nothing about it is left open."""
    groups, dots = _unknowns(axis, table.sizes)
    if len(groups) + dots > 1:
        return False
    # Only an axis that is all '.' may have no positions: '.' beside groups stands for at least one.
    found = _solve_size(axis, size, table.sizes, smallest=1 if groups or (dots and not axis.is_fixed) else 0)
    if found is None:
        raise ShapeMismatchError(_mismatch(tensor, index, axis, size, groups, table))
    if groups:
        table.set(groups.pop(), found, f"tensor {tensor!r}, axis {index}")
    return True


def _solve_size(axis: Axis, size: int, sizes: Mapping[str, int], smallest: int = 0) -> int | None:
    """The unknown size that makes the axis ``size`` long; the total grows with it, so bisection finds it."""
    low, high = smallest, max(size, smallest)
    while low < high:
        middle = (low + high) // 2
        if _total(axis, sizes, middle) < size:
            low = middle + 1
        else:
            high = middle
    return low if _total(axis, sizes, low) == size else None


def _fill(axis: Axis, size: int, sizes: Mapping[str, int]) -> Axis:
    # At most one '.' is left at this point, and every group is known.
    dot = _solve_size(axis, size, sizes)

    def fill(factor: Factor) -> Factor:
        if isinstance(factor, Axis):
            return Axis(tuple(Segment(tuple(map(fill, s.factors))) for s in factor.segments))
        if isinstance(factor, Units):
            return replace(factor, size=sizes[factor.group])
        return Fixed(dot if factor.size is None else factor.size)

    return simplified(Axis(tuple(Segment(tuple(map(fill, s.factors))) for s in axis.segments)))


def _describe(axis: Axis, sizes: Mapping[str, int]) -> str:
    named = [f"{u.group} = {sizes[u.group]}" for u in axis.units() if u.group in sizes]
    return f" with {', '.join(dict.fromkeys(named))}" if named else ""


def _mismatch(tensor: str, index: int, axis: Axis, size: int, open_groups: set[str], table: SizeTable) -> str:
    text = format_layout((axis,))
    if open_groups:
        return (
            f"tensor {tensor!r}, axis {index}: no whole size of group {min(open_groups)!r} makes {text!r} "
            f"{size} long{_describe(axis, table.sizes)}. Check the layout against the shape."
        )
    places = [f"{u.group!r} from {table.origin[u.group]}" for u in axis.units()]
    found = _total(axis, table.sizes, 1)
    hint = ""
    groups = list(dict.fromkeys(u.group for u in axis.units()))
    if len(groups) == 1 and found and size and size % found == 0:
        hint = (
            f" Is a flatten between them? Then say how many positions each unit owns: '({groups[0]} {size // found})'."
        )
    elif len(groups) == 1 and size > 1 and found % size == 0 and table.origin[groups[0]].startswith("tensor"):
        where = table.origin[groups[0]]
        hint = f" Is a flatten between them? Then write '({groups[0]} {found // size})' for {where}."
    return (
        f"tensor {tensor!r}, axis {index} has size {size}, but {text!r} makes {found}{_describe(axis, table.sizes)}"
        f"{' (' + ', '.join(dict.fromkeys(places)) + ')' if places else ''}.{hint}"
    )


def _undetermined(
    tensor: str, index: int, axis: Axis, shapes: Mapping[str, tuple[int, ...]], table: SizeTable
) -> UndeterminedSizeError:
    groups, dots = _unknowns(axis, table.sizes)
    ways = [f"sizes={{{name!r}: ...}} or '{name}:SIZE' in the layout" for name in sorted(groups)[:1]]
    ways += ["a number in place of '.'"] if dots else []
    return UndeterminedSizeError(
        f"tensor {tensor!r}, axis {index}: {format_layout((axis,))!r} must make {shapes[tensor][index]}, which "
        f"leaves the size of {', '.join(map(repr, sorted(groups))) or '.'} open. Give {' or '.join(ways)}.",
        tuple(sorted(groups)),
    )
