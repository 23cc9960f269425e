"""``alignkit rotate``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import alignkit
from alignkit.cli import switches
from alignkit.cli.runner import Runner
from alignkit.cli.values import one_of

WAYS = ("hadamard", "random", "none")


@switches.command
def rotate(
    network: Annotated[Path, typer.Argument(help="The network: a weights file or a folder.")],
    output: switches.OutputSwitch,
    architecture: switches.ArchitectureSwitches,
    job: switches.JobSwitches,
    residual: Annotated[
        str, typer.Option("--residual", help="The residual stream: hadamard, random or none.")
    ] = "hadamard",
    heads: Annotated[
        str, typer.Option("--heads", help="Spaces inside heads, values above all: hadamard, random or none.")
    ] = "hadamard",
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of matrices and signs.")] = 0,
    keep_tied: Annotated[
        bool, typer.Option("--keep-tied", help="Leave a head tied to the embedding, and the last gain in its norm.")
    ] = False,
) -> None:
    """Fold and rotate a network, which spreads outliers; it computes the same.

    Example: alignkit rotate model -o rotated

    What quantisers write by hand for each architecture, for any that can be traced, and proved by running it. The
    architecture stays. A head that is tied to the embedding gets weights of its own, which config.json says. Files
    appear whole or not at all, and none is replaced without --force.
    """
    how = {"residual": one_of("--residual", residual, WAYS), "heads": one_of("--heads", heads, WAYS)}
    with Runner("rotate", job, {"--output": output}, like=network) as run:
        files = run.open([network], architecture, switches.SymmetrySwitches("all", keep_tied))
        module, args, kwargs = files.own_example(0) or (None, (), {})
        rotated = alignkit.rotate(files.given[0], files.graph, *args, model=module, seed=seed, **how, **kwargs)
        with run.file_set.collecting():
            files.write(output, rotated.network, like=0, overwrite=job.force, record=run.record(files, rotated))
        run.finish(rotated, f"{network} rotated", files, named={"network": network, "output": output})
