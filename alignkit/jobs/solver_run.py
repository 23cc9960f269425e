"""One run of one solver: called with its own copies, its answer checked, its result accounted for."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from time import perf_counter
from typing import Any

from alignkit.errors import AlignkitError, SolverError
from alignkit.plugins import PluginWarning
from alignkit.plugins.plugin_registry import Registry
from alignkit.process_state import EVERYTHING, switched_by, watched_state
from alignkit.solver import Outcome, Problem, Report, Solver, Status, Step
from alignkit.solver.outcome_check import WriteGuard, checked_outcome, checked_step
from alignkit.solver.solution import Solution
from alignkit.text import describe_error, explain_error


def run_solver(problem: Problem, solver: Solver[Any], registry: Registry, *, throw: bool = True) -> Solution:
    """Run one solver on a problem, watched by the registry's observers, and account for the result. See `solve`."""
    history: list[Step] = []
    best: list[Step] = []  # the last is the one to return on Ctrl-C
    # What the solver and the account both need is computed once, and sums are checked.
    problem.objective.scale, problem.start  # noqa: B018
    # Taken before the solver can write to the networks.
    at_start = problem.objective.unaligned if problem.init is None else problem.objective.distances2(problem.init)
    guard, options, name = WriteGuard(problem), plain_options(solver), solver.name
    # What the solver and the observers do to their problem and its objective has no say in the account.
    handed, shown = copy.copy(problem), copy.copy(problem)
    for copied in (handed, shown):
        copied.__dict__["objective"] = copy.copy(problem.objective)

    def report(step: Step) -> None:
        history.append(checked_step(step, f"solver {name!r}"))
        if step.alignment is not None and (not best or step.objective <= best[-1].objective):
            best[:] = [step]
        told = replace(history[-1], alignment=step.alignment)
        registry.notify("alignkit_solve_step", problem=shown, solver=solver, step=told)

    solution: Solution | None = None
    registry.notify("alignkit_solve_started", problem=shown, solver=solver)
    try:
        started = perf_counter()
        try:
            outcome, detail, cause = _call_solver(solver, handed, report)
        except KeyboardInterrupt as interrupt:  # a second one ends the solve at once
            outcome, detail, cause = _interrupted(interrupt, problem, best)
        seconds = perf_counter() - started
        if written := guard.fault():
            status = outcome.status if outcome.status.failed else Status.INVALID
            outcome, detail = Outcome(problem.start, status), f"{detail} {written}".lstrip()
        solution = account(problem, name, options, outcome, at_start, tuple(history), seconds, detail)
    finally:  # also on a second Ctrl-C, so that a progress bar can be closed
        registry.notify("alignkit_solve_finished", problem=shown, solver=solver, solution=solution)
    if throw and solution.status.failed:
        if isinstance(cause, AlignkitError):
            raise cause
        parts = (f"solver {name!r} failed.", solution.status.value, detail, registry.origin(solver))
        raise SolverError(" ".join(part for part in parts if part)) from cause
    return solution


def _call_solver(solver: Solver[Any], problem: Problem, report: Report) -> tuple[Outcome, str, BaseException | None]:
    """Call a solver, and check what it returns.

    Returns:
        The outcome; what the solver did wrong, in a sentence, or ""; and the exception that it raised. Whatever
        happened, the outcome holds an alignment of the right graph.
    """
    start = problem.start
    # A solver that asks for sums over weights alone runs neither models nor a task.
    settings = EVERYTHING if solver.needs.in_memory or problem.task is not None else switched_by(type(solver))
    try:
        with watched_state(f"solver {solver.name!r}, or the task that it ran,", settings):
            answer = solver.solve(problem, report)
    except (KeyboardInterrupt, PluginWarning):  # Ctrl-C; and a warning about a plugin, where warnings are errors
        raise
    except SystemExit as error:  # a script turned into a solver
        return Outcome(start, Status.FAILED), f"It called exit({error.code!r}).", None
    except BaseException as error:  # solvers may be third-party code, which panics too
        return Outcome(start, Status.FAILED), f"{describe_error(error).rstrip('.')}.", error
    try:
        return checked_outcome(answer, start.graph), "", None
    except Exception as error:  # of a class of its own, whose properties raise
        return Outcome(start, Status.INVALID), explain_error(error), None


def _interrupted(
    interrupt: KeyboardInterrupt, problem: Problem, best: Sequence[Step]
) -> tuple[Outcome, str, BaseException | None]:
    """Return what comes of a solver that Ctrl-C has ended: the alignment of its best step, or where it started."""
    alignment = best[-1].alignment if best else problem.start
    assert alignment is not None, "only steps with an alignment are kept"
    try:
        outcome = checked_outcome(Outcome(alignment, Status.INTERRUPTED), problem.start.graph)
    except SolverError as error:
        return Outcome(problem.start, Status.INTERRUPTED), explain_error(error), None
    return outcome, " ".join(getattr(interrupt, "__notes__", [])), None


def plain_options(solver: Solver[Any]) -> dict[str, Any]:
    """Return the options of a solver as plain values, as files hold them; `SolverError` where they are not plain."""
    try:
        return dict(solver.options.model_dump(mode="json"))
    except Exception as error:  # a field of a class of its own, or an __init__ that sets no options
        reason = f"its options cannot be saved: {describe_error(error)}"
        raise SolverError(f"solver {solver.name!r} cannot be used, {reason}") from error


def account(
    problem: Problem,
    solver: str,
    options: Mapping[str, Any],
    outcome: Outcome,
    at_start: Mapping[str, float],
    history: tuple[Step, ...],
    seconds: float,
    detail: str,
) -> Solution:
    """Return the solution that an outcome amounts to; ``at_start`` are the distances where the solver started."""
    objective, before = problem.objective, problem.objective.unaligned
    after = at_start if outcome.alignment == problem.start else objective.distances2(outcome.alignment)
    facts = {"options": {**options, "seed": problem.seed}, "history": history, "seconds": seconds, "detail": detail}
    return accounted(outcome, before, after, objective_init=sum(at_start.values()), solver=solver, **facts)


def accounted(outcome: Outcome, before: Mapping[str, float], after: Mapping[str, float], **facts: Any) -> Solution:
    """Return the solution of an outcome, from the distances of each tensor; ``facts`` are further fields of it."""
    alignment = outcome.alignment
    # The gain of every tensor is shared equally among the groups that act on it and moved.
    gain, moved = dict.fromkeys(alignment.graph.groups, 0.0), alignment.moved()
    for name, node in alignment.graph.tensors.items():
        movers = [group for group in node.groups if moved[group]]
        for group in movers:
            gain[group] += (before[name] - after[name]) / len(movers)
    return Solution(
        alignment=alignment,
        status=outcome.status,
        objective_before=sum(before.values()),
        objective_after=sum(after.values()),
        gain=gain,
        moved=moved,
        stats=outcome.stats,
        notes=outcome.notes,
        soft=outcome.soft,
        **facts,
    )
