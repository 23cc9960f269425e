"""Signs of units where factors may have any: chosen such that copies of a network get the same.

A factor of -1 may move between the two sides of a balanced space. What tells its sign is a number of each unit that
changes its own sign with it, and that no other symmetry of the network changes: how far what writes a unit goes with
what else the unit has, such as the up branch of a gated MLP with its gate, or the weights of the unit along axes that
are fixed, such as a vector of scales. Spaces that share a group may flip the same weights, so that signs are solved for
together: linear equations modulo 2.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple, TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor

from alignkit.graph.structure import GraphStructure
from alignkit.graph.uses import Use
from alignkit.rewriting.wide import WideWeights

Sides: TypeAlias = tuple[Sequence[Use], Sequence[Use]]
"""What writes a space, and what reads it."""
Place: TypeAlias = tuple[str, tuple[int, ...], int]


class _Evidence(NamedTuple):
    """A number for each unit, and for each space whether a factor of -1 changes its sign."""

    flips: tuple[bool, ...]
    value: Float[Tensor, "instances units"]


def unit_signs(
    weights: WideWeights, graph: GraphStructure, group: str, spaces: Sequence[Sides]
) -> list[Float[Tensor, "instances units"]]:
    """Return the signs that some spaces of one group get, which make evidence of their units positive.

    Where nothing tells the sign of a space, it is 1.

    Args:
        weights: The weights of the network.
        graph: The graph of the network.
        group: The group of the spaces. Its units have no sign of their own at what tells.
        spaces: Both sides of each space whose factors may be negative.
    """
    shape = graph.instances(group), graph.groups[group].size
    pivots: dict[int, tuple[list[bool], Int[Tensor, "instances units"]]] = {}
    for flips, value in _evidence(weights, graph, group, spaces):
        row, negative = list(flips), (value < 0).long().cpu()
        for lead, (known, bits) in pivots.items():
            if row[lead]:
                row, negative = [a != b for a, b in zip(row, known, strict=True)], negative ^ bits
        if any(row):
            lead = row.index(True)
            for other, (known, bits) in list(pivots.items()):
                if known[lead]:
                    pivots[other] = ([a != b for a, b in zip(known, row, strict=True)], bits ^ negative)
            pivots[lead] = (row, negative)
    zero = torch.zeros(shape, dtype=torch.int64)
    return [1.0 - 2.0 * (pivots[at][1] if at in pivots else zero).double() for at in range(len(spaces))]


def _evidence(weights: WideWeights, graph: GraphStructure, group: str, spaces: Sequence[Sides]) -> Iterator[_Evidence]:
    """Yield what tells signs, the best first: agreement, then weights that the fewest spaces flip."""
    flipped = [{_place_of(use) for side in sides for use in side} for sides in spaces]
    blocks = Counter(place[:2] for place in set().union(*flipped))
    others = [use for use in graph.uses[group] if _place_of(use)[:2] not in blocks]
    for writes, _ in spaces:
        by_flips: dict[tuple[bool, ...], Tensor] = {}
        # What stands between units of one space changes with the signs of others, and tells nothing.
        for use in (use for use in writes if blocks[_place_of(use)[:2]] == 1):
            for other in (other for other in others if _beside(other) == _beside(use)):
                flips = tuple(_place_of(use) in places for places in flipped)
                product = (_part(weights, use) * _part(weights, other)).sum(-1)
                by_flips[flips] = by_flips[flips] + product if flips in by_flips else product
        yield from (_Evidence(flips, value) for flips, value in by_flips.items())
    uses = {_place_of(use): use for sides in spaces for side in sides for use in side}
    fixed = [use for use in uses.values() if all(use.block.dims[at].group is None for at in use.rest)]
    told = [(tuple(_place_of(use) in places for places in flipped), use) for use in fixed]
    for flips, use in sorted(told, key=lambda pair: sum(pair[0])):
        part = _part(weights, use)
        yield _Evidence(flips, (part * part.abs()).sum(-1))


def _part(weights: WideWeights, use: Use) -> Float[Tensor, "instances units rest"]:
    return use.unfold(use.block.view(weights[use.tensor]))


def _place_of(use: Use) -> Place:
    return use.tensor, use.block.offsets, use.at


def _beside(use: Use) -> list[tuple[str | None, int]]:
    """List the groups and sizes of the other dims of a use: two that have the same hold the same space."""
    return [(use.block.dims[at].group, use.block.dims[at].size) for at in use.rest]
