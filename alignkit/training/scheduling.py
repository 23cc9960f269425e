"""The schedule of a domain aligner: rounds, steps and their sizes, chosen on held-out pairs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from alignkit.deepalign import Aligner
from alignkit.deepalign.aligner import Schedule
from alignkit.training.held_out import HeldOut

WORTH = 0.98
"""Ratio of barriers below which another schedule is chosen: what is nearer to 1 is the noise of some pairs."""


def choose_schedule(aligner: Aligner, held_out: HeldOut) -> tuple[float, tuple[float, ...]]:
    """Give an aligner the schedule with the lowest barriers on held-out pairs, changing one number after the other.

    Returns:
        What `HeldOut.measure` returns for it.
    """
    best = aligner.schedule
    measured = held_out.measure(aligner, best)
    for name in Schedule.__dataclass_fields__:
        for other in _neighbours(best, name):
            again = held_out.measure(aligner, other)
            if again[0] < WORTH * measured[0]:
                best, measured = other, again
    aligner.schedule = best
    return measured


def _neighbours(schedule: Schedule, name: str) -> Iterator[Schedule]:
    """Yield schedules in which one number is smaller or larger."""
    match name:
        case "rounds":
            yield from (replace(schedule, rounds=max(1, schedule.rounds + more)) for more in (-1, 1))
        case "sharpness":
            yield from (replace(schedule, sharpness=schedule.sharpness * factor) for factor in (2 / 3, 1.5))
        case "carry_over":
            yield from (replace(schedule, carry_over=schedule.carry_over * factor) for factor in (0.5, 2.0))
        case "steps":
            yield from (replace(schedule, steps=steps) for steps in (schedule.steps // 2, 2 * schedule.steps))
        case _:
            yield from (replace(schedule, rate=schedule.rate * factor) for factor in (2 / 3, 1.5))
