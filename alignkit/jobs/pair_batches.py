"""Batches of pairs that `alignkit.solve_many` solves together, here or in another process."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any, TypeAlias

import torch
from torch import Tensor

from alignkit.errors import SolverError
from alignkit.graph import Pair, SymmetryGraph
from alignkit.graph.elements.alignment import Alignment
from alignkit.jobs.executors import packed, unpacked
from alignkit.jobs.solve import StartingPoint, settings_of, solve_stages
from alignkit.jobs.solved_pairs import SolvedPair
from alignkit.jobs.solver_run import accounted, plain_options
from alignkit.matching.soft_alignment import SoftAlignment
from alignkit.plugins.plugin_registry import registry as process_registry
from alignkit.solver import Outcome, Problem, Solver, Status, Step
from alignkit.solver.solution import Solution
from alignkit.solvers.coordinate_ascent import TINY
from alignkit.solvers.stacked_matching import STACK_ELEMENTS, StackedMatching, can_be_stacked, distances2
from alignkit.solvers.weight_matching import WeightMatching
from alignkit.tasks.task import Task
from alignkit.text import explain_error


@dataclass(frozen=True, eq=False)
class PairJob:
    """A pair with its number, and where it starts."""

    index: int
    pair: Pair
    start: StartingPoint


PairBatch: TypeAlias = list[PairJob]
STACKED = 16
"""Maximum number of pairs in a stack: what is kept of more leaves the caches, and Ctrl-C loses them."""


@dataclass(frozen=True, eq=False)
class PairSetup:
    """What all pairs share. Solvers work on ``device``; None is where a pair's tensors are."""

    graph: SymmetryGraph
    stages: tuple[Solver[Any], ...]
    task: Task | None
    device: str | None
    seed: int

    def settings(self, index: int) -> dict[str, Any]:
        """Return the options with which a pair is solved, as plain values."""
        return settings_of(self.stages, self.seed + index)

    @property
    def matching(self) -> WeightMatching | None:
        """Weight matching, if that is all, in a form in which pairs can be stacked."""
        stage = self.stages[0]
        if len(self.stages) > 1 or type(stage) is not WeightMatching or not can_be_stacked(self.graph):
            return None
        options = stage.options
        plain = options.start == "centre" and not options.restarts and options.products != "float32"
        return stage if plain else None

    def batches(self, jobs: Iterable[PairJob]) -> Iterator[PairBatch]:
        """Put together pairs that can be stacked; others are batches of their own."""
        most = 1 if self.matching is None else STACKED
        batch: PairBatch = []
        for job in jobs:
            size = 2 * sum(tensor.numel() for tensor in job.pair.a.values())
            full = len(batch) >= most or (len(batch) + 1) * size > STACK_ELEMENTS
            if batch and (full or _kind(batch[0]) != _kind(job)):
                yield batch
                batch = []
            batch.append(job)
        if batch:
            yield batch

    def to_bytes(self) -> bytes:
        """Return everything as bytes; `SolverError` if something cannot be pickled."""
        parts = {
            "the graph": self.graph.to_json(),
            "the solvers": self.stages,
            "the task": self.task,
            "the device": self.device,
            "the seed": self.seed,
        }
        return packed(parts, SolverError)


def solve_packed_batch(setup: bytes, batch: bytes) -> list[tuple[int, dict[str, Any] | None, str]]:
    """Solve a batch in a worker; solutions are returned as rows."""
    graph, *rest = unpacked(setup)
    own = PairSetup(SymmetryGraph.from_json(graph), *rest)
    jobs = [
        PairJob(index, Pair(own.graph, *parts), _unpacked_start(own.graph, *start))
        for index, parts, start in unpacked(batch)
    ]
    solved = solve_batch(own, jobs)
    return [(pair.index, None if pair.solution is None else pair.solution.to_row(), pair.reason) for pair in solved]


def solve_batch(setup: PairSetup, batch: PairBatch) -> Iterator[SolvedPair]:
    """Solve pairs: stacked where there are several, otherwise one after the other. Ctrl-C ends it."""
    stacked = _solve_stack(setup, batch) if len(batch) > 1 else {}
    for job in batch:
        yield SolvedPair(job.index, stacked[job.index]) if job.index in stacked else _solve_alone(setup, job)


def _unpacked_start(
    graph: SymmetryGraph, elements: Mapping[str, Tensor] | None, soft: Mapping[str, Tensor] | None
) -> StartingPoint:
    """Return the start of a pair from what `StartingPoint.parts` made of it."""
    alignment = None if elements is None else Alignment(graph, elements)
    return StartingPoint(alignment, None if soft is None else SoftAlignment(graph, soft))


