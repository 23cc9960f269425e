"""The contract of solvers: a problem and options go in, steps are reported, an outcome comes out.

A solver is one class with one method. Everything else (checks, timing, history, objective before and after, saving) is
done by `alignkit.solve` and is the same for all of them::

    class Keep(Solver[SolverOptions]):
        name = "keep"

        def solve(self, problem, report):
            return Outcome(problem.start)
"""

from alignkit.solver.options import IterativeOptions, SolverOptions, Start
from alignkit.solver.outcome import Outcome, Report, Status, Step
from alignkit.solver.problem import Problem
from alignkit.solver.solution import Solution
from alignkit.solver.solver import Needs, Returns, Solver

__all__ = [
    "IterativeOptions",
    "Needs",
    "Outcome",
    "Problem",
    "Report",
    "Returns",
    "Solution",
    "Solver",
    "SolverOptions",
    "Start",
    "Status",
    "Step",
]
