"""Jobs with ``--memory``: checkpoints stay on disk and pass through memory in pieces."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, TypeAlias

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from alignkit.checkpoints import ByteProgress, OnProgress
from alignkit.cli.graphs import Described, Input
from alignkit.cli.switches import Shown, Solving
from alignkit.errors import UsageError
from alignkit.jobs.from_disk import align_checkpoint, match_checkpoints, merge_checkpoints, parse_memory
from alignkit.solver.solution import Solution

MemorySwitch: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--memory",
        metavar="AMOUNT",
        help="Use at most this beside the program, such as 2GB: checkpoints stay on disk. For weight matching of two.",
        show_default=False,
    ),
]


def check_memory(memory: str | None, solving: Solving, count: int, others: Sequence[str]) -> int | None:
    """The bytes that ``--memory`` allows, None where it is not given.

    Raises:
        UsageError: It is no amount, or something else was asked for that needs whole models.
    """
    if memory is None:
        return None
    given = parse_memory(memory)
    if solving.solver != "weight_matching":
        raise UsageError("--memory is for --solver weight_matching: other solvers hold both networks in memory.")
    if solving.device not in (None, "cpu"):
        raise UsageError("--memory works on the CPU: leave --device out.")
    if count != 2:
        raise UsageError(f"--memory is for two checkpoints, not {count}.")
    if others:
        raise UsageError(f"--memory does not go with {', '.join(others)}, which needs whole networks in memory.")
    return given


def solve_on_disk(
    facts: Described, inputs: Sequence[Input], output: Path, memory: int, solving: Solving, shown: Shown
) -> Solution:
    """Align the second checkpoint to the first and write it.

    Raises:
        SolverError: The memory does not suffice.
        BindError: A checkpoint does not fit the graph.
        WeightsError: The output cannot be written.
    """
    a, b = (one.checkpoint for one in inputs)
    with _bar() as told:
        found = match_checkpoints(facts.graph, a, b, memory, seed=solving.seed, on_progress=told, **solving.options)
        align_checkpoint(output, b, found, memory=memory, on_progress=told, overwrite=shown.force)
    return found


def merge_on_disk(
    facts: Described,
    inputs: Sequence[Input],
    output: Path,
    memory: int,
    solving: Solving,
    shown: Shown,
    shares: Sequence[float] | None,
) -> Solution:
    """Align the second checkpoint to the first and write their average.

    Raises:
        SolverError: The memory does not suffice.
        BindError: A checkpoint does not fit the graph.
        WeightsError: The output cannot be written.
    """
    a, b = (one.checkpoint for one in inputs)
    with _bar() as told:
        found = match_checkpoints(facts.graph, a, b, memory, seed=solving.seed, on_progress=told, **solving.options)
        merge_checkpoints(output, [a, b], [None, found], shares, memory=memory, on_progress=told, overwrite=shown.force)
    return found


@contextmanager
def _bar() -> Iterator[OnProgress]:
    """A bar on the terminal with the time left of the pass that runs; nothing where there is no terminal."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[left]}"))
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        job = bar.add_task("reading", total=1.0, left="")

        def told(progress: ByteProgress) -> None:
            left = "" if progress.remaining is None else f"about {progress.remaining:.0f} s left of this pass"
            bar.update(job, description=progress.stage, completed=progress.fraction, left=left)

        yield told
