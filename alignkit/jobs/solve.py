"""`solve`: the front door. Checks once, and runs one solver or a chain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from alignkit.arguments import check_arguments, usable_device
from alignkit.errors import AlignkitError, AlignmentError, BindError, PluginError, SolverChoiceError, SolverError
from alignkit.graph import Pair, SymmetryGraph
from alignkit.graph.bind import WeightsSource
from alignkit.graph.elements.alignment import Alignment
from alignkit.jobs.solver_run import plain_options, run_solver
from alignkit.matching.soft_alignment import SoftAlignment
from alignkit.plugins.offers import check_facts
from alignkit.plugins.plugin_registry import Registry
from alignkit.plugins.plugin_registry import registry as process_registry
from alignkit.process_state import switched_by, watched_state
from alignkit.solver import Problem, Solver, Status
from alignkit.solver.solution import Solution
from alignkit.tasks.task import Task
from alignkit.text import describe_error, did_you_mean, show_value

SolverLike: TypeAlias = str | Solver[Any] | type[Solver[Any]]
"""One solver: its name, or a chain such as ``"deepalign > sinkhorn"``; its class; or an instance with its options."""
InitLike: TypeAlias = Solution | SoftAlignment | Alignment
"""Where to start."""
StartParts: TypeAlias = tuple[dict[str, Tensor] | None, dict[str, Tensor] | None]
"""Elements of an alignment and matrices of a soft one, where there are any."""


class StartingPoint(NamedTuple):
    """Where solvers start: nowhere, at an alignment, or at a soft alignment with an alignment beside it."""

    alignment: Alignment | None = None
    soft: SoftAlignment | None = None

    def parts(self) -> StartParts:
        """Return the tensors by group that both are made of."""
        alignment, soft = self
        elements = None if alignment is None else dict(alignment.elements)
        return elements, None if soft is None else dict(soft.matrices)


@check_arguments
def solve(
    pair: Pair | SymmetryGraph,
    a: WeightsSource | None = None,
    b: WeightsSource | None = None,
    *,
    solver: SolverLike | Sequence[SolverLike] = "weight_matching",
    init: InitLike | None = None,
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
            ``"deepalign > sinkhorn"``, or a sequence of names, classes and instances. A soft alignment is handed on
            with the alignment.
        init: Where to start. Default: the solver's own choice, for most the identity. Sinkhorn, straight-through and
            Frank-Wolfe start from a soft alignment, given as it is or in a solution; others from the alignment of the
            solution, or from the nearest one.
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
    start = find_start(bound.graph, init)
    return solve_stages(bound, stages, start, task, device=device, seed=seed, throw=throw, registry=registry)


def solve_stages(
    bound: Pair,
    stages: Sequence[Solver[Any]],
    start: StartingPoint,
    task: Task | None,
    *,
    device: torch.device | str | None,
    seed: int | None,
    throw: bool,
    registry: Registry,
) -> Solution:
    """Run the stages of a chain, each from where the last one ended; see `solve`."""
    where = bound.device if device is None else usable_device(device)
    dtypes = (*bound.dtypes.values(), *bound.swapped().dtypes.values())
    dtype = torch.float64 if torch.float64 in dtypes else torch.float32
    problem = Problem(bound, start.alignment, task, where, dtype, soft_init=start.soft)
    check_solver_kinds(bound.graph, stages, registry)
    for stage in stages:
        stage.needs.check(problem, stage.name)
    solutions: list[Solution] = []
    for stage in stages:
        kept = bound.leaving(stage.memory(bound.graph), f"solver {stage.name!r}")
        own = replace(problem, bound=kept, seed=stage.options.seed if seed is None else seed)
        solution = run_solver(own, stage, registry, throw=throw)
        solutions.append(solution)
        if solution.status.failed or solution.status is Status.INTERRUPTED:
            break
        problem = replace(problem, init=solution.alignment, soft_init=_soft_start(solution.soft))
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


def check_solver_kinds(graph: SymmetryGraph, stages: Sequence[Solver[Any]], registry: Registry) -> None:
    """Raise a `SolverError` where a stage does not take a kind of the graph's groups; it names solvers that do."""
    wanted = {group.kind for group in graph.groups.values()}
    if wanted <= {"permutation"}:
        return
    able = [name for name, info in registry.solvers().items() if wanted <= info.solver.kinds]
    advice = f"Take {' or '.join(able)}." if able else "No solver takes all kinds of this graph."
    for stage in stages:
        graph.check_kinds(f"solver {stage.name!r}", SolverError, advice, stage.kinds)


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
            raise SolverChoiceError(
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
        raise SolverChoiceError(
            f"no stage of the chain ({stages}) has an option {foreign[0]!r}.{did_you_mean(foreign[0], known)} "
            f"Options: {', '.join(known)}."
        )
    seeded, alone = {} if seed is None else {"seed": seed}, len(to_build) == 1

    def build(stage: type[Solver[Any]]) -> Solver[Any]:
        given = {k: v for k, v in options.items() if alone or k in stage.Options.model_fields}
        try:
            with watched_state(f"solver {stage.name!r}, when it was made,", switched_by(stage)):
                built = stage(**given, **seeded)
            built.options.seed  # noqa: B018  an __init__ of its own may set no options
        except AlignkitError:
            raise
        except (Exception, SystemExit) as error:
            raise SolverError(f"solver {stage.name!r} cannot be made: {describe_error(error)}") from error
        return built

    return [stage if isinstance(stage, Solver) else build(stage) for stage in named]


def find_start(graph: SymmetryGraph, init: InitLike | None) -> StartingPoint:
    """Return where to start, on the graph.

    Raises:
        AlignmentError: ``init`` belongs to another graph.
    """
    if init is None:
        return StartingPoint()
    if init.graph != graph:
        raise AlignmentError("init= belongs to another graph than the one that is solved. Solve its own graph first.")
    if isinstance(init, Alignment):
        return StartingPoint(init)
    if isinstance(init, Solution):
        return StartingPoint(init.alignment, _soft_start(init.soft))
    return StartingPoint(init.round(), _soft_start(init))


def _soft_start(soft: SoftAlignment | None) -> SoftAlignment | None:
    """Return a soft alignment as solvers start from it: others than `solve` may have made it, within a tolerance."""
    return None if soft is None else soft.completed()


def completed(solution: Solution) -> Solution:
    """Return the solution of a solve inside a job; if Ctrl-C ended it, the job ends as well.

    Raises:
        KeyboardInterrupt: The solve was interrupted.
    """
    if solution.status is Status.INTERRUPTED:
        raise KeyboardInterrupt
    return solution


def settings_of(stages: Sequence[Solver[Any]], seed: int) -> dict[str, Any]:
    """Return names and options of one solver, or of the stages of a chain, with a seed, as plain values."""
    every = [{**plain_options(stage), "seed": seed} for stage in stages]
    if len(every) == 1:
        return {"solver": stages[0].name, **every[0]}
    return {f"{i} {stage.name}": options for i, (stage, options) in enumerate(zip(stages, every, strict=True), 1)}


def bound_pair(
    call: str,
    pair: Pair | SymmetryGraph,
    a: WeightsSource | None,
    b: WeightsSource | None,
    memory: int | str | None = None,
) -> Pair:
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
    return pair.bind(a, b, memory=memory)


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
