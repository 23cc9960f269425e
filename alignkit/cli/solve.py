"""``alignkit solve``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import alignkit
from alignkit.cli import switches
from alignkit.cli.runner import Runner, load_task


@switches.command
def solve(
    a: switches.ReferenceArgument,
    b: Annotated[Path, typer.Argument(help="Weights to be aligned to A.")],
    output: switches.OutputSwitch,
    architecture: switches.ArchitectureSwitches,
    kinds: switches.SymmetrySwitches,
    solving: switches.SolverSwitches,
    job: switches.JobSwitches,
    init: Annotated[
        Path | None,
        typer.Option(
            "--init",
            help="Where to start: an alignment, a file of --save-alignment; or a solution, a file of Solution.save, "
            "whose soft alignment counts where it has one.",
        ),
    ] = None,
    save_alignment: switches.SaveAlignmentSwitch = None,
    memory: switches.MemorySwitch = None,
    dtype: switches.DtypeSwitch = None,
    task: switches.TaskSwitch = None,
) -> None:
    """Bring the hidden units of B to the order of those of A.

    Example: alignkit solve a.safetensors b.safetensors --model torchvision:resnet18 -o aligned.safetensors

    Solvers that work with data take it from --task. Files appear whole or not at all, and none is replaced without
    --force. After Ctrl-C the best alignment so far is written, and the exit code is 130; a second writes nothing.
    """
    switches.check_memory(memory, {"--task": task is not None})
    with Runner("solve", job, {"--output": output, "--save-alignment": save_alignment}, like=b) as run:
        files = run.open(
            [a, b],
            architecture,
            kinds,
            solver=solving.solver,
            memory=memory,
            dtype=dtype,
        )
        named = {"A": a, "B": b, "output": output}
        start = None if init is None else _read_start(init, files.graph)
        pair = files.bind()
        solution = alignkit.solve(pair, init=start, task=load_task(files, task), **solving.arguments)
        _stop_if_nothing_moved(solution)
        network = files.weights[1]
        aligned = solution.apply(network)
        run.check_rounding(files, {1: aligned})
        with run.file_set.collecting():
            record = run.record(files, solution)
            files.write(output, aligned, like=1, overwrite=job.force, record=record)
        check = run.check_function(files, 1) if job.report and memory is None else None
        if save_alignment is not None:
            with run.file_set.collecting():
                solution.alignment.save(save_alignment)
        run.finish(solution, f"{b} aligned to {a}", files, named=named, pair=None if memory else pair, check=check)
        if solution.status is alignkit.Status.INTERRUPTED:
            raise KeyboardInterrupt


def _read_start(path: Path, graph: alignkit.SymmetryGraph) -> alignkit.Solution | alignkit.Alignment:
    """Read where to start: a solution if the file is one, else an alignment."""
    is_solution = alignkit.checkpoints.format_of(path) == "alignkit.solution"
    return alignkit.Solution.load(path, graph) if is_solution else alignkit.Alignment.load(path, graph)


def _stop_if_nothing_moved(solution: alignkit.Solution) -> None:
    """Let Ctrl-C end the command where the solver had not found anything yet."""
    if solution.status is alignkit.Status.INTERRUPTED and not any(solution.moved.values()):
        raise KeyboardInterrupt
