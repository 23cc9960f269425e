"""`solve`: the front door. Checks once, runs one solver or a chain, and accounts for the result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from time import perf_counter
from typing import Any, TypeAlias

import torch

from alignkit.errors import AlignkitError, AlignmentError, SolverError
from alignkit.graph import Pair, SymmetryGraph
from alignkit.graph.bind import WeightsSource
from alignkit.graph.elements.alignment import Alignment
from alignkit.jobs.pairs import bound_pair
from alignkit.plugins.plugin_registry import Registry
from alignkit.plugins.plugin_registry import registry as process_registry
from alignkit.solver import Outcome, Problem, Solver, Status, Step
from alignkit.solver.outcome_check import WriteGuard, check_step, fault
from alignkit.solver.solution import Solution
from alignkit.tasks.task import Task
from alignkit.text import describe_error, did_you_mean

SolverLike: TypeAlias = str | Solver[Any] | type[Solver[Any]]


def solve(
    pair: Pair | SymmetryGraph,
    a: WeightsSource | None = None,
    b: WeightsSource | None = None,
    *,
    solver: SolverLike | Sequence[SolverLike] = "weight_matching",
    init: Solution | Alignment | None = None,
    task: Task | None = None,
    device: torch.device | str | None = None,
    seed: int | None = None,
    throw: bool = True,
    registry: Registry | None = None,
    **options: Any,
) -> Solution:
    """Find the order of B's units that brings B closest to A.

    Args:
        pair: A bound graph, ``graph.bind(a, b)``; or a graph, with ``a`` and ``b`` given beside it.
        a: Reference model (module, state dict or checkpoint path), if ``pair`` is not bound yet.
        b: Model to be aligned, if ``pair`` is not bound yet.
        solver: A solver's name, class or instance; or a chain, each stage starting where the last ended:
            ``"deepalign > sinkhorn"``, or a sequence of names, classes and instances.
        init: Where to start. Default: the solver's own choice, for most the identity.
        task: Data and a loss, for solvers that need them.
        device: Where solvers work. Default: where A's tensors are.
        seed: Seed of every random choice. Default: the solver's option ``seed``, which is 0 unless set.
        throw: Raise when a solver fails. With False the solution says so in ``status`` and ``detail``, with
            the alignment that the solver started from. Wrong calls raise in any case.
        registry: Where names are looked up and observers live. Default: that of the process.
        options: Options of the solver. In a chain each goes to every stage that has it.

    Returns:
        The solution. Its objectives are squared distances ``||A - P # B||^2`` in float64, computed from the
        returned alignment and not taken from the solver.

    Raises:
        SolverError: The solver is unknown, an option is wrong, something that the solver needs is missing, or
            it failed. Errors of alignkit that a solver raises are passed on as they are.
        BindError: ``a`` and ``b`` do not fit the graph.
        AlignmentError: ``init`` belongs to another graph.
    """
    registry = registry if registry is not None else process_registry()
    bound = bound_pair("solve", pair, a, b)
    stages = build_solvers(solver, options, seed, registry)
    problem = Problem(bound, find_start(bound.graph, init), task, _device(bound, device), _dtype(bound), 0)
    for stage in stages:
        stage.needs.check(problem, stage.name)
    done: list[Solution] = []
    for stage in stages:
        own = replace(problem, seed=stage.options.seed if seed is None else seed)
        solution = run_solver(own, stage, registry, throw=throw)
        done.append(solution)
        if solution.status.failed:
            break
        problem = replace(problem, init=solution.alignment)
    return done[0] if len(stages) == 1 else _joined(done, stages)


def build_solvers(
    solver: SolverLike | Sequence[SolverLike],
    options: Mapping[str, Any],
    seed: int | None,
    registry: Registry,
) -> list[Solver[Any]]:
    """Return the stages that ``solver`` describes, each with the options that belong to it.

    Raises:
        SolverError: A name is unknown, a stage is empty, or an option is wrong or belongs to no stage.
    """
    named = [stage for part in _parts(solver) for stage in _split(part, registry)]
    to_build = [stage for stage in named if isinstance(stage, type)]
    _check_no_option_left(named, to_build, options)
    built: list[Solver[Any]] = []
    for stage in named:
        if isinstance(stage, Solver):
            built.append(stage)
            continue
        known = options if len(to_build) == 1 else {k: v for k, v in options.items() if k in stage.Options.model_fields}
        built.append(stage(**known) if seed is None else stage(**known, seed=seed))
    return built


def _parts(solver: SolverLike | Sequence[SolverLike]) -> Sequence[SolverLike]:
    if isinstance(solver, Sequence) and not isinstance(solver, str):
        if not solver:
            raise SolverError("solver= is an empty sequence: name at least one solver.")
        return solver
    return [solver]


def _split(part: object, registry: Registry) -> list[type[Solver[Any]] | Solver[Any]]:
    if isinstance(part, Solver) or (isinstance(part, type) and issubclass(part, Solver)):
        return [part]
    if not isinstance(part, str):
        raise SolverError(
            f"solver= takes a name, a Solver class, a Solver instance or a chain of them, not {type(part).__name__}."
        )
    names = [name.strip() for name in part.split(">")]
    if "" in names:
        raise SolverError(f"solver={part!r} has an empty stage. A chain is written 'first > second', one name a stage.")
    return [registry.solver(name) for name in names]


def _check_no_option_left(
    named: Sequence[object], to_build: Sequence[type[Solver[Any]]], options: Mapping[str, Any]
) -> None:
    if options and not to_build:
        raise SolverError(
            "solver= is an instance, so its options are already set. "
            f"Write {type(named[0]).__name__}({', '.join(f'{option}=...' for option in options)}) instead."
        )
    if len(to_build) < 2:  # one class says by itself, and better, which of its options are wrong
        return
    known = sorted({field for stage in to_build for field in stage.Options.model_fields})
    for option in options:
        if option not in known:
            stages = ", ".join(repr(stage.name) for stage in to_build)
            raise SolverError(
                f"no stage of the chain ({stages}) has an option {option!r}.{did_you_mean(option, known)} "
                f"Options: {', '.join(known)}."
            )


# ---------------------------------------------------------------------- what is checked once


def find_start(graph: SymmetryGraph, init: object) -> Alignment | None:
    """Return where to start as an alignment of the graph; None where nothing is given."""
    if init is None:
        return None
    start = init.alignment if isinstance(init, Solution) else init
    if not isinstance(start, Alignment):
        raise SolverError(f"init= takes a Solution or an Alignment, not {type(init).__name__}.")
    if start.graph != graph:
        raise AlignmentError("init= belongs to another graph than the one that is solved. Solve its own graph first.")
    return start


def _device(bound: Pair, device: torch.device | str | None) -> torch.device:
    if device is None:
        return next((tensor.device for tensor in bound.a.values()), torch.device("cpu"))
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:
        raise SolverError(f"device={str(device)!r} cannot be used: {str(error).splitlines()[0]}") from error


def _dtype(bound: Pair) -> torch.dtype:
    wide = any(tensor.dtype == torch.float64 for tensor in bound.a.values())
    return torch.float64 if wide else torch.float32


# ---------------------------------------------------------------------- running one stage


def run_solver(problem: Problem, solver: Solver[Any], registry: Registry, *, throw: bool = True) -> Solution:
    """Run one solver on a problem, watched by the registry's observers, and account for the result. See `solve`."""
    history: list[Step] = []

    def report(step: Step) -> None:
        check_step(step)
        history.append(step)
        registry.notify("alignkit_solve_step", problem=problem, solver=solver, step=step)

    solution: Solution | None = None
    registry.notify("alignkit_solve_started", problem=problem, solver=solver)
    try:
        started = perf_counter()
        outcome, detail, cause = _attempt(problem, solver, report)
        seconds = perf_counter() - started
        solution = account(problem, solver, outcome, tuple(history), seconds, detail)
    finally:  # also on Ctrl-C, so that a progress bar can be closed
        registry.notify("alignkit_solve_finished", problem=problem, solver=solver, solution=solution)
    if throw and solution.status.failed:
        if isinstance(cause, AlignkitError):
            raise cause
        raise SolverError(f"solver {solver.name!r} failed. {solution.status.value} {detail}".rstrip()) from cause
    return solution


