"""``alignkit transport``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import alignkit
from alignkit.cli.runner import Runner
from alignkit.cli.switches import ArchitectureSwitches, JobSwitches, SaveAlignmentSwitch, SolverSwitches, command
from alignkit.errors import UsageError


@command
def transport(
    base_a: Annotated[Path, typer.Argument(help="The base that was fine-tuned.", show_default=False)],
    tuned_a: Annotated[Path, typer.Argument(help="The same after fine-tuning.", show_default=False)],
    base_b: Annotated[Path, typer.Argument(help="The base that gets the fine-tune.", show_default=False)],
    output: Annotated[Path, typer.Option("--output", "-o", help="Where tuned B is written.", show_default=False)],
    architecture: ArchitectureSwitches,
    solving: SolverSwitches,
    switches: JobSwitches,
    scale: Annotated[float, typer.Option("--scale", help="Factor of the task vector; -1 takes it away.")] = 1.0,
    alignment: Annotated[
        Path | None, typer.Option("--alignment", help="Saved alignment of base B to base A, instead of solving.")
    ] = None,
    save_alignment: SaveAlignmentSwitch = None,
) -> None:
    """Carry a fine-tune to another base: align the bases once, move the task vector.

    Example: [bold]alignkit transport base_a.pt tuned_a.pt base_b.pt -o tuned_b.pt --spec spec.json[/bold]

    Files appear whole or not at all, and none is replaced without --force.
    """
    if alignment is not None and (solving.options or save_alignment):
        raise UsageError("--alignment brings an alignment, so there is nothing to solve and nothing to save.")
    with Runner("transport", switches, {"--output": output, "--save-alignment": save_alignment}, like=base_b) as run:
        files = run.open([base_a, tuned_a, base_b], architecture, solver=None if alignment else solving.solver)
        check = run.check_function(files, 2)
        before, after, target = files.weights
        known = None if alignment is None else alignkit.Alignment.load(alignment, files.graph)
        carried = alignkit.transport(
            files.graph, before, target, tuned=after, alignment=known, scale=scale, **solving.arguments
        )
        files.write(output, carried.network, like=2, overwrite=switches.force)
        if save_alignment is not None:
            carried.alignment.save(save_alignment)
        named = {"base A": base_a, "tuned A": tuned_a, "base B": base_b, "output": output}
        pair = files.graph.bind(before, target)
        run.finish(carried, f"{tuned_a} carried to {base_b}", files, named=named, pair=pair, check=check)
