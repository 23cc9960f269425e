"""``alignkit compare``."""

from __future__ import annotations

import multiprocessing
import signal
import sys
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

import alignkit
from alignkit.cli import switches
from alignkit.cli.outputs import check_picture
from alignkit.cli.runner import Runner, load_task
from alignkit.cli.values import solver_options

if TYPE_CHECKING:
    from alignkit.jobs import ComparisonRow


@dataclass(frozen=True)
class ComparisonSwitches:
    """Which solvers are compared, and how they are judged."""

    solver: Annotated[list[str] | None, typer.Option("--solver", help="Solver or chain; repeatable.")] = None
    task: switches.TaskSwitch = None
    test: Annotated[str | None, typer.Option("--test", help="The same for the barrier. Default: --task.")] = None
    seed: Annotated[list[int] | None, typer.Option("--seed", min=0, help="Seed; repeatable. Default: 0.")] = None
    points: Annotated[int, typer.Option("--points", min=3, help="Points on the line from A to B, odd.")] = 25
    repair: Annotated[bool, typer.Option("--repair", help="Measure after repair on --task, too.")] = False
    option: switches.OptionSwitch = None
    device: switches.DeviceSwitch = None


@switches.command
def compare(
    a: switches.ReferenceArgument,
    b: Annotated[Path, typer.Argument(help="The network to be aligned to it.")],
    architecture: switches.ArchitectureSwitches,
    kinds: switches.SymmetrySwitches,
    compared: ComparisonSwitches,
    job: switches.JobSwitches,
    jobs: Annotated[int, typer.Option("--jobs", "-j", min=1, help="Processes that solve at the same time.")] = 1,
    resume: Annotated[Path | None, typer.Option(help="JSON lines: rows are kept here and resumed from.")] = None,
    picture: Annotated[Path | None, typer.Option("--picture", help="Where it is drawn: .png, .svg or .pdf.")] = None,
) -> None:
    """Solve one pair with several solvers, in one table.

    Example: alignkit compare a.safetensors b.safetensors --spec spec.json --picture table.png

    The identity is always there, and with a task activation matching too. A solver that fails is a row with the reason.
    """
    check_picture(picture, job.force)
    options = solver_options(compared.option)
    pool = nullcontext() if jobs == 1 else _workers(jobs)
    with Runner("compare", job, {}, kept=resume) as run, pool as executor:
        run.written += [] if picture is None else [str(picture)]
        files = run.open([a, b], architecture, kinds, solver=compared.solver or sorted(alignkit.list_solvers()))
        task, test = load_task(files, compared.task), load_task(files, compared.test)
        comparison = alignkit.compare(
            files.graph.bind(files.module(0), files.module(1)) if compared.repair else files.bind(),
            solvers=compared.solver,
            task=task,
            seeds=compared.seed or [0],
            executor=executor,
            path=resume,
            evaluation=alignkit.Evaluation(test, compared.points, compared.repair),
            report=lambda row: _show_row(row, job),
            on_progress=run.on_progress,
            device=compared.device,
            **options,
        )
        if picture is not None:
            with run.file_set.collecting():
                comparison.plot(picture)
        named = {"A": a, "B": b, "task": compared.task or "none"}
        run.finish(comparison, f"Solvers on {b} and {a}", files, named=named)


def _workers(count: int) -> ProcessPoolExecutor:
    """Start processes that Ctrl-C ends at once and without a word: this one says what there is to say."""
    context, end = multiprocessing.get_context("spawn"), (signal.SIGINT, signal.SIG_DFL)
    return ProcessPoolExecutor(count, mp_context=context, initializer=signal.signal, initargs=end)


def _show_row(row: ComparisonRow, job: switches.JobSwitches) -> None:
    if job.verbose or sys.stderr.isatty():
        job.note(f"{row.solver}, seed {row.seed}: {row.status}")
