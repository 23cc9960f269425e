"""``alignkit compare``."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from alignkit.cli.graphs import check_fit, described, open_input, show_plan, write_report
from alignkit.cli.inputs import check_free, check_report, load_task, parse_options
from alignkit.cli.switches import ArchitectureSwitches, DeviceSwitch, OptionSwitch, Shown, TaskSwitch, command
from alignkit.jobs.compare.compare import compare as compare_solvers
from alignkit.jobs.compare.comparison import ComparisonRow
from alignkit.jobs.estimate import plan
from alignkit.plugins.observers import progress
from alignkit.plugins.plugin_registry import list_solvers
from alignkit.reports import comparison_report


@command
def compare(
    a: Annotated[Path, typer.Argument(help="Reference: a weights file or a folder.", show_default=False)],
    b: Annotated[Path, typer.Argument(help="The network to be aligned to it.", show_default=False)],
    architecture: ArchitectureSwitches,
    shown: Shown,
    solver: Annotated[
        list[str] | None, typer.Option("--solver", help="Solver or chain; repeatable. Default: all that need no task.")
    ] = None,
    task: TaskSwitch = None,
    test: Annotated[
        str | None, typer.Option("--test", help="The same for barrier and accuracy. Default: that of --task.")
    ] = None,
    seed: Annotated[list[int] | None, typer.Option("--seed", min=0, help="Seed; repeatable. Default: 0.")] = None,
    points: Annotated[int, typer.Option("--points", min=3, help="Places on the line from A to B, odd.")] = 25,
    repair: Annotated[
        bool, typer.Option("--repair", help="Measure the average after repair on --task, too; needs --model.")
    ] = False,
    jobs: Annotated[int, typer.Option("--jobs", "-j", min=1, help="Processes that solve at the same time.")] = 1,
    resume: Annotated[
        Path | None,
        typer.Option("--resume", help="JSON-lines file of rows: written to, and gone on from if it exists."),
    ] = None,
    picture: Annotated[Path | None, typer.Option("--picture", help="Where it is drawn: .png, .svg or .pdf.")] = None,
    option: OptionSwitch = None,
    device: DeviceSwitch = None,
) -> None:
    """Solve one pair with several solvers and show what came out in one table.

    Example: [bold]alignkit compare a.safetensors b.safetensors --spec spec.json --picture table.png[/bold]

    The identity is always there, and with a task activation matching too. A solver that fails is a row with the reason.
    """
    check_free({"--picture": picture}, shown.force)
    check_report(shown.report, shown.force)
    options = parse_options(option or [])
    left, right = open_input(a), open_input(b)
    facts = described(architecture, left, read=not shown.dry_run)
    wanted = solver or [name for name, info in list_solvers().items() if task is not None or not info.needs.task]
    if shown.dry_run:
        check_fit(facts, [left, right])
        files = [str(path) for path in (picture, resume, shown.report) if path]
        size, reads = left.checkpoint.nbytes, (str(a), str(b))
        show_plan(plan(facts.graph, "compare", solver=wanted, bytes_each=size, reads=reads, writes=files), shown)
        return
    data, held_out = (None if text is None else load_task(text) for text in (task, test))
    pair = facts.graph.bind(facts.known(left.weights), facts.known(right.weights))
    if repair:
        pair = facts.graph.bind(facts.with_weights(left.weights, a), facts.with_weights(right.weights, b))
    console = Console(stderr=True)

    def report(row: ComparisonRow) -> None:
        if console.is_terminal:
            console.print(f"{row.solver}, seed {row.seed}: {row.status}", markup=False, highlight=False)

    with _executor(jobs) as executor, progress(console=console):
        found = compare_solvers(
            pair,
            wanted,
            data,
            seed or [0],
            executor,
            resume,
            test=held_out,
            points=points,
            repair=repair,
            device=device,
            report=report,
            **options,
        )
    if picture is not None:
        found.plot(picture)
    written = [f"Written: {picture}"] if picture is not None else []
    if shown.report is not None:
        named = {"A": str(a), "B": str(b), "task": task or "none", "device": found.device}
        written += write_report(comparison_report(found, f"Solvers on {b} and {a}", named), shown)
    if shown.as_json:
        typer.echo(found.to_json(), nl=False)
        return
    Console().print(found)
    for line in written:
        typer.echo(line)


@contextmanager
def _executor(jobs: int) -> Iterator[Executor | None]:
    """A pool of fresh processes, or None for one job at a time."""
    if jobs == 1:
        yield None
        return
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as executor:
        yield executor
