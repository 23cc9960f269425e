"""A package that adds to alignkit: delete the hooks that you do not need."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch
from pydantic import Field
from torch import nn

import alignkit
from alignkit import Alignment, Outcome, Problem, Solution, Solver, SolverOptions, Step
from alignkit.errors import UsageError
from alignkit.plugins.hookspecs import ModelSource
from alignkit.solver import Report
from alignkit.tracing import Call, Labels, Rule

log = logging.getLogger("alignkit_mine")

# ---------------------------------------------------------------------- a solver


class MySolverOptions(SolverOptions):
    """Options of my solver."""

    tries: int = Field(10, ge=1)
    """How many random orders are tried."""


class MySolver(Solver[MySolverOptions]):
    """Keep the best of some random orders."""

    name = "my_solver"

    def solve(self, problem: Problem, report: Report) -> Outcome:
        """Compare by the squared distance; what the caller starts from is one of the orders."""
        best, distance = problem.start, problem.objective.distance2(problem.start)
        for step in range(1, self.options.tries + 1):
            order = Alignment.random(problem.graph, seed=problem.seed + step)
            candidate = problem.objective.distance2(order)
            if candidate < distance:
                best, distance = order, candidate
            report(Step(step, distance, alignment=best))
        return Outcome(best)


@alignkit.hookimpl
def alignkit_register_solvers() -> list[type[MySolver]]:
    """Offer solvers, as classes."""
    return [MySolver]


# ---------------------------------------------------------------------- a rule for tracing


def scaled(call: Call) -> Labels:
    """``mine::scaled(x, factor)`` multiplies all elements by one number, so they stay where they are."""
    return call.labels("x")


@alignkit.hookimpl
def alignkit_register_trace_rules() -> Mapping[str, Rule]:
    """Offer rules for operators that tracing does not know, by the operator's name."""
    return {"mine::scaled": scaled}


# ---------------------------------------------------------------------- a source of models


def small_mlp(width: str) -> tuple[nn.Module, tuple[Any, ...], dict[str, Any]]:
    """``alignkit trace mine:32``: an MLP of that width, with the arguments and keywords of an example call."""
    if not width.isdecimal() or width == "0":
        raise UsageError(f"mine:{width}: write mine:WIDTH, for example mine:32.")
    n = int(width)
    model = nn.Sequential(nn.Linear(4, n), nn.ReLU(), nn.Linear(n, 3))
    return model, (torch.zeros(1, 4),), {}


@alignkit.hookimpl
def alignkit_register_model_sources() -> Mapping[str, ModelSource]:
    """Offer ways to name a model on the command line."""
    return {"mine": small_mlp}


# ---------------------------------------------------------------------- an observer


@alignkit.hookimpl
def alignkit_solve_started(solver: Solver[Any]) -> None:
    """Watch a solver start."""
    log.debug("%s starts", solver.name)


@alignkit.hookimpl
def alignkit_solve_step(step: Step) -> None:
    """Watch one step of it."""
    log.debug("step %d: %g", step.iteration, step.objective)


@alignkit.hookimpl
def alignkit_solve_finished(solution: Solution | None) -> None:
    """Watch it end; None if it was interrupted twice."""
    log.debug("ends: %s", solution.status.name if solution else "interrupted")
