"""``alignkit solve``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import alignkit
from alignkit.cli import switches
from alignkit.cli.runner import Runner, byte_bar


@switches.command
def solve(
    a: switches.ReferenceArgument,
    b: Annotated[Path, typer.Argument(help="Weights to be aligned to A.")],
    output: switches.OutputSwitch,
    architecture: switches.ArchitectureSwitches,
    solving: switches.SolverSwitches,
    job: switches.JobSwitches,
    init: Annotated[Path | None, typer.Option("--init", help="Saved alignment to start from.")] = None,
    save_alignment: switches.SaveAlignmentSwitch = None,
    memory: switches.MemorySwitch = None,
) -> None:
    """Reorder the hidden units of B so that its weights come close to those of A.

    Example: [bold]alignkit solve a.safetensors b.safetensors --model torchvision:resnet18 -o aligned.safetensors[/bold]

    Files appear whole or not at all, and none is replaced without --force. After Ctrl-C the best alignment so far is
    written, and the exit code is 130; a second Ctrl-C writes nothing.
    """
    limit = solving.memory_limit(memory, 2, {"--init": init is not None})
    with Runner("solve", job, {"--output": output, "--save-alignment": save_alignment}, like=b) as run:
        files = run.open([a, b], architecture, solver=solving.solver, memory=limit)
        named = {"A": a, "B": b, "output": output}
        if limit is not None:
            with byte_bar() as report, run.file_set.collecting():
                solution = alignkit.jobs.solve_files(
                    files, output, limit, on_progress=report, overwrite=job.force, **solving.disk_arguments
                )
            _stop_if_nothing_moved(solution)
            pair = check = None
        else:
            pair = files.pair
            start = None if init is None else alignkit.Alignment.load(init, files.graph)
            solution = alignkit.solve(pair, init=start, **solving.arguments)
            _stop_if_nothing_moved(solution)
            with run.file_set.collecting():
                files.write(output, solution.apply(files.weights[1]), like=1, overwrite=job.force)
            check = run.check_function(files, 1) if job.report else None
        if save_alignment is not None:
            with run.file_set.collecting():
                solution.alignment.save(save_alignment)
        run.finish(solution, f"{b} aligned to {a}", files, named=named, pair=pair, check=check)
        if solution.status is alignkit.Status.INTERRUPTED:
            raise KeyboardInterrupt


def _stop_if_nothing_moved(solution: alignkit.Solution) -> None:
    """Let Ctrl-C end the command where the solver had not found anything yet."""
    if solution.status is alignkit.Status.INTERRUPTED and not any(solution.moved.values()):
        raise KeyboardInterrupt
