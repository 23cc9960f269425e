"""``alignkit demo``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.progress import TimeElapsedColumn, TimeRemainingColumn

import alignkit
from alignkit.cli import switches
from alignkit.cli.runner import Runner


@switches.command
def demo(
    job: switches.JobSwitches,
    output: switches.OutputFolderSwitch = Path("alignkit-demo"),
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of model A; model B has the next one.")] = 0,
) -> None:
    """Train two small networks and align them by every solver.

    Example: alignkit demo -o alignkit-demo

    No download and no GPU. Results of an earlier demo in the same folder are replaced; files that no demo wrote only
    with --force.
    """
    with Runner("demo", job, {}) as run:
        run.written += [str(output / name) for name in alignkit.jobs.DEMO_FILES]
        if job.dry_run:
            run.end_dry_run(alignkit.jobs.estimate_demo(run.written))
        with job.bar(TimeElapsedColumn(), TimeRemainingColumn(), start="reading digits") as update:

            def report(doing: str, share: float) -> None:
                update(description=doing, completed=share)

            with run.file_set.collecting():
                result = alignkit.jobs.run_demo(output, seed=seed, force=job.force, progress=report)
        run.finish(result, "Two MLPs on digits", named={"output": output})
