"""One job of a comparison: a solver and a seed become a row, here or in another process."""

from __future__ import annotations

import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from alignkit.errors import ComparisonError
from alignkit.graph import Pair, SymmetryGraph
from alignkit.jobs.compare.comparison import ERROR, ComparisonRow
from alignkit.jobs.merge import merge
from alignkit.jobs.peak_memory import peak_memory
from alignkit.jobs.repair import repair
from alignkit.jobs.solve import solve
from alignkit.plugins.plugin_registry import Registry
from alignkit.solver import Solver
from alignkit.solver.solution import Solution
from alignkit.tasks.interpolation import Interpolation, interpolate
from alignkit.tasks.task import TaskResult
from alignkit.text import explain_error

if TYPE_CHECKING:
    from alignkit.tasks.task import Task


@dataclass(frozen=True, eq=False)
class ComparisonSetup:
    """What all jobs of a comparison share.

    Attributes:
        pair: The two networks.
        task: For the solvers that need one.
        test: For barrier, AUC and the middle.
        points: Places on the line.
        device: Where solvers work; None is where A's tensors are.
        registry: Whose observers watch; None is that of the process.
        repair: Whether the average is also measured after `alignkit.repair` on the data of the task.
    """

    pair: Pair
    task: Task | None
    test: Task | None
    points: int
    device: str | None = None
    registry: Registry | None = None
    repair: bool = False

    @property
    def where(self) -> torch.device:
        """The device on which solvers work."""
        if self.device is not None:
            return torch.device(self.device)
        return next((tensor.device for tensor in self.pair.a.values()), torch.device("cpu"))


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
        """The options as plain values: of the solver, or of each stage of a chain."""
        every = [{**stage.options.model_dump(mode="json"), "seed": self.seed} for stage in self.stages]
        if len(every) == 1:
            return {"solver": self.stages[0].name, **every[0]}
        return {f"{i} {stage.name}": every[i - 1] for i, stage in enumerate(self.stages, 1)}

    def failed(self, reason: str) -> ComparisonRow:
        """The row of a job that could not be run."""
        return ComparisonRow(self.name, self.seed, ERROR, " ".join(reason.split()), options=self.settings)


def run_job(plan: ComparisonSetup, job: Job) -> ComparisonRow:
    """Solve and evaluate. Whatever goes wrong is said in the row."""
    try:
        with peak_memory(plan.where) as memory:
            solution = solve(
                plan.pair,
                solver=list(job.stages),
                task=plan.task,
                device=plan.device,
                seed=job.seed,
                throw=False,
                registry=plan.registry,
            )
    except Exception as error:  # what a solver needs is missing, or the device does not work
        return job.failed(explain_error(error))
    if solution.status.failed:
        return ComparisonRow(
            job.name,
            job.seed,
            solution.status.name,
            f"{solution.status.value} {solution.detail}".rstrip(),
            options=job.settings,
        )
    line, repaired, reason = _evaluated(plan, job, solution)
    return ComparisonRow(
        solver=job.name,
        seed=job.seed,
        status=ERROR if reason else solution.status.name,
        reason=reason,
        distance_before=solution.objective_before,
        distance=solution.objective_after,
        line=line,
        repaired_loss=None if repaired is None else repaired.loss,
        repaired_metric=None if repaired is None else repaired.metric,
        seconds=solution.seconds,
        peak_memory=memory.peak,
        moved=sum(solution.moved.values()),
        options=job.settings,
    )


def _evaluated(
    plan: ComparisonSetup, job: Job, solution: Solution
) -> tuple[Interpolation | None, TaskResult | None, str]:
    """The line, the repaired average if that is wanted, and what went wrong."""
    if plan.test is None:
        return None, None, ""
    line: Interpolation | None = None
    try:
        aligned = solution.apply(plan.pair.b)
        line = interpolate(plan.test, plan.pair.a, aligned, plan.points, label=job.name)
        return line, _repaired(plan, solution) if plan.repair else None, ""
    except Exception as error:  # the model, the data and the loss are the user's
        return line, None, f"the result could not be evaluated: {explain_error(error)}"


def _repaired(plan: ComparisonSetup, solution: Solution) -> TaskResult:
    """The average of A and aligned B, repaired on the task's data and measured on the test's."""
    a, b, test = plan.pair.module_a, plan.pair.module_b, plan.test
    if a is None or b is None or test is None:
        raise ComparisonError("repair=True runs the merged network on data: pass task=, and bind modules.")
    parents = [a, solution.apply(b)]
    return test.evaluate(repair(merge(parents), parents, plan.task))


# ---------------------------------------------------------------------- for executors


def plan_bytes(plan: ComparisonSetup, jobs: Sequence[Job]) -> bytes:
    """A plan and its jobs as bytes, tensors by value: no file handles or shared memory that could run out.

    Raises:
        ComparisonError: Something cannot be pickled; the message names it.
    """
    pair = plan.pair
    parts = {
        "the graph": pair.graph.to_json(),
        "the weights": (dict(pair.a), dict(pair.b)),
        "model A": pair.module_a,
        "model B": pair.module_b,
        "the task": plan.task,
        "the task test=": plan.test if plan.test is not plan.task else None,
        "the same task": plan.test is plan.task,
        "the settings": (plan.points, plan.device, plan.repair),
        "the solvers": tuple(jobs),
    }
    try:
        return pickle.dumps(parts, pickle.HIGHEST_PROTOCOL)
    except Exception as error:
        guilty = ", ".join(name for name, part in parts.items() if not _can_be_pickled(part))
        raise ComparisonError(
            f"{guilty or 'the comparison'} cannot be sent to the executor: {error}. Classes and functions have to be "
            "defined at the top level of a module that the workers can import, not in a function or as a lambda; or "
            "run without an executor."
        ) from error


def run_job_from_bytes(packed: bytes, index: int) -> ComparisonRow:
    """Run one job of `plan_bytes`; called in the worker."""
    plan, jobs = _unpacked(pickle.loads(packed))
    return run_job(plan, jobs[index])


def _unpacked(parts: Mapping[str, Any]) -> tuple[ComparisonSetup, Sequence[Job]]:
    graph = SymmetryGraph.from_json(parts["the graph"])
    a, b = parts["the weights"]
    pair = Pair(graph, a, b, parts["model A"], parts["model B"])
    points, device, wants_repair = parts["the settings"]
    test = parts["the task"] if parts["the same task"] else parts["the task test="]
    return ComparisonSetup(pair, parts["the task"], test, points, device, repair=wants_repair), parts["the solvers"]


def _can_be_pickled(part: object) -> bool:
    try:
        pickle.dumps(part)
    except Exception:
        return False
    return True
