"""``alignkit canonical-form``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import alignkit
from alignkit.cli import switches
from alignkit.cli.runner import Runner


@switches.command
def canonical_form(
    network: Annotated[Path, typer.Argument(help="The network: a weights file or a folder.")],
    output: switches.OutputSwitch,
    architecture: switches.ArchitectureSwitches,
    kinds: switches.SymmetrySwitches,
    job: switches.JobSwitches,
    tolerance: Annotated[
        float, typer.Option("--tolerance", min=0, help="Relative difference below which units are not told apart.")
    ] = 1e-6,
    dtype: switches.DtypeSwitch = None,
) -> None:
    """Bring a network to a form that all its equals share, without a reference.

    Example: alignkit canonical-form model.safetensors -o form.safetensors --spec spec.json

    Copies of one network whose units are in another order come to the same weights. It computes the same. With
    --symmetries all so do copies with other signs, rotations and scales, up to rounding. Units of which nothing tells
    the order are told. Of networks that differ by more than that, canonicalize brings many to one reference. Files
    appear whole or not at all, and none is replaced without --force.
    """
    with Runner("canonical-form", job, {"--output": output}, like=network) as run:
        files = run.open([network], architecture, kinds, dtype=dtype)
        run.check_function(files, 0)
        given = files.folded[0] if files.folded else files.weights[0]
        formed = alignkit.canonical_form(given, files.graph, tolerance=tolerance)
        run.check_rounding(files, {0: formed.network})
        with run.file_set.collecting():
            files.write(output, formed.network, like=0, overwrite=job.force, record=run.record(files, formed))
        run.finish(formed, f"{network} in its form", files, named={"network": network, "output": output})
