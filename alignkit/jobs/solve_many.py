"""`solve_many`: one solver on many pairs of networks, here or on an executor, resumed from a file."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from concurrent.futures import Executor
from itertools import repeat
from os import PathLike
from time import perf_counter
from typing import Any, TypeAlias

import torch

from alignkit.arguments import check_arguments, usable_device
from alignkit.checkpoints.documents import Content, Format
from alignkit.errors import AlignkitError, AlignmentError, BindError, SolverError
from alignkit.graph import Pair, SymmetryGraph
from alignkit.graph.bind import WeightsSource
from alignkit.jobs.executors import ExecutorFailure, packed, run_in
from alignkit.jobs.pair_batches import PairBatch, PairJob, PairSetup, solve_batch, solve_packed_batch
from alignkit.jobs.row_file import RowFile, RowsHeader, digest_of, digest_of_task
from alignkit.jobs.solve import InitLike, SolverLike, StartParts, build_solvers, check_solver_kinds, find_start
from alignkit.jobs.solved_pairs import SolvedPair, SolvedPairs
from alignkit.plugins.plugin_registry import registry as process_registry
from alignkit.solver import Status
from alignkit.solver.solution import Solution
from alignkit.tasks.task import Task
from alignkit.text import explain_error, plural, show_value

NetworkPair: TypeAlias = Pair | Sequence[WeightsSource]
"""What `solve_many` takes for one pair: ``graph.bind(a, b)``, or the two networks ``(a, b)``."""


class _Row(Content):
    """A line of the file: a pair, what it was made of, and what came out."""

    pair: int
    weights: list[str]
    settings: dict[str, Any]
    reason: str
    solution: dict[str, Any] | None


ROWS = Format("alignkit.solved-pairs", "file of rows", "solve_many(..., path=...)", SolverError, RowsHeader)


@check_arguments
def solve_many(
    graph: SymmetryGraph,
    pairs: Iterable[NetworkPair],
    *,
    solver: SolverLike | Sequence[SolverLike] = "weight_matching",
    init: Iterable[InitLike | None] | None = None,
    task: Task | None = None,
    device: torch.device | str | None = None,
    seed: int = 0,
    executor: Executor | None = None,
    path: str | PathLike[str] | None = None,
    report: Callable[[SolvedPair], None] | None = None,
    **options: Any,
) -> SolvedPairs:
    """Solve many pairs of networks of one architecture; every solution is that of `alignkit.solve` with its pair.

    Weight matching works on whole stacks of pairs where the graph has no families. Everything else is solved one pair
    after the other. A pair that cannot be solved is told with the reason, and the others go on.

    Args:
        graph: The graph that all networks share.
        pairs: The pairs, ``(a, b)`` or ``graph.bind(a, b)``. They are taken as they are needed, so that a generator can
            read networks from a disk. A network is a module, a state dict or a checkpoint path.
        solver: A solver's name, class or instance, or a chain, as in `alignkit.solve`.
        init: Where each pair starts, in the order of the pairs, as in `alignkit.solve`; None leaves one to the solver.
            An earlier result can be given as it is, if all of its pairs have a solution.
        task: Data and a loss, for solvers that need them.
        device: Where solvers work. Default: where the tensors of a pair's A are.
        seed: Seed of the first pair; pair ``i`` is solved with ``seed + i``.
        executor: Where pairs are solved: any ``concurrent.futures.Executor``, such as a process pool or Dask's
            ``client.get_executor()``. Networks are pickled. None: here.
        path: A JSON-lines file to which every solution is written when it is there. If it exists already, solutions of
            the same networks with the same settings are taken from it, so a killed run resumes where it was.
        report: Called with every pair that was solved, in the order in which they are done.
        options: Options of the solver. In a chain each goes to every stage that has it.

    Returns:
        The solutions in the order of the pairs. After Ctrl-C it holds those that are done.

    Raises:
        SolverError: The solver is unknown, an option is wrong, it needs a task, there are more or fewer starts than
            pairs, something cannot be pickled for the executor, or ``path`` holds something else.
    """
    started = perf_counter()
    stages = build_solvers(solver, options, None, process_registry())
    check_solver_kinds(graph, stages, process_registry())
    for stage in stages:
        stage.needs.check_task(task is not None, stage.name)
    where = None if device is None else str(usable_device(device))
    if isinstance(init, Sized) and isinstance(pairs, Sized) and len(init) != len(pairs):
        raise SolverError(f"init= holds {plural(len(init), 'start')} for {plural(len(pairs), 'pair')}.")
    run = _Run(PairSetup(graph, tuple(stages), task, where, seed), path, report)
    try:
        run.solve(pairs, init, executor)
    except KeyboardInterrupt:
        run.interrupted = True
    count = len(pairs) if isinstance(pairs, Sized) else run.reached
    unsolved = "Ctrl-C came before it was solved."
    rows = tuple(run.solved.get(index, SolvedPair(index, None, unsolved)) for index in range(count))
    name = " > ".join(stage.name for stage in stages)
    return SolvedPairs(graph, name, rows, perf_counter() - started, run.interrupted)


class _Run:
    """What is known of the pairs while they are solved."""

    def __init__(
        self, setup: PairSetup, path: str | PathLike[str] | None, report: Callable[[SolvedPair], None] | None
    ) -> None:
        self.setup, self._report = setup, report
        self.solved: dict[int, SolvedPair] = {}
        self.reached, self.interrupted = 0, False
        self._digests: dict[int, list[str]] = {}
        self._file: RowFile[tuple[_Row, Solution | None]] | None = None
        if path is not None:
            identity = {
                "graph": setup.graph.fingerprint,
                "task": digest_of_task(setup.task),
                "device": setup.device,
            }
            self._file = RowFile(path, ROWS, identity, self._read)

    def solve(
        self,
        pairs: Iterable[NetworkPair],
        init: Iterable[InitLike | None] | None,
        executor: Executor | None,
    ) -> None:
        """Solve the pairs that are not known yet; `KeyboardInterrupt` if Ctrl-C ends it."""
        batches = self.setup.batches(self._unsolved(pairs, repeat(None) if init is None else iter(init)))
        if executor is None:
            for batch in batches:
                self._take(solve_batch(self.setup, batch))
            return
        setup = self.setup.to_bytes()
        jobs = ((batch, (setup, data)) for batch in batches if (data := self._packed(batch)) is not None)
        for batch, result in run_in(executor, solve_packed_batch, jobs):
            if isinstance(result, ExecutorFailure):
                self._take(SolvedPair(job.index, None, result.reason) for job in batch)
            else:
                self._take(
                    SolvedPair(index, None if row is None else Solution.from_row(row, self.setup.graph), reason)
                    for index, row, reason in result
                )

    def _unsolved(self, pairs: Iterable[NetworkPair], starts: Iterator[InitLike | None]) -> Iterator[PairJob]:
        """Yield the pairs that have to be solved; those that do not fit, or are in the file, are done here."""
        known = {} if self._file is None else {row.pair: (row, solution) for row, solution in self._file.rows}
        for index, given in enumerate(pairs):
            self.reached = index + 1
            try:
                pair = _bound(self.setup.graph, given)
                start = find_start(self.setup.graph, _next_start(starts, index))
            except Exception as error:  # mappings are the user's
                self._take([SolvedPair(index, None, explain_error(error))])
                continue
            if self._file is not None:
                sides = (pair.a, pair.b, *(part for part in start.parts() if part is not None))
                self._digests[index] = [digest_of(sorted(side.items())) for side in sides]
                row, solution = known.get(index, (None, None))
                if row is not None and solution is not None and self._is_same(row):
                    self.solved[index] = SolvedPair(index, solution)
                    continue
            yield PairJob(index, pair, start)

    def _packed(self, batch: PairBatch) -> bytes | None:
        """Return a batch as bytes; None if it cannot be sent, which its pairs are told."""
        try:
            return packed({f"pair {job.index}": (job.index, *self._parts(job)) for job in batch}, SolverError)
        except AlignkitError as error:
            self._take(SolvedPair(job.index, None, str(error)) for job in batch)
            return None

    def _parts(self, job: PairJob) -> tuple[tuple[Any, ...], StartParts]:
        """Return what a pair and its start are made of.

        Tensors have memory of their own. Stacks have no use for modules.
        """
        pair = job.pair
        a, b = ({name: tensor.clone() for name, tensor in side.items()} for side in (pair.a, pair.b))
        sides = (a, b) if self.setup.matching is not None else (a, b, pair.module_a, pair.module_b)
        return sides, job.start.parts()

    def _take(self, rows: Iterable[SolvedPair]) -> None:
        """Keep and write what came out of some pairs; `KeyboardInterrupt` if Ctrl-C has ended one of them."""
        for row in rows:
            self.solved[row.index] = row
            interrupted = row.solution is not None and row.solution.status is Status.INTERRUPTED
            if self._file is not None and not interrupted:
                self._file.append(
                    {
                        "pair": row.index,
                        "weights": self._digests.get(row.index, []),
                        "settings": self.setup.settings(row.index),
                        "reason": row.reason,
                        "solution": None if row.solution is None else row.solution.to_row(),
                    }
                )
            if self._report is not None:
                self._report(row)
            if interrupted:
                raise KeyboardInterrupt

    def _read(self, values: Mapping[str, Any]) -> tuple[_Row, Solution | None]:
        row = _Row.model_validate(dict(values))
        return row, None if row.solution is None else Solution.from_row(row.solution, self.setup.graph)

    def _is_same(self, row: _Row) -> bool:
        """Whether a row of the file is of the same networks and settings as now."""
        return row.weights == self._digests[row.pair] and row.settings == self.setup.settings(row.pair)


def _next_start(starts: Iterator[InitLike | None], index: int) -> InitLike | None:
    for start in starts:
        if start is None or isinstance(start, InitLike):
            return start
        raise AlignmentError(f"init= of pair {index} has to be a Solution, a SoftAlignment, an Alignment or None.")
    raise AlignmentError(f"init= holds {plural(index, 'start')}, and none for pair {index}.")


def _bound(graph: SymmetryGraph, given: object) -> Pair:
    if isinstance(given, Pair):
        if given.graph != graph:
            raise BindError("The pair is bound to another graph.")
        return given
    if isinstance(given, str) or not isinstance(given, Sequence) or len(given) != 2:
        raise BindError(f"A pair is two networks, (a, b), or graph.bind(a, b); found {show_value(given)}.")
    return graph.bind(*given)
