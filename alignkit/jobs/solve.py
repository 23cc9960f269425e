"""`solve`: the front door. Checks once, runs one solver or a chain, and accounts for the result."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from time import perf_counter
from typing import Any, TypeAlias

import torch

from alignkit.arguments import check_arguments, usable_device
from alignkit.errors import AlignkitError, AlignmentError, BindError, PluginError, SolverError
from alignkit.graph import Pair, SymmetryGraph
from alignkit.graph.bind import WeightsSource
from alignkit.graph.elements.alignment import Alignment
from alignkit.plugins import PluginWarning
from alignkit.plugins.offers import check_facts
from alignkit.plugins.plugin_registry import Registry
from alignkit.plugins.plugin_registry import registry as process_registry
from alignkit.process_state import watched_state
from alignkit.solver import Outcome, Problem, Report, Solver, Status, Step
from alignkit.solver.outcome_check import WriteGuard, checked_outcome, checked_step
from alignkit.solver.solution import Solution
from alignkit.tasks.task import Task
from alignkit.text import describe_error, did_you_mean, explain_error, show_value

SolverLike: TypeAlias = str | Solver[Any] | type[Solver[Any]]


@check_arguments
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
        returned alignment and not taken from the solver. If Ctrl-C ends the solver, it holds the best alignment that
        the solver had found, with `Status.INTERRUPTED`, and later stages of a chain do not run. A second Ctrl-C is a
        ``KeyboardInterrupt`` as usual.

    Raises:
        SolverError: The solver is unknown, an option is wrong, something that the solver needs is missing, or
            it failed. Errors of alignkit that a solver raises are passed on as they are.
        BindError: ``a`` and ``b`` do not fit the graph, or their squares overflow float64 or vanish in it.
        AlignmentError: ``init`` belongs to another graph.
    """
    registry = registry if registry is not None else process_registry()
    bound = bound_pair("solve", pair, a, b)
    stages = build_solvers(solver, options, seed, registry)
    where = bound.device if device is None else usable_device(device)
    wide = any(tensor.dtype == torch.float64 for tensor in bound.a.values())
    dtype = torch.float64 if wide else torch.float32
    problem = Problem(bound, find_start(bound.graph, init), task, where, dtype, 0)
    for stage in stages:
        stage.needs.check(problem, stage.name)
    solutions: list[Solution] = []
    for stage in stages:
        own = replace(problem, seed=stage.options.seed if seed is None else seed)
        solution = run_solver(own, stage, registry, throw=throw)
        solutions.append(solution)
        if solution.status.failed or solution.status is Status.INTERRUPTED:
            break
        problem = replace(problem, init=solution.alignment)
    if len(stages) == 1:
        return solution
    return replace(  # where the last stage ended, seen from where the first began
        solution,
        solver=" > ".join(stage.name for stage in stages),
        options={f"{i} {stage.solver}": dict(stage.options) for i, stage in enumerate(solutions, 1)},
        objective_init=solutions[0].objective_init,
        history=tuple(step for stage in solutions for step in stage.history),
        seconds=sum(stage.seconds for stage in solutions),
        stages=tuple(solutions),
    )


def build_solvers(
    solver: SolverLike | Sequence[SolverLike], options: Mapping[str, Any], seed: int | None, registry: Registry
) -> list[Solver[Any]]:
    """Return the stages that ``solver`` describes, each with its options; raise `SolverError` where one is wrong."""
    chain = [solver] if isinstance(solver, str) or not isinstance(solver, Sequence) else solver
    if not chain:
        raise SolverError("solver= is an empty sequence: name at least one solver.")
    named: list[type[Solver[Any]] | Solver[Any]] = []
    for part in chain:
        if isinstance(part, Solver) or (isinstance(part, type) and issubclass(part, Solver)):
            try:
                check_facts(part if isinstance(part, type) else type(part))
            except PluginError as error:
                raise SolverError(f"solver= takes no such class: {error}.") from error
            named.append(part)
            continue
        if not isinstance(part, str):
            raise SolverError(
                f"solver= takes a name, a Solver class, an instance or a chain, found {show_value(part)}."
            )
        names = [name.strip() for name in part.split(">")]
        if "" in names:
            raise SolverError(
                f"solver={part!r} has an empty stage. A chain is written 'first > second', one name a stage."
            )
        named += [registry.solver(name) for name in names]
    to_build = [stage for stage in named if isinstance(stage, type)]
    if options and not to_build:
        raise SolverError(
            "solver= is an instance, so its options are already set. "
            f"Write {type(named[0]).__name__}({', '.join(f'{option}=...' for option in options)}) instead."
        )
    known = sorted({field for stage in to_build for field in stage.Options.model_fields})
    foreign = [option for option in options if option not in known]
    if foreign and len(to_build) > 1:  # one class says by itself, and better, which of its options are wrong
        stages = ", ".join(repr(stage.name) for stage in to_build)
        raise SolverError(
            f"no stage of the chain ({stages}) has an option {foreign[0]!r}.{did_you_mean(foreign[0], known)} "
            f"Options: {', '.join(known)}."
        )
    seeded, alone = {} if seed is None else {"seed": seed}, len(to_build) == 1

    def build(stage: type[Solver[Any]]) -> Solver[Any]:
        given = {k: v for k, v in options.items() if alone or k in stage.Options.model_fields}
        try:
            with watched_state(f"solver {stage.name!r}, when it was made,"):
                built = stage(**given, **seeded)
            built.options.seed  # noqa: B018  an __init__ of its own may set no options
        except AlignkitError:
            raise
        except (Exception, SystemExit) as error:
            raise SolverError(f"solver {stage.name!r} cannot be made: {describe_error(error)}") from error
        return built

    return [stage if isinstance(stage, Solver) else build(stage) for stage in named]


