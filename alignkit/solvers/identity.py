"""The solver that moves nothing: the baseline that every comparison shows first."""

from __future__ import annotations

from alignkit.graph.elements.alignment import Alignment
from alignkit.graph.kinds import KINDS
from alignkit.solver import Needs, Outcome, Problem, Report, Solver, SolverOptions


class Identity(Solver[SolverOptions]):
    """Leave B as it is. Wide networks sometimes merge best unpermuted."""

    name = "identity"
    needs = Needs(in_memory=False)
    kinds = frozenset(KINDS)

    def solve(self, problem: Problem, report: Report) -> Outcome:
        """Return the identity, whatever the start."""
        return Outcome(Alignment.identity(problem.graph))
