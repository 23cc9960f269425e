"""Scales of units that a tensor writes and reads at once, such as the state of a recurrent layer.

Scales ``s`` bring its element between units ``i`` and ``j`` to ``s_i W_ij / s_j``. Those that make the sum of squares
of all weights the least are unique: in the logarithms of the scales it is a convex function. Source: Osborne, "On
pre-conditioning of matrices", 1960, which balances a matrix alone.
"""

from __future__ import annotations

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

Units = Float[Tensor, " units"]


def recurrent_scales(written: Units, read: Units, between: Float[Tensor, "units units"]) -> tuple[Units, int]:
    """Find the scales that make a sum of squares the least: ``s^2 written + read / s^2 + s_i^2 between_ij / s_j^2``.

    Args:
        written: Sum of squares of what else writes each unit.
        read: Sum of squares of what else reads it.
        between: Squares of what units (rows) read of units (columns), summed over all else.

    Returns:
        A scale for each unit, 0 where nothing from outside reaches a unit or no unit outside depends on it; and the
        number of these.
    """
    between = between - between.diagonal().diag()
    full = _reached(written > 0, between > 0) & _reached(read > 0, between.T > 0)
    used = full.nonzero().flatten()
    written, read, between = written[used], read[used], between[used][:, used]
    logarithms = torch.zeros_like(written)
    value = _value(logarithms, written, read, between)
    for _ in range(MAX_STEPS if len(used) else 0):
        grown, shrunk = written * (2 * logarithms).exp(), read * (-2 * logarithms).exp()
        scaled = between * (2 * (logarithms[:, None] - logarithms)).exp()
        slope = grown - shrunk + scaled.sum(1) - scaled.sum(0)
        curvature = grown + shrunk + scaled.sum(1) + scaled.sum(0)
        bent = (curvature + RIDGE * curvature.max()).diag() - scaled - scaled.T
        step = -torch.linalg.solve(bent, slope) / 2
        step = step / step.abs().max().clamp(min=1.0)
        while (new := _value(logarithms + step, written, read, between)) > value and float(step.abs().max()) > NEAR:
            step = step / 2
        logarithms, value = logarithms + step, new
        if float(step.abs().max()) <= SETTLED:
            break
    scales = torch.zeros(len(full), dtype=logarithms.dtype, device=logarithms.device)
    scales[used] = logarithms.exp()
    return scales, int((~full).sum())


def _value(logarithms: Units, written: Units, read: Units, between: Tensor) -> float:
    squares = written * (2 * logarithms).exp() + read * (-2 * logarithms).exp()
    return float(squares.sum() + (between * (2 * (logarithms[:, None] - logarithms)).exp()).sum())


def _reached(start: Bool[Tensor, " units"], reads: Bool[Tensor, "units units"]) -> Bool[Tensor, " units"]:
    """Return the units that are reached from some of them, in any number of steps from columns to rows."""
    reached = start
    while bool((further := reached | (reads & reached).any(1)).ne(reached).any()):
        reached = further
    return reached