def find_start(graph: SymmetryGraph, init: Solution | Alignment | None) -> Alignment | None:
    """Return where to start as an alignment of the graph; None where nothing is given."""
    if init is None:
        return None
    start = init.alignment if isinstance(init, Solution) else init
    if start.graph != graph:
        raise AlignmentError("init= belongs to another graph than the one that is solved. Solve its own graph first.")
    return start


def run_solver(problem: Problem, solver: Solver[Any], registry: Registry, *, throw: bool = True) -> Solution:
    """Run one solver on a problem, watched by the registry's observers, and account for the result. See `solve`."""
    history: list[Step] = []
    best: list[Step] = []  # the last is the one to return on Ctrl-C
    problem.objective.scale  # noqa: B018  sums are computed once, for the solver and for the account, and checked
    guard, options, name = WriteGuard(problem), plain_options(solver), solver.name
    # What the solver and the observers do to their problem and its objective has no say in the account.
    handed, shown = copy.copy(problem), copy.copy(problem)
    for copied in (handed, shown):
        copied.__dict__["objective"] = copy.copy(problem.objective)

    def report(step: Step) -> None:
        history.append(checked_step(step, f"solver {name!r}"))
        if step.alignment is not None and (not best or step.objective <= best[-1].objective):
            best[:] = [step]
        registry.notify("alignkit_solve_step", problem=shown, solver=solver, step=history[-1])

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
        solution = account(problem, name, options, outcome, tuple(history), seconds, detail)
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
    try:
        with watched_state(f"solver {solver.name!r}, or the task that it ran,"):
            answer = solver.solve(problem, report)
    except (KeyboardInterrupt, PluginWarning):  # Ctrl-C; and a warning about a plugin, where warnings are errors
        raise
    except SystemExit as error:  # a script turned into a solver
        return Outcome(start, Status.FAILED), f"It called exit({error.code!r}).", None
    except BaseException as error:  # solvers may be third-party code, which panics too
        return Outcome(start, Status.FAILED), describe_error(error), error
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


def completed(solution: Solution) -> Solution:
    """Return the solution of a solve inside a job; if Ctrl-C ended it, the job ends as well.

    Raises:
        KeyboardInterrupt: The solve was interrupted.
    """
    if solution.status is Status.INTERRUPTED:
        raise KeyboardInterrupt
    return solution


def plain_options(solver: Solver[Any]) -> dict[str, Any]:
    """Return the options of a solver as plain values, as files hold them; `SolverError` where they are not plain."""
    try:
        return dict(solver.options.model_dump(mode="json"))
    except Exception as error:  # a field of a class of its own, or an __init__ that sets no options
        reason = f"its options cannot be saved: {describe_error(error)}"
        raise SolverError(f"solver {solver.name!r} cannot be used, {reason}") from error


def settings_of(stages: Sequence[Solver[Any]], seed: int) -> dict[str, Any]:
    """Return names and options of one solver, or of the stages of a chain, with a seed, as plain values."""
    every = [{**plain_options(stage), "seed": seed} for stage in stages]
    if len(every) == 1:
        return {"solver": stages[0].name, **every[0]}
    return {f"{i} {stage.name}": options for i, (stage, options) in enumerate(zip(stages, every, strict=True), 1)}


def account(
    problem: Problem,
    solver: str,
    options: Mapping[str, Any],
    outcome: Outcome,
    history: tuple[Step, ...],
    seconds: float,
    detail: str,
) -> Solution:
    """Return the solution that an outcome amounts to: distances before and after, and the gain of every group."""
    objective, before = problem.objective, problem.objective.unaligned
    start = sum(before.values()) if problem.init is None else objective.distance2(problem.init)
    after = objective.distances2(outcome.alignment)
    facts = {"options": {**options, "seed": problem.seed}, "history": history, "seconds": seconds, "detail": detail}
    return accounted(outcome, before, after, objective_init=start, solver=solver, **facts)


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


def bound_pair(call: str, pair: Pair | SymmetryGraph, a: WeightsSource | None, b: WeightsSource | None) -> Pair:
    """Return the pair that a job works on: ``pair``, or a graph bound to ``a`` and ``b``; ``call`` is for messages.

    Raises:
        BindError: Networks are missing, there are more than two, or they do not fit the graph.
    """
    if isinstance(pair, Pair):
        if a is not None or b is not None:
            raise BindError(f"the graph is bound to its networks already: call {call}(pair) without a and b.")
        return pair
    if a is None or b is None:
        raise BindError(f"a graph alone says nothing about weights: call {call}(graph, a, b).")
    return pair.bind(a, b)


def graph_and_models(
    call: str, pair: Pair | SymmetryGraph, models: tuple[WeightsSource, ...]
) -> tuple[SymmetryGraph, list[WeightsSource]]:
    """Return graph and networks of a job that takes ``(pair)``, or ``(graph, a, b, ...)``; else raise `BindError`."""
    if isinstance(pair, Pair):
        if models:
            raise BindError(f"the graph is bound to its networks already: call {call}(pair) without more of them.")
        a = pair.a if pair.module_a is None else pair.module_a
        b = pair.b if pair.module_b is None else pair.module_b
        return pair.graph, [a, b]
    if len(models) < 2:
        raise BindError(f"{call}() needs at least two networks: call {call}(graph, a, b), with more behind them.")
    return pair, list(models)
