"""``alignkit distance``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import alignkit
from alignkit.cli import switches
from alignkit.cli.runner import Runner, load_task
from alignkit.errors import AlignkitError


@switches.command
def distance(
    a: switches.ReferenceArgument,
    b: Annotated[Path, typer.Argument(help="The network to compare with it.")],
    architecture: switches.ArchitectureSwitches,
    kinds: switches.SymmetrySwitches,
    solving: switches.SolverSwitches,
    job: switches.JobSwitches,
    tolerance: Annotated[float, typer.Option(min=0, help="Relative difference that counts as none.")] = 1e-6,
    same: Annotated[bool, typer.Option("--same", help="End with exit code 1 unless B is A up to symmetries.")] = False,
    save_alignment: switches.SaveAlignmentSwitch = None,
    memory: switches.MemorySwitch = None,
    task: switches.TaskSwitch = None,
) -> None:
    """Say how far two networks are apart but for symmetries.

    Example: alignkit distance a.safetensors b.safetensors --model torchvision:resnet18

    With --symmetries all signs, scales, rotations and phases of sines count as well, and what made the networks differ
    is told.
    """
    switches.check_memory(memory, {"--task": task is not None})
    with Runner("distance", job, {"--save-alignment": save_alignment}) as run:
        on_disk = memory is not None  # in memory the job balances, and tells whether scales made them differ
        files = run.open([a, b], architecture, kinds, solver=solving.solver, memory=memory, balance=on_disk)
        pair = files.bind()
        measured = alignkit.distance(pair, tolerance=tolerance, task=load_task(files, task), **solving.arguments)
        if save_alignment is not None:
            with run.file_set.collecting():
                measured.alignment.save(save_alignment)
        named = {"A": a, "B": b, "alignment": save_alignment}
        run.finish(measured, f"{b} and {a}", files, named=named, pair=None if memory else pair)
    if same and not measured.same:
        raise AlignkitError(f"{b} is not {a} up to symmetries: {measured.verdict}.")
