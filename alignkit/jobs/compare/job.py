"""One job of a comparison: a solver and a seed become a row, here or in another process."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from os import PathLike
from typing import Any

import torch

from alignkit.arguments import check_fields, usable_device
from alignkit.checkpoints.documents import Format
from alignkit.errors import ComparisonError
from alignkit.graph import Pair, SymmetryGraph
from alignkit.jobs.average import average
from alignkit.jobs.compare.comparison import ERROR, ComparisonRow
from alignkit.jobs.executors import packed, unpacked
from alignkit.jobs.memory_use import peak_memory
from alignkit.jobs.near_phases import with_near_phases
from alignkit.jobs.repair import repair
from alignkit.jobs.row_file import RowFile, RowsHeader, digest_of, digest_of_task
from alignkit.jobs.solve import completed, settings_of, solve
from alignkit.solver import Solver
from alignkit.tasks.interpolation import interpolate
from alignkit.tasks.task import Task
from alignkit.text import explain_error


@check_fields
@dataclass(frozen=True)
class Evaluation:
    """How the results of a comparison are judged.

    Attributes:
        test: Data on which barrier, AUC and the middle are measured. None: those of the solvers' task.
        points: Number of points on the line from A to aligned B, odd, so that the middle is one of them.
        repair: Measure the average of A and aligned B a second time after `alignkit.repair` on the data of the
            solvers' task. Networks with BatchNorm, and deep ones without, are judged better by it. Needs modules.

    Raises:
        ComparisonError: ``points`` is even or less than 3.
    """

    test: Task | None = None
    points: int = 25
    repair: bool = False

    def __post_init__(self) -> None:
        if self.points < 3 or self.points % 2 == 0:
            how = "give an odd number, at least 3, so that the middle is one of them"
            raise ComparisonError(f"points is {self.points}: {how}.")


@dataclass(frozen=True, eq=False)
class ComparisonSetup:
    """What all jobs of a comparison share. Solvers work on ``device``; None is where A's tensors are."""

    pair: Pair
    task: Task | None
    evaluation: Evaluation
    device: str | None = None

    @property
    def test(self) -> Task | None:
        """The task for barrier, AUC and the middle."""
        return self.evaluation.test or self.task

    @property
    def where(self) -> torch.device:
        """The device on which solvers work."""
        return self.pair.device if self.device is None else usable_device(self.device)


@dataclass(frozen=True, eq=False)
class Job:
    """One solver, or chain, with one seed."""

    name: str
    stages: tuple[Solver[Any], ...]
    seed: int

    @property
    def key(self) -> tuple[str, int]:
        """What tells the job from the others of a comparison."""
        return self.name, self.seed

    @property
    def settings(self) -> dict[str, Any]:
        """The options as plain values; see `settings_of`."""
        return settings_of(self.stages, self.seed)

    def failed(self, reason: str) -> ComparisonRow:
        """Make the row of a job that could not be run."""
        return ComparisonRow(self.name, self.seed, ERROR, " ".join(reason.split()), options=self.settings)


def run_job(setup: ComparisonSetup, job: Job) -> ComparisonRow:
    """Solve and evaluate. Whatever goes wrong is said in the row."""
    try:
        with peak_memory(setup.where) as memory:
            solution = solve(
                setup.pair, solver=list(job.stages), task=setup.task, device=setup.device, seed=job.seed, throw=False
            )
    except Exception as error:  # what a solver needs is missing, or the device does not work
        return job.failed(explain_error(error))
    completed(solution)
    row = ComparisonRow(job.name, job.seed, solution.status.name, options=job.settings)
    if solution.status.failed:
        return replace(row, reason=f"{solution.status.value} {solution.detail}".rstrip())
    before, after, moved = solution.objective_before, solution.objective_after, sum(solution.moved.values())
    row = replace(row, distance_before=before, distance=after, moved=moved)
    row = replace(row, seconds=solution.seconds, peak_memory=memory.peak)
    test, pair, evaluation = setup.test, setup.pair, setup.evaluation
    if test is None:
        return row
    try:
        near_b = with_near_phases(pair.graph, pair.a, solution.apply(pair.b))
        line = interpolate(test, pair.a, near_b, evaluation.points, label=job.name)
        row = replace(row, line=line)
        if evaluation.repair:
            assert pair.module_a is not None  # `compare` takes repair=True for modules alone
            assert pair.module_b is not None
            parents = [pair.module_a, with_near_phases(pair.graph, pair.a, solution.apply(pair.module_b))]
            repaired = test.evaluate(repair(average(parents), parents, setup.task))
            row = replace(row, repaired_loss=repaired.loss, repaired_metric=repaired.metric)
    except Exception as error:  # the model, the data and the loss are the user's
        return replace(row, status=ERROR, reason=f"the result could not be evaluated: {explain_error(error)}")
    return row


# ---------------------------------------------------------------------- for executors


def setup_bytes(setup: ComparisonSetup, jobs: Sequence[Job]) -> bytes:
    """Return a setup and its jobs as bytes; `ComparisonError` if something cannot be pickled."""
    pair = setup.pair
    parts = {
        "the graph": pair.graph.to_json(),
        "the weights": (dict(pair.a), dict(pair.b)),
        "model A": pair.module_a,
        "model B": pair.module_b,
        "the task": setup.task,
        "the task test=": setup.evaluation,
        "the device": setup.device,
        "the solvers": tuple(jobs),
    }
    return packed(parts, ComparisonError)


def run_job_from_bytes(data: bytes, index: int) -> ComparisonRow:
    """Run one job of `setup_bytes`; called in the worker."""
    graph, (a, b), module_a, module_b, task, evaluation, device, jobs = unpacked(data)
    pair = Pair(SymmetryGraph.from_json(graph), a, b, module_a, module_b)
    return run_job(ComparisonSetup(pair, task, evaluation, device), jobs[index])


# ---------------------------------------------------------------------- for the file of rows


ROWS = Format("alignkit.comparison-rows", "file of rows", "compare(..., path=...)", ComparisonError, RowsHeader)


def open_rows(path: str | PathLike[str], setup: ComparisonSetup) -> RowFile[ComparisonRow]:
    """Open the file to which the rows of a comparison go; weights count in full. See `RowFile`."""
    identity = {
        "graph": setup.pair.graph.fingerprint,
        "weights of A": digest_of(sorted(setup.pair.a.items())),
        "weights of B": digest_of(sorted(setup.pair.b.items())),
        "task": digest_of_task(setup.task),
        "task for the test": digest_of_task(setup.test),
        "points": setup.evaluation.points,
        "repair": setup.evaluation.repair,
        "device": str(setup.where),
    }
    return RowFile(path, ROWS, identity, ComparisonRow.from_dict)
