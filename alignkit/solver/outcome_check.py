"""What a solver hands back is checked before it is believed: solvers may be third-party code."""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Integral, Real

from torch import Tensor

from alignkit.errors import AlignmentError, SolverError
from alignkit.graph.elements.alignment import Alignment
from alignkit.graph.owned import ReadOnly
from alignkit.matching.soft_alignment import SoftAlignment
from alignkit.solver.outcome import Outcome, Status, Step
from alignkit.solver.problem import Problem
from alignkit.text import list_some, show_value


def fault(outcome: object, problem: Problem) -> str:
    """Say what is wrong with what a solver returned, as a sentence; "" if nothing is."""
    if not isinstance(outcome, Outcome) or not isinstance(outcome.alignment, Alignment):
        wrong = outcome.alignment if isinstance(outcome, Outcome) else outcome
        return f"Expected an Outcome that holds an Alignment, found {type(wrong).__name__}."
    if outcome.alignment.graph != problem.graph:
        return "The alignment belongs to another graph."
    try:
        Alignment(problem.graph, outcome.alignment.elements)
    except AlignmentError as error:  # a class of its own, which checks nothing
        return f"The alignment is not an element of the symmetry group: {error}"
    if not isinstance(outcome.status, Status):
        return f"The status is {show_value(outcome.status)}, not a Status."
    if not isinstance(outcome.stats, Mapping):
        return f"The stats are {show_value(outcome.stats)}, not a mapping from names to numbers."
    for name, value in outcome.stats.items():
        if not isinstance(name, str) or not isinstance(value, Real):
            return f"The stats map {show_value(name)} to {show_value(value)}, not a name to a number."
    if outcome.soft is not None and not isinstance(outcome.soft, SoftAlignment):
        return f"The soft alignment is {show_value(outcome.soft)}, not a SoftAlignment."
    if outcome.soft is not None and outcome.soft.graph != problem.graph:
        return "The soft alignment belongs to another graph."
    return ""


def check_step(step: object) -> None:
    """Raise a `SolverError`, which ends the solver, for a report that is not a `Step` or has fields of other types."""
    if not isinstance(step, Step):
        raise SolverError(f"the solver reported {show_value(step)}: report(Step(iteration, objective, note)).")
    kinds = ((step.iteration, Integral), (step.objective, Real), (step.note, str))
    if not all(isinstance(value, kind) for value, kind in kinds):
        raise SolverError(f"the solver reported {show_value(step)}: a whole number, a number and a text are needed.")


class WriteGuard:
    """Notices in-place writes to the tensors of a problem, by the counters that torch keeps for autograd.

    Writes that torch does not count, such as those through ``tensor.data`` or numpy, are not noticed. A side
    on disk gives a new tensor at every look: there is nothing to write to.
    """

    def __init__(self, problem: Problem) -> None:
        sides = [(label, side) for label, side in (("A", problem.a), ("B", problem.b)) if isinstance(side, ReadOnly)]
        self._tensors = {f"{name!r} of {label}": tensor for label, side in sides for name, tensor in side.items()}
        self._before = {label: _version(tensor) for label, tensor in self._tensors.items()}

    def fault(self) -> str:
        """Name what was written to, in a sentence; "" if nothing was."""
        written = [label for label, tensor in self._tensors.items() if _version(tensor) != self._before[label]]
        return f"It wrote to tensors that are the caller's own: {list_some(written, 3)}." if written else ""


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version