def _solve_alone(setup: PairSetup, job: PairJob) -> SolvedPair:
    index = job.index
    try:
        solution = solve_stages(
            job.pair,
            setup.stages,
            job.start,
            setup.task,
            device=setup.device,
            seed=setup.seed + index,
            throw=False,
            registry=process_registry(),
        )
    except Exception as error:  # what the solver needs is missing, or the weights overflow
        return SolvedPair(index, None, explain_error(error))
    reason = f"{solution.status.value} {solution.detail}".rstrip()
    if solution.status.failed:
        return SolvedPair(index, None, reason)
    return SolvedPair(index, solution, reason if solution.status is Status.INTERRUPTED else "")


def _solve_stack(setup: PairSetup, batch: PairBatch) -> dict[int, Solution]:
    """Solve a stack of pairs by weight matching, by their numbers.

    Pairs of sizes that need care, and those that it would leave in a worse place than they were, are left out.
    """
    matching, graph, started = setup.matching, setup.graph, perf_counter()
    assert matching is not None, "others come alone"
    where = batch[0].pair.device if setup.device is None else torch.device(setup.device)
    a, b = (_stacked([getattr(job.pair, side) for job in batch]) for side in ("a", "b"))
    before, stack = distances2(graph, a, b), StackedMatching(graph, a, b, where)
    squares, unaligned = _total(stack.squares, len(batch)), _total(before, len(batch))
    usable = torch.isfinite(squares + unaligned) & (squares > TINY)
    if not usable.all():
        rest = [job for job, good in zip(batch, usable.tolist(), strict=True) if good]
        return _solve_stack(setup, rest) if rest else {}
    starts = [job.start.alignment.elements for job in batch if job.start.alignment is not None]  # of all or of none
    start = _stacked(starts) if starts else {}
    at_start = _total(distances2(graph, a, b, start), len(batch)) if start else unaligned
    run = stack.run(matching.options.rtol, matching.options.max_steps, start)
    after = distances2(graph, a, b, run.elements)
    aligned = _total(after, len(batch))
    seconds = (perf_counter() - started) / len(batch)
    solutions: dict[int, Solution] = {}
    for at, job in enumerate(batch):
        if job.start.alignment is None and aligned[at] > unaligned[at]:
            continue
        alignment = Alignment(graph, {name: element[at] for name, element in run.elements.items()})
        sweeps = [float(distance[at]) for distance, swept in zip(run.distances, run.swept, strict=True) if swept[at]]
        outcome = Outcome(
            alignment,
            Status.OK if run.converged[at] else Status.MAX_STEPS,
            {"runs": 1.0, "sweeps": float(len(sweeps))},
        )
        solution = solutions[job.index] = accounted(
            outcome,
            *(
                {name: float(sums[name][at]) if name in sums else 0.0 for name in graph.tensors}
                for sums in (before, after)
            ),
            objective_init=float(at_start[at]),
            solver=matching.name,
            options={**plain_options(matching), "seed": setup.seed + job.index},
            history=tuple(Step(number, distance) for number, distance in enumerate(sweeps, 1)),
            seconds=seconds,
        )
        init, soft_init = job.start
        problem = Problem(job.pair, init, setup.task, where, seed=setup.seed + job.index, soft_init=soft_init)
        _notify(problem, matching, solution)
    return solutions


def _stacked(sides: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.stack([side[name] for side in sides]) for name in sides[0]}


def _total(sums: Mapping[str, Tensor], count: int) -> Tensor:
    """Add up the sums of all tensors, for each of some pairs."""
    return sum(sums.values(), start=torch.zeros(count, dtype=torch.float64))


def _kind(job: PairJob) -> tuple[bool, list[tuple[torch.dtype, torch.device]]]:
    """Return what has to be the same in pairs that are stacked."""
    sides = (job.pair.a, job.pair.b)
    return job.start.alignment is None, [(tensor.dtype, tensor.device) for side in sides for tensor in side.values()]


def _notify(problem: Problem, solver: Solver[Any], solution: Solution) -> None:
    """Tell observers of a solve what they would have seen of it."""
    registry = process_registry()
    registry.notify("alignkit_solve_started", problem=problem, solver=solver)
    for step in solution.history:
        registry.notify("alignkit_solve_step", problem=problem, solver=solver, step=step)
    registry.notify("alignkit_solve_finished", problem=problem, solver=solver, solution=solution)
