"""Scales of units between which a tensor stands, such as the recurrent weights of a layer.

Scales ``s`` bring its element between units ``i`` and ``j`` to ``s_i W_ij / s_j`` where it writes and reads the units,
to ``s_i W_ij s_j`` where it only writes them, and to ``W_ij / (s_i s_j)`` where it only reads them. Those that make the
sum of squares of all weights the least are unique: in the logarithms of the scales it is a convex function. Source:
Osborne, "On pre-conditioning of matrices", 1960, which balances a matrix alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

import torch
from jaxtyping import Bool, Float
from torch import Tensor

MAX_STEPS = 200
"""Newton steps; ten are usual, and each brings a scale by a factor of e at most."""
SETTLED = 1e-13
"""A step that changes no logarithm of a scale by more than this is the last."""
NEAR = 1e-5
"""Steps up to this are taken as they are: what they gain is rounding of the sum."""
RIDGE = 1e-14
"""Share of the largest curvature that is added to all: units that only read each other have a common scale."""
WRITES, READS = 1, -1
"""The power of a unit's scale in what writes it, and in what reads it."""

Units = Float[Tensor, " units"]
Between: TypeAlias = Mapping[tuple[int, int], Float[Tensor, "units units"]]
"""Squares of what stands between units, summed over all else; by what it does to those in rows and in columns."""


def recurrent_scales(written: Units, read: Units, between: Between) -> tuple[Units, int]:
    """Find the scales that make a sum of squares the least: ``s^2 written + read / s^2 + s_i^2p s_j^2q between_ij``.

    Args:
        written: Sum of squares of what else writes each unit.
        read: Sum of squares of what else reads it.
        between: Squares of what stands between units, by their powers ``(p, q)``, each `WRITES` or `READS`.

    Returns:
        A scale for each unit, 0 where nothing from outside reaches a unit or no unit outside depends on it; and the
        number of these.
    """
    between = {powers: m - m.diagonal().diag() if sum(powers) == 0 else m for powers, m in between.items()}
    full = _bounded(written > 0, read > 0, between)
    used = full.nonzero().flatten()
    written, read = written[used], read[used]
    between = {powers: squares[used][:, used] for powers, squares in between.items()}
    logarithms = torch.zeros_like(written)
    for _ in range(MAX_STEPS if len(used) else 0):
        value, slope, bent = _sum_of_squares(logarithms, written, read, between)
        bent.diagonal().add_(RIDGE * bent.diagonal().max())
        step = -torch.linalg.solve(bent, slope) / 2
        step = step / step.abs().max().clamp(min=1.0)
        while float(step.abs().max()) > NEAR and _sum_of_squares(logarithms + step, written, read, between)[0] > value:
            step = step / 2
        logarithms = logarithms + step
        if float(step.abs().max()) <= SETTLED:
            break
    scales = torch.zeros(len(full), dtype=logarithms.dtype, device=logarithms.device)
    scales[used] = logarithms.exp()
    return scales, int((~full).sum())


def _sum_of_squares(
    logarithms: Units, written: Units, read: Units, between: Between
) -> tuple[float, Units, Float[Tensor, "units units"]]:
    """Return the sum, half its slope, and a quarter of its second derivative, by logarithms of scales."""
    grown, shrunk = written * (2 * logarithms).exp(), read * (-2 * logarithms).exp()
    value, slope, bent = grown.sum() + shrunk.sum(), grown - shrunk, (grown + shrunk).diag()
    for (row, column), squares in between.items():
        scaled = squares * (2 * (row * logarithms[:, None] + column * logarithms)).exp()
        value = value + scaled.sum()
        slope = slope + row * scaled.sum(1) + column * scaled.sum(0)
        bent = bent + (scaled.sum(1) + scaled.sum(0)).diag() + row * column * (scaled + scaled.T)
    return float(value), slope, bent


def _bounded(written: Bool[Tensor, " units"], read: Bool[Tensor, " units"], between: Between) -> Bool[Tensor, " units"]:
    """Return the units whose scales the squares keep from growing and from vanishing.

    What writes a unit from outside keeps its scale from growing, and what reads it from vanishing. So does what stands
    between it and a unit whose own scale is kept from making up for it.
    """
    kept = {WRITES: written, READS: read}
    sides = [(powers, squares > 0) for powers, squares in between.items()]
    sides += [((column, row), there.T) for (row, column), there in sides]
    while True:
        further = dict(kept)
        for (row, column), there in sides:
            further[row] = further[row] | (there & further[-column]).any(1)
            if row == column:
                further[row] = further[row] | there.diagonal()
        if all(torch.equal(further[power], kept[power]) for power in kept):
            return kept[WRITES] & kept[READS]
        kept = further
