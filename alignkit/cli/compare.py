"""``alignkit compare``."""

from __future__ import annotations

import multiprocessing
import pkgutil
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from alignkit.cli.graphs import (
    DeviceSwitch,
    ForceSwitch,
    JsonSwitch,
    ModelSwitch,
    OptionSwitch,
    SpecSwitch,
    described,
)
from alignkit.cli.inputs import check_free, parse_options
from alignkit.cli.trace import look_in_this_folder
from alignkit.compare import compare as compare_solvers
from alignkit.comparison import ComparisonRow
from alignkit.errors import UsageError
from alignkit.observers import progress
from alignkit.plugins import solvers
from alignkit.task import Task
from alignkit.weights import read_weights


def compare(
    a: Annotated[Path, typer.Argument(help="Reference: .safetensors, or a .pt state dict.", show_default=False)],
    b: Annotated[Path, typer.Argument(help="The network to be aligned to it.", show_default=False)],
    spec: SpecSwitch = None,
    model: ModelSwitch = None,
    solver: Annotated[
        list[str] | None, typer.Option("--solver", help="Solver or chain; repeatable. Default: all that need no task.")
    ] = None,
    task: Annotated[
        str | None,
        typer.Option("--task", help="Data and loss: package.module:function, which returns an alignkit.Task."),
    ] = None,
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
    as_json: JsonSwitch = False,
    force: ForceSwitch = False,
) -> None:
    """Solve one pair with several solvers and show what came out in one table.

    Example: [bold]alignkit compare a.safetensors b.safetensors --spec spec.json --picture table.png[/bold]

    The identity is always there, and with a task activation matching too. A solver that fails is a row with the reason.
    """
    check_free({"--picture": picture}, force)
    options = parse_options(option or [])
    weights_a, weights_b = read_weights(a), read_weights(b)
    facts = described(spec, model, weights_a)
    data, held_out = (None if text is None else load_task(text) for text in (task, test))
    pair = facts.graph.bind(weights_a, weights_b)
    if repair:
        pair = facts.graph.bind(facts.with_weights(weights_a, a), facts.with_weights(weights_b, b))
    wanted = solver or [name for name, info in solvers().items() if data is not None or not info.needs.task]
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
    if as_json:
        typer.echo(found.to_json(), nl=False)
        return
    Console().print(found)
    if picture is not None:
        typer.echo(f"Written: {picture}")


def load_task(text: str) -> Task:
    """Call the function that ``package.module:function`` names, and return its task.

    Raises:
        UsageError: There is no such function, or it returns something else.
    """
    look_in_this_folder()
    try:
        function = pkgutil.resolve_name(text)
    except (ImportError, AttributeError, ValueError) as error:
        raise UsageError(f"{text!r} names no function: {error}. Write package.module:function.") from error
    made = function() if callable(function) else function
    if not isinstance(made, Task):
        raise UsageError(f"{text} gives a {type(made).__name__}, not an alignkit.Task.")
    return made


@contextmanager
def _executor(jobs: int) -> Iterator[Executor | None]:
    """A pool of fresh processes, or None for one job at a time."""
    if jobs == 1:
        yield None
        return
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as executor:
        yield executor
