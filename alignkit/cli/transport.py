"""``alignkit transport``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import alignkit
from alignkit.cli import switches
from alignkit.cli.runner import Runner, task_arguments
from alignkit.errors import UsageError


@switches.command
def transport(
    base_a: Annotated[Path, typer.Argument(help="The base that was fine-tuned.")],
    tuned_a: Annotated[Path, typer.Argument(help="The same after fine-tuning.")],
    base_b: Annotated[Path, typer.Argument(help="The base that gets the fine-tune.")],
    output: switches.OutputSwitch,
    architecture: switches.ArchitectureSwitches,
    kinds: switches.SymmetrySwitches,
    solving: switches.SolverSwitches,
    data: switches.TaskSwitches,
    job: switches.JobSwitches,
    scale: Annotated[float, typer.Option("--scale", help="Factor of the task vector; -1 takes it away.")] = 1.0,
    alignment: Annotated[Path | None, typer.Option("--alignment", help="Saved alignment of the bases.")] = None,
    save_alignment: switches.SaveAlignmentSwitch = None,
) -> None:
    """Carry a fine-tune over to another base.

    Example: alignkit transport base_a.pt tuned_a.pt base_b.pt -o tuned_b.pt --spec spec.json

    With --task the losses are told, and running statistics such as those of BatchNorm are recomputed on its inputs.
    Files appear whole or not at all, and none is replaced without --force.
    """
    data.check()
    if alignment is not None and (solving.options or save_alignment):
        raise UsageError("--alignment brings an alignment, so there is nothing to solve and nothing to save.")
    solver = None if alignment else solving.solver
    with Runner("transport", job, {"--output": output, "--save-alignment": save_alignment}, like=base_b) as run:
        files = run.open([base_a, tuned_a, base_b], architecture, kinds, solver=solver)
        check = run.check_function(files, 2)
        before, after, target = files.weights
        known = None if alignment is None else alignkit.Alignment.load(alignment, files.graph)
        carried = alignkit.transport(
            files.graph, before, target, tuned=after, alignment=known, scale=scale, **task_arguments(data),
            **solving.arguments,
        )  # fmt: skip
        with run.file_set.collecting():
            files.write(output, carried.network, like=2, overwrite=job.force)
            if save_alignment is not None:
                carried.alignment.save(save_alignment)
        named = {"base A": base_a, "tuned A": tuned_a, "base B": base_b, "output": output, "task": data.task or "none"}
        pair = files.graph.bind(before, target)
        run.finish(carried, f"{tuned_a} carried to {base_b}", files, named=named, pair=pair, check=check)
