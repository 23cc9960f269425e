"""How much a command says: results and bars, nothing but errors, or what its solvers do as well."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn

import alignkit
from alignkit.errors import UsageError

if TYPE_CHECKING:
    from alignkit.checkpoints import ByteProgress

LOG = logging.getLogger("alignkit")
AFTER = 1.0
"""Seconds of a pass before its bar appears."""


@dataclass(frozen=True)
class TellingSwitches:
    """How much is said. Bars need a terminal, and stand on the standard error stream, as notes do."""

    quiet: Annotated[
        bool,
        typer.Option("--quiet", "-q", help="Print errors and warnings only, and what a switch asks for."),
    ] = False
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Print what is done meanwhile, and each step of solvers.")
    ] = False

    def __post_init__(self) -> None:
        if self.quiet and self.verbose:
            raise UsageError("--quiet and --verbose are opposites: give one of them.")

    def say(self, text: str) -> None:
        """Print a result."""
        if not self.quiet:
            self.show(text)

    def show(self, text: str) -> None:
        """Print what a switch asks for, as it is: without markup or line breaks of its own."""
        Console(highlight=False, markup=False, soft_wrap=True).print(text)

    def note(self, text: str) -> None:
        """Print what is no result on the standard error stream."""
        if not self.quiet:
            typer.echo(text, err=True)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Show a bar for every solve in the block that takes long; its steps as lines instead with ``--verbose``."""
        if self.quiet:
            yield
        elif self.verbose:
            with _lines_of_log(), alignkit.plugins.logged():
                yield
        else:
            with alignkit.progress():
                yield

    @contextmanager
    def bar(
        self, *columns: str | ProgressColumn, total: float | None = 1.0, start: str = ""
    ) -> Iterator[Callable[..., None]]:
        """Show a bar while the block runs; nothing where there is no terminal.

        The function that it yields takes what a task of rich takes: ``completed=``, ``total=``, ``description=``.
        """
        console = Console(stderr=True)
        shown = (TextColumn("{task.description}"), BarColumn(), *columns)
        hidden = self.quiet or not console.is_terminal
        with Progress(*shown, console=console, transient=True, disable=hidden) as progress:
            task = progress.add_task(start, total=total)
            yield lambda **values: progress.update(task, **values)

    @contextmanager
    def passes(self) -> Iterator[Callable[[ByteProgress], None]]:
        """Show how far passes over networks have come, and what is left of them: those that take more than a second."""
        console, stage = Console(stderr=True), ""
        hidden = self.quiet or not console.is_terminal
        bars = Progress(TextColumn("{task.description}"), BarColumn(), console=console, transient=True, disable=hidden)
        line = bars.add_task("", total=1.0)

        def report(progress: ByteProgress) -> None:
            nonlocal stage
            if progress.stage != stage:
                stage = progress.stage
                LOG.info(stage)
            if progress.fraction == 1:
                bars.stop()
            elif progress.seconds >= AFTER:
                left = "" if progress.remaining is None else f", about {progress.remaining:.0f} s left"
                bars.update(line, description=f"{stage}{left}", completed=progress.fraction)
                bars.start()  # does nothing where it is shown already

        try:
            yield report
        finally:
            bars.stop()


@contextmanager
def _lines_of_log() -> Iterator[None]:
    """Print the log of alignkit on the standard error stream, with the seconds since the block began."""
    began, before = perf_counter(), LOG.level

    class TimedLines(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            typer.echo(f"[{perf_counter() - began:8.2f} s] {record.getMessage()}", err=True)

    handler = TimedLines()
    LOG.addHandler(handler)
    LOG.setLevel(logging.DEBUG)
    try:
        yield
    finally:
        LOG.removeHandler(handler)
        LOG.setLevel(before)
