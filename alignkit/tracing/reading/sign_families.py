"""Signs of which some mentions of a unit are free and others not, written as families.

The candidate gate of an LSTM is an odd function of its row, and its other gates are none. So a unit of the state may
change its sign with the row of the candidate gate and with all columns that read the state, while the rows of the other
gates stay. In the notation each unit owns a family of one unit with a sign: ``"h+h+(h -h.sign[h])+h (h -h.sign[h])"``.
A mention of ``h`` alone has no sign.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from math import prod

import numpy as np

from alignkit.graph.layout import Axis, Factor, Fixed, Segment, Units
from alignkit.graph.notation import format_layout, parse_layout
from alignkit.graph.rewrites import AxisOf
from alignkit.tracing.labels.tensor_labels import IntArray

SUFFIX = ".sign"


def sign_name(group: str) -> str:
    """Return the name of the family of signs that the units of a group own."""
    return group + SUFFIX


class PartlyOddError(Exception):
    """A mention of a group has signs at some of its positions, which the notation cannot say."""


def add_sign_families(
    layouts: Mapping[str, str],
    sizes: Mapping[str, int],
    shapes: Mapping[str, tuple[int, ...]],
    signs: Mapping[str, Collection[AxisOf]],
) -> tuple[dict[str, str], dict[str, int]]:
    """Write families of signs into the notation of tensors.

    Args:
        layouts: The notation of each tensor.
        sizes: The sizes of groups and stacks.
        shapes: The shape of each tensor.
        signs: For some groups the positions at which their units may change signs.

    Returns:
        The notation, and the sizes. A group whose signs cannot be written has none.
    """
    written, known = dict(layouts), dict(sizes)
    for group, places in signs.items():
        odd = _odd_positions(places, shapes)
        try:
            changed = {
                name: " ".join(
                    format_layout((_with_signs(axis, odd[name, at], group, known) if (name, at) in odd else axis,))
                    for at, axis in enumerate(parse_layout(written[name], name))
                )
                for name in dict.fromkeys(name for name, _ in odd)
            }
        except PartlyOddError:
            continue
        written |= changed
        known[sign_name(group)] = 1
    return written, known


def _odd_positions(places: Iterable[AxisOf], shapes: Mapping[str, tuple[int, ...]]) -> dict[tuple[str, int], IntArray]:
    """Return for some axes, by tensor and number, which of their positions some places name."""
    odd: dict[tuple[str, int], IntArray] = {}
    for place in places:
        mask = odd.setdefault((place.tensor, place.axis), np.zeros(shapes[place.tensor][place.axis], np.int64))
        mask[list(place.positions(shapes))] = 1
    return odd


def _with_signs(axis: Axis, odd: IntArray, group: str, sizes: Mapping[str, int]) -> Axis:
    """Return an axis in which each mention of a group at odd positions owns a sign."""
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
                factor = _with_signs(factor, rows[0], group, sizes)
            factors.append(factor)
            if isinstance(factor, Units) and factor.group == group and own.any():
                if not own.all():
                    raise PartlyOddError
                factors.append(Units(sign_name(group), group, None, "signed"))
        segments.append(Segment(tuple(factors)))
    return Axis(tuple(segments))


def _size(factor: Factor, sizes: Mapping[str, int]) -> int:
    if isinstance(factor, Axis):
        return sum(prod(_size(inner, sizes) for inner in segment.factors) for segment in factor.segments)
    size = factor.size if isinstance(factor, Fixed) else sizes[factor.group]
    assert size is not None, "sizes of axes that move are written"
    return size
