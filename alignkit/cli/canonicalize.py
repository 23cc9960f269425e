"""``alignkit canonicalize``."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

import alignkit
from alignkit.cli import switches
from alignkit.cli.outputs import targets_in
from alignkit.cli.runner import Runner, load_task
from alignkit.errors import UsageError
from alignkit.text import plural


@switches.command
def canonicalize(
    reference: Annotated[Path, typer.Argument(help="The network whose order of units all take.")],
    *,
    networks: Annotated[list[Path] | None, typer.Argument(help="Checkpoints of the same architecture.")] = None,
    output: switches.OutputFolderSwitch,
    architecture: switches.ArchitectureSwitches,
    kinds: switches.SymmetrySwitches,
    solving: switches.SolverSwitches,
    job: switches.JobSwitches,
    task: switches.TaskSwitch = None,
    memory: switches.MemorySwitch = None,
    dtype: switches.DtypeSwitch = None,
) -> None:
    """Bring many networks to the order of one reference.

    Example: alignkit canonicalize ref.safetensors zoo/*.safetensors -o canonical --spec spec.json

    Each network is written to the output folder under its own name. Weight matching takes whole stacks of small
    networks; other solvers, some of which take data from --task, align one after the other. Files appear whole or not
    at all, and none is replaced without --force.
    """
    if not networks:
        one = "one network alone comes to a form of its own by alignkit canonical-form"
        raise UsageError(f"canonicalize brings networks to a reference: name some behind {reference}; {one}.")
    switches.check_memory(memory, {"--task": task is not None})
    targets = targets_in(networks, output, job.force)
    with Runner("canonicalize", job, {"--output": output}, fills_from=1) as run:
        run.written[:] = map(str, targets)
        files = run.open(
            [reference, *networks],
            architecture,
            kinds,
            solver=solving.solver,
            memory=memory,
            dtype=dtype,
        )
        reference_network, *others = files.weights
        data = load_task(files, task)
        canonical = alignkit.canonicalize(
            files.graph, others, reference_network, task=data, on_progress=run.on_progress, **solving.arguments
        )
        run.check_rounding(files, {index + 1: canonical.network(index) for index in range(len(others))})
        record = run.record(files, canonical)
        with run.file_set.collecting():
            networks_of = map(canonical.network, range(len(canonical)))
            files.write_set(output, networks_of, first=1, overwrite=job.force, record=partial(_record_of, record))
        names = [str(path) for path in networks]
        title = f"{plural(len(names), 'network')} in the order of {reference}"
        run.finish(canonical, title, files, named={"reference": reference, "output": run.written[:]}, names=names)


def _record_of(whole: alignkit.jobs.Record, number: int) -> alignkit.jobs.Record:
    """Return the record of one network of many, which was made from itself and the reference alone."""
    results = dict(whole.results)
    return whole.of_inputs((0, number), {**results.pop("networks")[number - 1], **results})
