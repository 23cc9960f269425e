"""``alignkit fold``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from alignkit.cli import switches
from alignkit.cli.runner import Runner


@switches.command
def fold(
    network: Annotated[Path, typer.Argument(help="The network: a weights file or a folder.")],
    output: switches.OutputSwitch,
    architecture: switches.ArchitectureSwitches,
    job: switches.JobSwitches,
    balance: Annotated[
        bool,
        typer.Option(
            "--balance/--no-balance", help="Bring scales and matrices of spaces, and phases of sines, to one place."
        ),
    ] = True,
    keep_tied: Annotated[
        bool, typer.Option("--keep-tied", help="Leave a head tied to the embedding, and the last gain in its norm.")
    ] = False,
    dtype: switches.DtypeSwitch = None,
    memory: switches.MemorySwitch = None,
) -> None:
    """Rewrite a network exactly, so that more of it can move.

    Example: alignkit fold model -o folded

    Gains, shifts and scales of norms go into the weights beside them, biases that change nothing become 0. The
    architecture stays. A head that is tied to the embedding gets weights of its own, which config.json says. Files
    appear whole or not at all, and none is replaced without --force. With --memory the checkpoint stays on disk: only
    tensors that folds link, such as those of one layer, are in memory together.
    """
    with Runner("fold", job, {"--output": output}, like=network) as run:
        files = run.open(
            [network],
            architecture,
            switches.SymmetrySwitches("all", keep_tied),
            balance=balance,
            dtype=dtype,
            memory=memory,
        )
        (folded,) = files.folded
        with run.file_set.collecting():
            files.write(output, folded.network, like=0, overwrite=job.force, record=run.record(files, folded))
        run.finish(folded, f"{network} folded", files, named={"network": network, "output": output})