def _attempt(problem: Problem, solver: Solver[Any], report: Any) -> tuple[Outcome, str, Exception | None]:
    """Run a solver; whatever it does, an outcome with an alignment of the right graph comes back."""
    start, guard = problem.start, WriteGuard(problem)
    try:
        outcome = solver.solve(problem, report)
    except Exception as error:  # solvers may be third-party code
        return Outcome(start, Status.FAILED), f"{describe_error(error)} {guard.fault()}".rstrip(), error
    except SystemExit as error:  # a script turned into a solver
        return Outcome(start, Status.FAILED), f"It called exit({error.code!r}).", None
    wrong = fault(outcome, problem) or guard.fault()
    return (Outcome(start, Status.INVALID), wrong, None) if wrong else (outcome, "", None)


def account(
    problem: Problem,
    solver: Solver[Any],
    outcome: Outcome,
    history: tuple[Step, ...],
    seconds: float,
    detail: str,
) -> Solution:
    """The solution that an outcome amounts to: distances before and after, and the gain of every group."""
    objective = problem.objective
    before, after = objective.unaligned, objective.distances2(outcome.alignment)
    return Solution(
        alignment=outcome.alignment,
        solver=solver.name,
        options={**solver.options.model_dump(mode="json"), "seed": problem.seed},
        status=outcome.status,
        objective_before=sum(before.values()),
        objective_init=sum(before.values()) if problem.init is None else objective.distance2(problem.init),
        objective_after=sum(after.values()),
        gain=group_gains(outcome.alignment, {name: before[name] - after[name] for name in after}),
        moved=outcome.alignment.moved(),
        history=history,
        stats=dict(outcome.stats),
        notes=dict(outcome.notes),
        seconds=seconds,
        soft=outcome.soft,
        detail=detail,
    )


def group_gains(alignment: Alignment, gains: Mapping[str, float]) -> dict[str, float]:
    """Share the gain of every tensor equally among the groups that act on it and moved.

    Args:
        alignment: The alignment that made the gains.
        gains: ``||A - B||^2 - ||A - P # B||^2`` of each tensor.

    Returns:
        For each group its part; all parts add up to the total gain.
    """
    shares = dict.fromkeys(alignment.graph.groups, 0.0)
    moved = {group for group, units in alignment.moved().items() if units}
    for name, node in alignment.graph.tensors.items():
        movers = node.groups & moved
        for group in movers:
            shares[group] += gains[name] / len(movers)
    return shares


def _joined(done: Sequence[Solution], stages: Sequence[Solver[Any]]) -> Solution:
    """The solution of a chain: where its last stage ended, seen from where its first began."""
    last = done[-1]
    return replace(
        last,
        solver=" > ".join(stage.name for stage in stages),
        options={f"{i} {stage.solver}": stage.options for i, stage in enumerate(done, 1)},
        objective_init=done[0].objective_init,
        history=tuple(step for stage in done for step in stage.history),
        seconds=sum(stage.seconds for stage in done),
        stages=tuple(done),
    )
