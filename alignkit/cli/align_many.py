"""``alignkit align-many``."""

from __future__ import annotations

from typing import Annotated

import typer

import alignkit
from alignkit.cli import switches
from alignkit.cli.outputs import targets_in
from alignkit.cli.runner import Runner, load_task
from alignkit.cli.values import one_of
from alignkit.errors import UsageError
from alignkit.text import plural


@switches.command
def align_many(
    models: switches.ModelsArgument,
    output: switches.OutputFolderSwitch,
    architecture: switches.ArchitectureSwitches,
    kinds: switches.SymmetrySwitches,
    solving: switches.SolverSwitches,
    job: switches.JobSwitches,
    method: Annotated[str, typer.Option("--method", help="reference, merge_many or universe.")] = "merge_many",
    reference: Annotated[int, typer.Option("--reference", min=0, help="Model whose order all take, from 0.")] = 0,
    task: switches.TaskSwitch = None,
    memory: switches.MemorySwitch = None,
    resume: switches.ResumeSwitch = None,
    dtype: switches.DtypeSwitch = None,
) -> None:
    """Bring several models to one common order of units.

    Example: alignkit align-many a.pt b.pt c.pt -o aligned --spec spec.json --method universe

    Each model is written to the output folder under its own name; average them as you like then. Files appear whole or
    not at all, and none is replaced without --force.
    """
    if len(models) < 2:
        raise UsageError("align at least two checkpoints.")
    how = one_of("--method", method, ("reference", "merge_many", "universe"))
    wholly = {"--task": task is not None, "--method universe": method == "universe"}
    switches.check_memory(memory, wholly)
    if reference >= len(models):
        raise UsageError(f"--reference {reference}: there are {plural(len(models), 'model')}, counted from 0.")
    targets = targets_in(models, output, job.force)
    with Runner("align-many", job, {"--output": output}, fills_from=0, kept=resume) as run:
        run.written[:1] = map(str, targets)
        files = run.open(
            models,
            architecture,
            kinds,
            solver=solving.solver,
            memory=memory,
            dtype=dtype,
        )
        check = run.check_function(files, 0) if memory is None else None
        networks = files.weights
        many = alignkit.align_many(
            files.graph, *networks, method=how, reference=reference, task=load_task(files, task), path=resume,
            on_progress=run.on_progress, **solving.arguments,
        )  # fmt: skip
        aligned = many.apply(networks)
        run.check_rounding(files, dict(enumerate(aligned)))
        record = run.record(files, many)
        with run.file_set.collecting():
            files.write_set(output, aligned, first=0, overwrite=job.force, record=lambda _: record)
        names = [str(path) for path in models]
        title = f"{plural(len(models), 'model')} in one order of units"
        named = {"models": names, "output": list(map(str, targets))}
        run.finish(many, title, files, named=named, names=names, check=check)
