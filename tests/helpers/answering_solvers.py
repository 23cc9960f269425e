"""Solvers that swap two units, fail, or give any answer; and a plugin that offers them."""

from __future__ import annotations

import torch
from pydantic import Field

from alignkit.graph.elements.alignment import Alignment
from alignkit.plugins.hookspecs import hookimpl
from alignkit.solver import Outcome, Solver, SolverOptions, Step


class SwapOptions(SolverOptions):
    swaps: int = Field(3, ge=0)
    """How many pairs of units to exchange."""


class Swaps(Solver[SwapOptions]):
    """Exchange random pairs of units of the first group: a solver whose every move can be told."""

    name = "swaps"

    def solve(self, problem, report):
        elements = {name: element.clone() for name, element in problem.start.elements.items()}
        generator = problem.generator()
        for i in range(self.options.swaps):
            element = next(iter(elements.values()))
            two = torch.randperm(len(element), generator=generator)[:2]
            element[two] = element[two.flip(0)]
            report(Step(i + 1, float(-i), "swapped"))
        return Outcome(Alignment(problem.graph, elements), stats={"swaps": float(self.options.swaps)})


class Fails(Solver[SolverOptions]):
    name = "fails"
    error: Exception = RuntimeError("the matrix is singular")

    def solve(self, problem, report):
        report(Step(1, 1.0))
        raise self.error


class Answers(Solver[SolverOptions]):
    """Hands back whatever the test wants."""

    name = "answers"

    def __init__(self, answer):
        super().__init__()
        self.answer = answer

    def solve(self, problem, report):
        return self.answer(problem) if callable(self.answer) else self.answer


class Offers:
    def __init__(self, *classes):
        self.classes = classes

    @hookimpl
    def alignkit_register_solvers(self):
        return self.classes
