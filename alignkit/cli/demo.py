"""``alignkit demo``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from alignkit.jobs.demo import FILES, DemoResult, DemoRow, run_demo


def demo(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the picture, numbers and models.")] = Path(
        "alignkit-demo"
    ),
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of model A; model B has the next one.")] = 0,
    force: Annotated[bool, typer.Option("--force", help="Replace files that no demo wrote.")] = False,
) -> None:
    """Train two small networks on digits, align them with every solver, and show what came out.

    Example: [bold]alignkit demo -o alignkit-demo[/bold]

    No download and no GPU. Results of an earlier demo in the same folder are replaced.
    """
    console = Console()
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        job = bar.add_task("reading digits", total=1.0)

        def report(doing: str, done: float) -> None:
            bar.update(job, description=doing, completed=done)

        result = run_demo(output, seed=seed, force=force, progress=report)
    console.print(table(result))
    for row in result.rows:
        if row.problem is not None:
            console.print(f"{row.solver} did not run: {row.problem}", markup=False, soft_wrap=True)
    console.print(
        f"Test accuracy: A {result.accuracies[0]:.3f}, B {result.accuracies[1]:.3f}. {result.seconds:.1f} s in all.\n"
        f"Written to {output}: {', '.join(FILES)}",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )


def table(result: DemoResult) -> Table:
    """The rows of a demo as a rich table."""
    drawn = Table(title="Two MLPs on digits, B aligned to A", title_justify="left")
    drawn.add_column("solver", no_wrap=True)
    for heading in ("distance² before", "after", "loss barrier", "midpoint accuracy", "seconds"):
        drawn.add_column(heading, justify="right")
    for row in result.rows:
        drawn.add_row(*_cells(row))
    return drawn


def _cells(row: DemoRow) -> list[str]:
    def number(value: float | None, form: str) -> str:
        return "-" if value is None else format(value, form)

    return [
        escape(row.solver),
        number(row.distance_before, ".1f"),
        number(row.distance_after, ".1f"),
        number(row.barrier, ".4f"),
        number(row.midpoint_accuracy, ".3f"),
        number(row.seconds, ".3f"),
    ]
