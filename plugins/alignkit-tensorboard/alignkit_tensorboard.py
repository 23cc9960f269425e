"""TensorBoard for alignkit: the objective of every solve as scalars.

Nothing is written until a folder is named: in the environment variable ``ALIGNKIT_TENSORBOARD``, or by `log_to`.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import alignkit
from alignkit.plugins.observers import watched

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

    from alignkit import Problem, Solution, Solver, Step

VARIABLE = "ALIGNKIT_TENSORBOARD"
"""Environment variable: the folder below which runs are written. Read when a solve starts."""
_numbers = count(1)


class TensorBoard:
    """An observer that writes one run for each solve.

    Args:
        folder: Where runs are written, each in a folder of its own. None: nothing is written.
    """

    def __init__(self, folder: str | os.PathLike[str] | None) -> None:
        self._folder = folder
        self._writers: dict[int, SummaryWriter] = {}
        self._lock = threading.Lock()

    @property
    def folder(self) -> Path | None:
        """Where runs are written."""
        return None if not self._folder else Path(self._folder)

    @alignkit.hookimpl
    def alignkit_solve_started(self, problem: Problem, solver: Solver[Any]) -> None:
        """Open the run."""
        if self.folder is None:
            return
        from torch.utils.tensorboard import SummaryWriter

        writer = SummaryWriter(str(_new_run(self.folder, solver.name, problem.seed)))
        options = {**solver.options.model_dump(mode="json"), "seed": problem.seed}
        writer.add_text("options", "\n".join(f"- {name}: {value}" for name, value in options.items()))
        with self._lock:
            self._writers[id(problem)] = writer

    @alignkit.hookimpl
    def alignkit_solve_step(self, problem: Problem, step: Step) -> None:
        """Write the solver's objective."""
        writer = self._writers.get(id(problem))
        if writer is not None:
            writer.add_scalar("objective", step.objective, step.iteration)

    @alignkit.hookimpl
    def alignkit_solve_finished(self, problem: Problem, solution: Solution | None) -> None:
        """Write what came out, and close the run."""
        with self._lock:
            writer = self._writers.pop(id(problem), None)
        if writer is None:
            return
        try:
            if solution is not None:
                last = solution.history[-1].iteration if solution.history else 1
                writer.add_scalar("squared_distance", solution.objective_before, 0)
                writer.add_scalar("squared_distance", solution.objective_after, last)
                writer.add_scalar("seconds", solution.seconds, last)
                writer.add_text("explanation", "\n".join(f"    {line}" for line in solution.explain().splitlines()))
        finally:
            writer.close()


class _FromEnvironment(TensorBoard):
    """The observer of the installed package: its folder is whatever the environment says at the time."""

    def __init__(self) -> None:
        super().__init__(None)

    @property
    def folder(self) -> Path | None:
        """The folder that the environment variable names."""
        named = os.environ.get(VARIABLE, "").strip()
        return Path(named) if named else None


_installed = _FromEnvironment()


@alignkit.hookimpl
def alignkit_solve_started(problem: Problem, solver: Solver[Any]) -> None:
    """Hand on to the observer of the environment variable."""
    _installed.alignkit_solve_started(problem, solver)


@alignkit.hookimpl
def alignkit_solve_step(problem: Problem, step: Step) -> None:
    """Hand on to the observer of the environment variable."""
    _installed.alignkit_solve_step(problem, step)


@alignkit.hookimpl
def alignkit_solve_finished(problem: Problem, solution: Solution | None) -> None:
    """Hand on to the observer of the environment variable."""
    _installed.alignkit_solve_finished(problem, solution)


@contextmanager
def log_to(folder: str | os.PathLike[str], registry: alignkit.plugins.Registry | None = None) -> Iterator[None]:
    """Write every solve inside the block below ``folder``.

    Args:
        folder: Where runs are written; created when the first solve starts.
        registry: Whose solves. None: those of the process.
    """
    with watched(TensorBoard(folder), registry):
        yield


def _new_run(folder: Path, solver: str, seed: int) -> Path:
    """Make a folder that no other solve writes to, in order of time."""
    time = datetime.now().strftime("%Y%m%d-%H%M%S")
    run = folder / f"{time}-{next(_numbers):04d}-{solver}-seed{seed}"
    try:
        run.mkdir(parents=True)
    except FileExistsError:
        run = run.with_name(f"{run.name}-{os.getpid()}")
        run.mkdir(parents=True)
    return run
