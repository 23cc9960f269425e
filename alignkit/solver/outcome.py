"""What a solver tells while it runs and when it ends: steps, a status, an outcome."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import TypeAlias

from alignkit.graph.elements.alignment import Alignment
from alignkit.matching.soft_alignment import SoftAlignment


class Status(Enum):
    """How a solve ended. Each member is the sentence for the user, with what to try next."""

    OK = "The solver finished by its own stopping rule."
    MAX_STEPS = (
        "The alignment still changed when max_steps was reached. Raise max_steps, or start from a cheaper "
        "solver's result: init=alignkit.solve(pair)."
    )
    NONFINITE = (
        "The solver met NaN or inf although the weights are finite. Lower its learning rate, or start from "
        "another solver's result: init=alignkit.solve(pair)."
    )
    INTERRUPTED = "The solver was interrupted. The best alignment that it had found was kept."
    FAILED = "The solver raised an error. The alignment that it started from was kept."
    INVALID = "The solver did what no solver may. The alignment that it started from was kept."

    @property
    def failed(self) -> bool:
        """True if the alignment is not a result of the solver. ``solve`` raises then, unless ``throw=False``."""
        return self in (Status.NONFINITE, Status.FAILED, Status.INVALID)


@dataclass(frozen=True)
class Step:
    """One line of a solver's history."""

    iteration: int
    objective: float
    """The solver's own objective after this step; lower is better."""
    note: str = ""
    alignment: Alignment | None = field(default=None, repr=False, compare=False)
    """What the solver would return if it had to end here. On Ctrl-C `solve` returns that of the lowest objective; the
    history does not keep it."""
    share: float | None = field(default=None, repr=False, compare=False)
    """Part of the whole solve that is done at least, from 0 to 1, where the solver knows it: a progress bar shows what
    is left."""


Report: TypeAlias = Callable[[Step], None]
"""What a solver calls after each step."""


@dataclass(frozen=True)
class Outcome:
    """What a solver hands back."""

    alignment: Alignment
    status: Status = Status.OK
    stats: Mapping[str, float] = field(default_factory=dict)
    """Numbers worth keeping, such as sweeps or restarts."""
    soft: SoftAlignment | None = None
    notes: Mapping[str, str] = field(default_factory=dict)
    """Facts worth keeping that are not numbers, such as which trained weights were used."""
