"""Signs of which some mentions of a unit are free and others not, written as families.

The candidate gate of an LSTM is an odd function of its row, and its other gates are none. So a unit of the state may
change its sign with the row of the candidate gate and with all columns that read the state, while the rows of the other
gates stay. In the notation each unit owns a family of one unit with a sign: ``"h+h+(h -h.sign[h])+h (h -h.sign[h])"``.
A mention of ``h`` alone has no sign. A unit that is a product of two odd functions has two signs, and what reads it has
both: ``"(h -h.sign[h] -h.sign2[h])"``. In a stack the units at each place own signs of their own.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from math import prod
from types import MappingProxyType

import numpy as np

from alignkit.graph.layout import Axis, Factor, Fixed, Segment, Units
from alignkit.graph.notation import format_layout, parse_layout
from alignkit.graph.rewrites import AxisOf
from alignkit.tracing.labels.tensor_labels import IntArray


class PartlyOddError(Exception):
    """A mention of a group has signs at some of its positions, which the notation cannot say."""


def add_sign_families(
    layouts: Mapping[str, str],
    sizes: Mapping[str, int],
    shapes: Mapping[str, tuple[int, ...]],
    signs: Mapping[str, Iterable[Collection[AxisOf]]],
    lone: Mapping[str, str] = MappingProxyType({}),
) -> tuple[dict[str, str], dict[str, int], set[str]]:
    """Write families of signs into the notation of tensors.

    Args:
        layouts: The notation of each tensor.
        sizes: The sizes of groups and stacks.
        shapes: The shape of each tensor.
        signs: For some groups, or groups of a stack, the positions at which their units may change each of their signs.
        lone: Groups at one place of a stack that a tensor mentions by themselves, with the name of those of the stack.

    Returns:
        The notation, the sizes, and groups of which a sign cannot be written, which is left out.
    """
    written, known, unwritten = dict(layouts), dict(sizes), set()
    for group, places_of_signs in signs.items():
        for number, places in reversed([*enumerate(places_of_signs)]):  # each is written in front of those before
            sign = _free_name(f"{group}.sign{number + 1 if number else ''}", {*layouts, *known})
            names = {group: sign} | {name: sign + name[len(group) :] for name, own in lone.items() if own == group}
            odd = _odd_positions(places, shapes)
            try:
                changed = {
                    name: " ".join(
                        format_layout((_with_signs(axis, odd[name, at], names, known) if (name, at) in odd else axis,))
                        for at, axis in enumerate(parse_layout(written[name], name))
                    )
                    for name in dict.fromkeys(name for name, _ in odd)
                }
            except PartlyOddError:
                unwritten.add(group)
                continue
            written |= changed
            mentioned = {sign for owner, sign in names.items() for x in changed.values() if f"-{sign}[{owner}]" in x}
            known |= dict.fromkeys(mentioned, 1)
    return written, known, unwritten


def _free_name(name: str, taken: Collection[str]) -> str:
    """Return a name that nothing has, and nothing continues."""
    number, free = 2, name
    while any(f"{other}.".startswith(f"{free}.") for other in taken):
        free, number = f"{name}.{number}", number + 1
    return free


def _odd_positions(places: Iterable[AxisOf], shapes: Mapping[str, tuple[int, ...]]) -> dict[tuple[str, int], IntArray]:
    """Return for some axes, by tensor and number, which of their positions some places name."""
    odd: dict[tuple[str, int], IntArray] = {}
    for place in places:
        mask = odd.setdefault((place.tensor, place.axis), np.zeros(shapes[place.tensor][place.axis], np.int64))
        mask[list(place.positions(shapes))] = 1
    return odd


def _with_signs(axis: Axis, odd: IntArray, signs: Mapping[str, str], sizes: Mapping[str, int]) -> Axis:
    """Return an axis in which each mention of some groups at odd positions owns a sign."""
    segments, start = [], 0
    for segment in axis.segments:
        counts = [_size(factor, sizes) for factor in segment.factors]
        own = odd[start : start + prod(counts)].reshape(counts)
        start += prod(counts)
        factors: list[Factor] = []
        for at, factor in enumerate(segment.factors):
            if isinstance(factor, Axis):
                rows = np.moveaxis(own, at, -1).reshape(-1, counts[at])
                if (rows != rows[0]).any():
                    raise PartlyOddError
                factor = _with_signs(factor, rows[0], signs, sizes)
            factors.append(factor)
            if isinstance(factor, Units) and factor.group in signs and own.any():
                if not own.all():
                    raise PartlyOddError
                factors.append(Units(signs[factor.group], factor.group, None, "signed"))
        segments.append(Segment(tuple(factors)))
    return Axis(tuple(segments))


def _size(factor: Factor, sizes: Mapping[str, int]) -> int:
    if isinstance(factor, Axis):
        return sum(prod(_size(inner, sizes) for inner in segment.factors) for segment in factor.segments)
    size = factor.size if isinstance(factor, Fixed) else sizes[factor.group]
    assert size is not None, "sizes of axes that move are written"
    return size
