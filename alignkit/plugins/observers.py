"""Observers that come with alignkit: a progress bar, and lines in the log.

Nothing is drawn and nothing is logged unless someone asks. The command line asks for the progress bar, which needs a
terminal or a notebook; in Python::

    with alignkit.progress():                       # bars for solves that take over two seconds
        alignkit.solve(pair, solver="sinkhorn", task=task)

    with alignkit.plugins.logged():                         # one line a solve, one a step at level DEBUG
        alignkit.solve(pair)

Both are observers as any package can write them, see `alignkit.plugins.hookspecs`.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from alignkit.arguments import check_arguments
from alignkit.plugins.hookspecs import hookimpl
from alignkit.plugins.plugin_registry import Registry
from alignkit.plugins.plugin_registry import registry as process_registry
from alignkit.solver import Problem, Solution, Solver, Step

AFTER = 2.0
"""Seconds that a solve may take before a bar appears."""

log = logging.getLogger("alignkit")


@contextmanager
@check_arguments
def watched(observer: object, registry: Registry | None = None) -> Iterator[None]:
    """Let an object with observer hooks watch every solve inside the block, and no longer.

    Args:
        observer: An object with functions marked ``@alignkit.hookimpl``.
        registry: Whose solves. None: those of the process.

    Raises:
        PluginError: It implements no hook, or one wrongly.
    """
    registry = process_registry() if registry is None else registry
    name = registry.register(observer)
    try:
        yield
    finally:
        registry.unregister(name)


@contextmanager
@check_arguments
def progress(
    after: float = AFTER, *, console: Console | None = None, registry: Registry | None = None
) -> Iterator[None]:
    """Show a bar with step, objective and time left for every solve inside the block that takes longer than ``after``.

    Args:
        after: Seconds before the bar appears; 0 shows it at once.
        console: Where it is drawn. None: the standard error stream. On what is neither a terminal nor a notebook, such
            as a file, nothing is drawn, unless the console is made with ``force_terminal=True``.
        registry: Whose solves. None: those of the process.
    """
    console = console if console is not None else Console(stderr=True)
    if not (console.is_terminal or console.is_jupyter):
        yield
        return
    bar = ProgressBar(after, console)
    try:
        with watched(bar, registry):
            yield
    finally:
        bar.close()


@contextmanager
@check_arguments
def logged(registry: Registry | None = None) -> Iterator[None]:
    """Log every solve inside the block to the logger ``"alignkit"``: start and end at INFO, steps at DEBUG.

    Where the lines go, and which, is decided by the handlers and levels of `logging`, as always.
    """
    with watched(LogLines(), registry):
        yield


class ProgressBar:
    """One line for each solve that is slow enough: solver, step, objective, time, time left.

    A line appears after ``after`` seconds; solves in threads get a line each. Where the solver says which share of its
    work is done, as in restarts and steps of gradient descent, the bar shows it, with the time that is left at most.
    """

    def __init__(self, after: float, console: Console) -> None:
        self._after = after
        self._lock = threading.RLock()
        self._lines: dict[int, TaskID] = {}
        self._timers: dict[int, threading.Timer] = {}
        texts = [TextColumn(f"{{task.fields[{name}]}}") for name in ("step", "objective")]
        columns = (TextColumn("{task.description}"), BarColumn(), *texts, TimeElapsedColumn(), TimeRemainingColumn())
        self._progress = Progress(*columns, console=console, transient=True)

    @hookimpl
    def alignkit_solve_started(self, problem: Problem, solver: Solver[Any]) -> None:
        """Prepare a line, and show it when the time has come."""
        key = id(problem)
        with self._lock:
            line = self._progress.add_task(solver.name, total=None, visible=self._after <= 0, step="", objective="")
            self._lines[key] = line
            if self._after <= 0:
                self._show(key)
                return
            timer = self._timers[key] = threading.Timer(self._after, self._show, (key,))
            timer.daemon = True
            timer.start()

    @hookimpl
    def alignkit_solve_step(self, problem: Problem, solver: Solver[Any], step: Step) -> None:
        """Move the line on."""
        texts: dict[str, Any] = {
            "step": _place_of(step, getattr(solver.options, "max_steps", None)),
            "objective": f"objective {step.objective:.6g}",
        }
        known: dict[str, Any] = {} if step.share is None else {"completed": step.share, "total": 1.0}
        with self._lock:
            if (line := self._lines.get(id(problem))) is not None:
                self._progress.update(line, **known, **texts)

    @hookimpl
    def alignkit_solve_finished(self, problem: Problem) -> None:
        """Remove the line."""
        with self._lock:
            if (timer := self._timers.pop(id(problem), None)) is not None:
                timer.cancel()
            if (line := self._lines.pop(id(problem), None)) is not None:
                self._progress.remove_task(line)
            if not self._lines and self._progress.live.is_started:
                self._progress.stop()

    def close(self) -> None:
        """Remove everything from the screen."""
        with self._lock:
            for timer in self._timers.values():
                timer.cancel()
            self._timers.clear()
            if self._progress.live.is_started:
                self._progress.stop()

    def _show(self, key: int) -> None:
        with self._lock:
            if key in self._lines:  # it may have finished just now
                self._progress.update(self._lines[key], visible=True)
                self._progress.start()  # does nothing where bars are on the screen already


def _place_of(step: Step, most: int | None) -> str:
    """Say where a solve is: by its steps, of which there are ``most``; or by its runs, each of which has as many."""
    if step.note and step.share is not None and (most is None or step.share != step.iteration / most):
        return step.note
    return f"step {step.iteration}" + ("" if most is None else f"/{most}")


class LogLines:
    """Solves as lines in the log."""

    @hookimpl
    def alignkit_solve_started(self, problem: Problem, solver: Solver[Any]) -> None:
        """One line at INFO."""
        log.info("%s starts: %s, seed %d, on %s", solver.name, solver, problem.seed, problem.device)

    @hookimpl
    def alignkit_solve_step(self, solver: Solver[Any], step: Step) -> None:
        """One line at DEBUG."""
        note = f" ({step.note})" if step.note else ""
        log.debug("%s step %d: objective %.9g%s", solver.name, step.iteration, step.objective, note)

    @hookimpl
    def alignkit_solve_finished(self, solver: Solver[Any], solution: Solution | None) -> None:
        """One line: at INFO, at WARNING if the solver failed or ran out of steps."""
        if solution is None:
            log.warning("%s was interrupted", solver.name)
            return
        level = logging.INFO if solution.status.name == "OK" else logging.WARNING
        ends = "%s ends with %s: squared distance %.6g -> %.6g in %.3g s and %d steps%s"
        distances = solution.objective_before, solution.objective_after
        detail = f": {solution.detail}" if solution.detail else ""
        spent = solution.seconds, len(solution.history)
        log.log(level, ends, solver.name, solution.status.name, *distances, *spent, detail)
