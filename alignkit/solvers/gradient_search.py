"""What solvers that follow gradients share: their options, and a loop that keeps the best alignment on the way.

Gradients need something soft, and a user wants an alignment. So the loop moves a soft state (logits, free weights),
turns it into an alignment now and then, and judges that by a score, such as the loss on samples that stay the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from pydantic import Field
from torch import Tensor

from alignkit.graph.elements.alignment import Alignment
from alignkit.solver import IterativeOptions, Report, Status, Step

StateT = TypeVar("StateT")


HIGHEST_RATE = 1e6
"""Learning rates above this move everything to where float32 has no digits left."""


class GradientOptions(IterativeOptions):
    """Options of solvers that follow gradients; a step follows one."""

    batch_size: int | None = Field(None, ge=1)
    """Samples of the task in a gradient step. None is 256."""
    samples: int | None = Field(None, ge=1)
    """Maximum number of samples of the task to learn from: its first. None is 10,000, and up to 60,000 of samples so
    small that all take no more than 256 MB."""
    score_samples: int = Field(2048, ge=1)
    """Samples on which alignments are compared."""
    check_every: int = Field(10, ge=1)
    """Steps between two alignments that are compared."""
    patience: int = Field(10, ge=1)
    """Stop when this many alignments in a row were not better than the best. A start that was given (``init``, or the
    end of the stage before in a chain) has to be improved on first."""

    def sample_counts(self, batch_size: int) -> tuple[int | None, int, int]:
        """Return how many samples to learn from, in a batch, and to compare on, as `PathLoss` takes them."""
        return self.samples, self.batch_size or batch_size, self.score_samples


def falling(rate: float, fraction: float) -> float:
    """Return what is left of a rate after a fraction of the steps: it falls to 0 along half a cosine."""
    return rate * 0.5 * (1 + math.cos(math.pi * fraction))


@dataclass(frozen=True)
class SearchEnd(Generic[StateT]):
    """Where a search ended: the best alignment, the state that it came from, and how many steps were made."""

    best: Alignment
    state: StateT
    steps: int
    status: Status


def search(
    start: tuple[Alignment, float, StateT],
    descend: Callable[[float], tuple[Tensor, StateT]],
    align: Callable[[StateT], Alignment],
    score: Callable[[Alignment], float],
    options: GradientOptions,
    report: Report,
    *,
    given: bool,
) -> SearchEnd[StateT]:
    """Follow gradients until ``max_steps``, or until ``patience`` alignments in a row were not better.

    Args:
        start: An alignment, its score, and the state that it belongs to.
        descend: Makes one step, given the fraction of steps made; returns the loss before it, and the state before it.
            Losses on the CPU are looked at in every step, those on another device at every look at an alignment, so
            that the device is not waited for.
        align: Turns a state into an alignment.
        score: What alignments are compared by; lower is better.
        options: When to stop and how often to look.
        report: Called with the best score after each look.
        given: Whether the start was given and not chosen by the solver. Such a start is good by another measure than
            the score, as a rule, so that it takes steps to get ahead of it; patience begins after that.
    """
    best, best_score, best_state = start
    steps = idle = 0
    improved, patient = False, given
    losses: list[Tensor] = []
    """Those of the last steps that were not looked at yet."""
    while steps < options.max_steps and (patient or idle < options.patience):
        loss, state = descend(steps / options.max_steps)
        losses.append(loss.detach().reshape(()))
        steps += 1
        looks = steps % options.check_every == 0 or steps == options.max_steps
        if looks or loss.device.type == "cpu":
            values = torch.stack(losses).cpu().tolist()
            losses.clear()
            if not all(map(math.isfinite, values)):
                first = next(at for at, value in enumerate(values) if not math.isfinite(value))
                return SearchEnd(best, best_state, steps - len(values) + first, Status.NONFINITE)
        if looks:
            alignment = align(state)
            now = score(alignment)
            improved = now < best_score
            idle = 0 if improved else idle + 1
            if improved:
                best, best_score, best_state, patient = alignment, now, state, False
            note = f"loss {values[-1]:.6g}, score {now:.6g}"
            report(Step(steps, best_score, note, best, steps / options.max_steps))
    return SearchEnd(best, best_state, steps, Status.MAX_STEPS if improved else Status.OK)
