"""`compare`: solvers, chains and seeds side by side on one pair of networks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from numbers import Integral
from os import PathLike
from typing import Any, TypeAlias

from alignkit.arguments import check_arguments
from alignkit.checkpoints.writer import OnProgress, byte_counter
from alignkit.errors import ComparisonError, SolverChoiceError
from alignkit.graph import Pair, SymmetryGraph
from alignkit.graph.bind import WeightsSource
from alignkit.jobs.compare.comparison import Comparison, ComparisonRow
from alignkit.jobs.compare.job import (
    ComparisonSetup,
    Evaluation,
    Job,
    open_rows,
    run_job,
    run_job_from_bytes,
    setup_bytes,
)
from alignkit.jobs.executors import ExecutorFailure, run_in
from alignkit.jobs.solve import SolverLike, bound_pair, build_solvers
from alignkit.plugins.plugin_registry import Registry
from alignkit.plugins.plugin_registry import registry as process_registry
from alignkit.solver import Solver
from alignkit.tasks.task import Task
from alignkit.text import did_you_mean, plural, show_value

Entry: TypeAlias = SolverLike | Sequence[SolverLike]
"""What ``solve(solver=...)`` takes: a name, a chain, a class, an instance, or a sequence of them."""
DEFAULT_EVALUATION = Evaluation()
ALWAYS, ALWAYS_WITH_TASK = "identity", "activation_matching"
"""Solvers that every comparison shows: wide networks sometimes merge best unpermuted, and users must see it."""


@check_arguments
def compare(
    pair: Pair | SymmetryGraph,
    a: WeightsSource | None = None,
    b: WeightsSource | None = None,
    *,
    solvers: Iterable[Entry] | Mapping[str, Entry] | None = None,
    task: Task | None = None,
    seeds: Iterable[int] = (0,),
    executor: Executor | None = None,
    path: str | PathLike[str] | None = None,
    evaluation: Evaluation = DEFAULT_EVALUATION,
    report: Callable[[ComparisonRow], None] | None = None,
    on_progress: OnProgress | None = None,
    **arguments: Any,
) -> Comparison:
    """Solve one pair with several solvers and seeds, and put what came out into one table.

    The identity is always there and first; with a task, activation matching is there too. A solver that fails is a
    row with the reason.

    Args:
        pair: The two networks, ``graph.bind(a, b)``; or a graph, with them beside it.
        a: Reference network, if ``pair`` is a graph: a module, a state dict or a checkpoint path.
        b: Network to be aligned, if ``pair`` is a graph.
        solvers: Names, chains (``"deepalign > sinkhorn"``), classes or instances; or a mapping from the name in the
            table to one of these, to have one solver with several options. None: every solver that can run.
        task: Data and loss for the solvers that need them, and for the barrier.
        seeds: Seeds of the solvers; the identity is run once.
        executor: Where solvers run: any ``concurrent.futures.Executor``, such as a process pool or Dask's
            ``client.get_executor()``. Everything is pickled once and every job works on its own copy. None: one after
            the other, here.
        path: A JSON-lines file to which every row is written when it is done. If it is there already, rows without
            failure are taken from it and not computed again, so a killed run resumes where it was.
        evaluation: How results are judged: on which data, at how many points, with or without repair.
        report: Called with every row that was computed, in the order in which they are done.
        on_progress: Called with the part of the rows that is done.
        arguments: The ``device`` where solvers work, and options of solvers. Each option goes to every solver, and
            stage of a chain, that has it.

    Raises:
        BindError: The networks do not fit the graph.
        SolverError: A solver is unknown, an option is wrong, or no solver has it.
        ComparisonError: ``path`` holds a comparison of something else, two solvers have one name in the table, or
            something cannot be pickled for the executor.
    """
    bound = bound_pair("compare", pair, a, b)
    if evaluation.repair and (task is None or bound.module_a is None or bound.module_b is None):
        raise ComparisonError("repair=True runs the merged network on data: pass task=, and bind modules.")
    device = arguments.pop("device", None)
    registry = process_registry()
    if solvers is None:
        solvers = [name for name, info in registry.solvers().items() if task is not None or not info.needs.task]
    chains = _build_chains(solvers, task, arguments, registry)
    seeds = list(seeds)
    if wrong := [seed for seed in seeds if not isinstance(seed, Integral)]:
        raise ComparisonError(f"seeds are whole numbers, found {show_value(wrong[0])}.")
    seeds = list(dict.fromkeys(map(int, seeds)))
    if not seeds:
        raise ComparisonError("seeds is empty: give at least one.")
    seeds_of = {ALWAYS: seeds[:1]}
    jobs = [Job(name, stages, seed) for name, stages in chains.items() for seed in seeds_of.get(name, seeds)]
    setup = ComparisonSetup(bound, task, evaluation, None if device is None else str(device))
    rows: dict[tuple[str, int], ComparisonRow] = {}
    file = None if path is None else open_rows(path, setup)
    if file is not None:
        known = {job.key: job.settings for job in jobs}
        rows |= {row.key: row for row in file.rows if not row.failed and known.get(row.key) == dict(row.options)}
    left = [job for job in jobs if job.key not in rows]
    advance = byte_counter(on_progress, f"comparing, {plural(len(left), 'row')} in all", len(left))
    for row in _run(setup, left, executor):
        rows[row.key] = row
        advance(1)
        if file is not None:
            file.append(row.to_dict())
        if report is not None:
            report(row)
    return Comparison(tuple(rows[job.key] for job in jobs), str(setup.where))


# ---------------------------------------------------------------------- what is compared


Chains: TypeAlias = dict[str, tuple[Solver[Any], ...]]
"""The stages of every line of the table, by its name."""


def _build_chains(
    solvers: Iterable[Entry] | Mapping[str, Entry], task: Task | None, options: Mapping[str, Any], registry: Registry
) -> Chains:
    """Build the stages of every line, each with those of the options that it has. Instances are left as they are."""
    if isinstance(solvers, str):
        solvers = [solvers]
    named: list[tuple[str | None, Entry]] = (
        list(solvers.items()) if isinstance(solvers, Mapping) else [(None, entry) for entry in solvers]
    )
    wanted = [entry for _, entry in named]
    if task is not None and ALWAYS_WITH_TASK not in wanted and ALWAYS_WITH_TASK in registry.solvers():
        named.insert(0, (None, ALWAYS_WITH_TASK))
    if ALWAYS in wanted:
        named = [(name, entry) for name, entry in named if entry != ALWAYS]
    named.insert(0, (None, ALWAYS))
    used: set[str] = set()
    built: Chains = {}
    for given_name, entry in named:
        given = entry if isinstance(entry, Sequence) and not isinstance(entry, str) else [entry]
        stages: list[Solver[Any]] = []
        labels: list[str] = []
        for stage in build_solvers(entry, {}, None, registry):
            if any(stage is part for part in given):  # its options that are not the defaults are part of its name
                changed = (f"{key}={getattr(stage.options, key)!r}" for key in sorted(stage.options.model_fields_set))
                stages.append(stage)
                labels.append(f"{stage.name}({', '.join(changed)})" if stage.options.model_fields_set else stage.name)
                continue
            own = {key: value for key, value in options.items() if key in type(stage).Options.model_fields}
            used.update(own)
            stages.append(type(stage)(**own))
            labels.append(stage.name)
        name, chain = " > ".join(labels) if given_name is None else given_name, tuple(stages)
        if repr(built.setdefault(name, chain)) != repr(chain):
            raise ComparisonError(
                f"two solvers would be called {name!r}. Give them names: solvers={{'first': ..., 'second': ...}}."
            )
    if unused := [option for option in options if option not in used]:
        fields = sorted({f for stages in built.values() for stage in stages for f in type(stage).Options.model_fields})
        raise SolverChoiceError(
            f"none of the compared solvers has an option {unused[0]!r}.{did_you_mean(unused[0], fields)} "
            f"Options: {', '.join(fields)}."
        )
    return built


# ---------------------------------------------------------------------- running


def _run(setup: ComparisonSetup, jobs: Sequence[Job], executor: Executor | None) -> Iterator[ComparisonRow]:
    """Yield rows in the order in which they are done."""
    if executor is None:
        for job in jobs:
            yield run_job(setup, job)
        return
    data = setup_bytes(setup, jobs)  # threads too: a model that two of them run at once would be changed under way
    for job, row in run_in(executor, run_job_from_bytes, ((job, (data, i)) for i, job in enumerate(jobs))):
        yield job.failed(row.reason) if isinstance(row, ExecutorFailure) else row
