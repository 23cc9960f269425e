"""``alignkit align-many``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from alignkit.cli.graphs import (
    check_fit,
    described,
    open_input,
    print_json,
    print_text,
    said_of,
    said_of_unknown,
    show_plan,
    write_report,
)
from alignkit.cli.inputs import check_report, load_task, targets_in
from alignkit.cli.switches import ArchitectureSwitches, Shown, Solving, TaskSwitch, command
from alignkit.errors import UsageError
from alignkit.jobs.align_many import METHODS
from alignkit.jobs.align_many import align_many as align
from alignkit.jobs.estimate import plan
from alignkit.plugins.observers import progress
from alignkit.reports import many_report


@command
def align_many(
    models: Annotated[
        list[Path], typer.Argument(help="Two or more checkpoints, files or folders.", show_default=False)
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder for the reordered models.", show_default=False)
    ],
    architecture: ArchitectureSwitches,
    solving: Solving,
    shown: Shown,
    method: Annotated[
        str, typer.Option("--method", help="reference, merge_many, or universe: all at once, in no order.")
    ] = "merge_many",
    reference: Annotated[
        int, typer.Option("--reference", min=0, help="Number of the model whose order all take; the first is 0.")
    ] = 0,
    task: TaskSwitch = None,
) -> None:
    """Bring several models to one common order of units, so that maps between them agree around every circle.

    Example: [bold]alignkit align-many a.pt b.pt c.pt -o aligned --spec spec.json --method universe[/bold]

    Each model is written to the output folder under its own name; average them as you like then. Files appear whole or
    not at all, and none is replaced without --force.
    """
    if len(models) < 2:
        raise UsageError("align at least two checkpoints.")
    if method not in METHODS:
        raise UsageError(f"--method {method!r}: take {', '.join(METHODS)}.")
    if reference >= len(models):
        raise UsageError(f"--reference {reference}: there are {len(models)} models, counted from 0.")
    targets = targets_in(models, output, shown.force)
    check_report(shown.report, shown.force)
    arguments = solving.arguments
    inputs = [open_input(path) for path in models]
    facts = described(architecture, inputs[0], read=not shown.dry_run)
    names = [str(path) for path in models]
    if shown.dry_run:
        check_fit(facts, inputs)
        count, size = len(models), inputs[0].checkpoint.nbytes
        files = [str(path) for path in (*targets, shown.report) if path]
        made = plan(
            facts.graph, "align-many", models=count, solver=solving.solver, bytes_each=size, reads=names, writes=files
        )
        show_plan(made, shown)
        return
    weights = [facts.known(one.weights) for one in inputs]
    check = facts.function_check(weights[0], models[0])
    with progress():
        many = align(
            facts.graph,
            weights,
            method,
            reference=reference,
            task=None if task is None else load_task(task),
            **arguments,
        )
    output.mkdir(exist_ok=True)
    for given, path, moved in zip(inputs, targets, many.apply(weights), strict=True):
        given.write_like(path, moved, shown.force)
    written = [f"Written to {output}"]
    if shown.report is not None:
        report = many_report(many, names, f"{len(models)} models in one order of units", check=check)
        written += write_report(report, shown)
    if shown.as_json:
        moved_units = {name: sum(a.moved().values()) for name, a in zip(names, many.alignments, strict=True)}
        print_json(
            {
                "output": [str(path) for path in targets],
                "method": many.method,
                "before": many.spread_before,
                "after": many.spread_after,
                "units_moved": moved_units,
                "function_error": None if check is None else check.error,
                "seconds": many.seconds,
            }
        )
        return
    print_text(
        f"{len(models)} models, {many.method} with {many.solver}, {len(many.history)} sweeps in {many.seconds:.3g} s.",
        f"Mean squared distance of a pair: {many.spread_before:.6g} unaligned, {many.spread_after:.6g} aligned.",
        said_of(check),
        *said_of_unknown(facts),
        *written,
    )
