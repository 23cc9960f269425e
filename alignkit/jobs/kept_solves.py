"""The solves of a long job, kept in a file while they are made, so that a run that was killed goes on there."""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections.abc import Mapping, Sequence
from dataclasses import replace
from os import PathLike
from time import perf_counter
from typing import Any

import safetensors.torch
from torch import Tensor

from alignkit.checkpoints.documents import Content, Format
from alignkit.errors import AlignmentError
from alignkit.graph import Pair, SymmetryGraph
from alignkit.graph.elements.alignment import Alignment
from alignkit.graph.stored import StoredNetwork
from alignkit.jobs.row_file import RowFile, RowsHeader, digest_of, digest_of_task
from alignkit.jobs.solve import InitLike, build_solvers, find_start, settings_of, solve
from alignkit.matching.objective import Objective
from alignkit.plugins.hookspecs import hookimpl
from alignkit.plugins.observers import watched
from alignkit.plugins.plugin_registry import registry
from alignkit.solver import Status, Step
from alignkit.solver.solution import Solution
from alignkit.tasks.task import Task

ROWS = Format("alignkit.solves", "file of solves", "merge or align_many(..., path=...)", AlignmentError, RowsHeader)
EVERY = 5.0
"""Seconds between two alignments of one solve that are written: a second of work is not worth a write."""


class _SolveRow(Content):
    """A solve that is done, or the best alignment so far of one that is not."""

    solve: int
    solution: dict[str, Any] | None
    best: str | None


class KeptSolves:
    """Makes the solves of one job in turn; those that the file holds are not made again.

    The same job makes the same solves in the same order, so that a number says which one a row is. A solve that was
    under way starts from the best alignment that it had found.

    Args:
        path: The file.
        graph: The graph of the job.
        networks: All networks of the job; they count in full.
        arguments: Those of `alignkit.solve`, the same for all solves.
        facts: What else decides which solves there are, as plain values.

    Raises:
        AlignmentError: The file is of another job, or something else, or cannot be written.
        SolverError: The solver is unknown, or an option is wrong.
    """

    def __init__(
        self,
        path: str | PathLike[str],
        graph: SymmetryGraph,
        networks: Sequence[Mapping[str, Tensor]],
        arguments: Mapping[str, Any],
        **facts: Any,
    ) -> None:
        own = dict(arguments)
        solver, task, seed, device = (own.pop(name, None) for name in ("solver", "task", "seed", "device"))
        own.pop("throw", None)
        stages = build_solvers(solver, own, seed, registry())
        identity = {
            "graph": graph.fingerprint,
            "weights": [_digest(network) for network in networks],
            "solver": settings_of(stages, seed or 0),
            "task": digest_of_task(task) if isinstance(task, Task) else None,
            "device": None if device is None else str(device),
            **facts,
        }
        self._graph, self._arguments, self._number = graph, dict(arguments), 0
        self._done: dict[int, Solution] = {}
        self._begun: dict[int, Alignment] = {}
        self._file = RowFile(path, ROWS, identity, self._read)

    def solve(self, pair: Pair, init: InitLike | None = None) -> Solution:
        """Return the next solution: that of the file, or a new one, as `alignkit.solve` does."""
        number, self._number = self._number, self._number + 1
        if number in self._done:
            return self._done[number]
        begun = self._begun.get(number)
        with watched(_BestSoFar(self, number)):
            solution = solve(pair, init=init if begun is None else begun, **self._arguments)
        if begun is not None:  # what was gained before the run was cut off counts, too
            start = find_start(self._graph, init).alignment
            first = solution.objective_before if start is None else float(Objective(pair).distance2(start))
            solution = replace(solution, objective_init=first)
        if solution.status is Status.INTERRUPTED:
            self.keep(number, solution.alignment)
        else:
            self._file.append({"solve": number, "solution": solution.to_row(), "best": None})
        return solution

    def keep(self, number: int, alignment: Alignment) -> None:
        """Write where a solve that is under way would start again."""
        if alignment.graph == self._graph:
            data = safetensors.torch.save({name: t.contiguous() for name, t in alignment.elements.items()})
            self._file.append({"solve": number, "solution": None, "best": b64encode(data).decode()})

    def _read(self, values: Mapping[str, Any]) -> None:
        row = _SolveRow.model_validate(dict(values))
        if row.solution is not None:
            self._done[row.solve] = Solution.from_row(row.solution, self._graph)
        elif row.best is not None:
            elements = safetensors.torch.load(b64decode(row.best, validate=True))
            self._begun[row.solve] = Alignment(self._graph, elements)


def solve_kept(pair: Pair, path: str | PathLike[str] | None, **arguments: Any) -> Solution:
    """Solve a pair; with a path, as the only solve of a job that a file keeps."""
    if path is None:
        return solve(pair, **arguments)
    init = arguments.pop("init", None)
    parts = find_start(pair.graph, init).parts()
    start = [None if part is None else digest_of(sorted(part.items())) for part in parts]
    return KeptSolves(path, pair.graph, [pair.a, pair.b], arguments, start=start).solve(pair, init)


class _BestSoFar:
    """Keeps the best alignment of one solve, now and then."""

    def __init__(self, kept: KeptSolves, number: int) -> None:
        self._kept, self._number = kept, number
        self._lowest, self._written = float("inf"), perf_counter()

    @hookimpl
    def alignkit_solve_started(self) -> None:
        """Forget the objective of the stage of a chain before: that of each is its own."""
        self._lowest = float("inf")

    @hookimpl
    def alignkit_solve_step(self, step: Step) -> None:
        """Write the alignment of a step that is better than those before, if the last write is some time ago."""
        if step.alignment is not None and step.objective < self._lowest and perf_counter() - self._written >= EVERY:
            self._kept.keep(self._number, step.alignment)
            self._lowest, self._written = step.objective, perf_counter()


def _digest(network: Mapping[str, Tensor]) -> str:
    """Return a digest of a network; of one on disk in pieces, as they fit its limit of memory."""
    if isinstance(network, StoredNetwork):
        return digest_of((name, network.rows(name, span)) for name in sorted(network) for span in network.spans(name))
    return digest_of(sorted(network.items()))
