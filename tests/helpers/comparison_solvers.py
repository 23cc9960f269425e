"""Solvers that processes of the comparison tests have to import: they need a module of their own."""

from __future__ import annotations

import os
import threading
from pathlib import Path

from pydantic import Field

from alignkit.graph.elements.alignment import Alignment
from alignkit.solver import Outcome, Solver, SolverOptions, Step


class ShuffleOptions(SolverOptions):
    log: str = ""
    """File to which each run adds its seed and its process."""
    hang_at: int = Field(-1)
    """Seed with which the solver never ends."""
    die_at: int = Field(-1)
    """Seed with which the process ends at once, as if it were killed."""


class Shuffle(Solver[ShuffleOptions]):
    """A random order of the units, which tells of every run."""

    name = "shuffle"

    def solve(self, problem, report):
        if self.options.log:
            with Path(self.options.log).open("a") as stream:
                stream.write(f"{problem.seed} {os.getpid()}\n")
        if problem.seed == self.options.hang_at:
            threading.Event().wait()
        if problem.seed == self.options.die_at:
            os._exit(1)
        report(Step(1, 0.0))
        return Outcome(Alignment.random(problem.graph, problem.seed))


class Raises(Solver[SolverOptions]):
    """Always fails."""

    name = "raises"

    def solve(self, problem, report):
        raise RuntimeError("the matrix is singular")
