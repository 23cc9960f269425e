"""``alignkit transport``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import alignkit
from alignkit.cli import switches
from alignkit.cli.attached import Carrying, refuse
from alignkit.cli.runner import Runner, task_arguments
from alignkit.errors import UsageError

ROLES = ("the base that was tuned", "the same after tuning", "the base that got it")
"""What the networks are in the model card of the result."""


@switches.command
def transport(
    base_a: Annotated[Path, typer.Argument(help="The base that was fine-tuned.")],
    tuned_a: Annotated[Path, typer.Argument(help="What is carried: the same after fine-tuning, or an adapter.")],
    base_b: Annotated[Path, typer.Argument(help="The base that gets it.")],
    output: switches.OutputSwitch,
    architecture: switches.ArchitectureSwitches,
    kinds: switches.SymmetrySwitches,
    solving: switches.SolverSwitches,
    data: switches.TaskSwitches,
    job: switches.JobSwitches,
    scale: Annotated[float, typer.Option("--scale", help="Factor of the task vector; -1 takes it away.")] = 1.0,
    alignment: Annotated[Path | None, typer.Option("--alignment", help="Saved alignment of the bases.")] = None,
    save_alignment: switches.SaveAlignmentSwitch = None,
    layouts: Annotated[
        str | None,
        typer.Option(
            "--layouts",
            help="What is carried are tensors: JSON with the layout of each, or one word such as @layers.3.",
        ),
    ] = None,
    optimizer: Annotated[
        bool,
        typer.Option("--optimizer", help="What is carried is the state of an optimiser: a .pt file, or one with it."),
    ] = False,
    names: Annotated[
        Path | None,
        typer.Option("--names", help="JSON list of all parameters in the order in which the optimiser got them."),
    ] = None,
    dtype: switches.DtypeSwitch = None,
    memory: switches.MemorySwitch = None,
) -> None:
    """Carry a fine-tune, an adapter or a probe over to another base.

    Example: alignkit transport base_a.pt tuned_a.pt base_b.pt -o tuned_b.pt --spec spec.json

    A folder of peft with a LoRA adapter is carried as one. With --layouts the second file holds tensors that stand on
    axes of base A, such as steering vectors, probes and sparse autoencoders. With --optimizer it holds what an
    optimiser of base A remembers, so that training goes on in the order of base B.

    With --task the losses are told, and running statistics such as those of BatchNorm are recomputed on its inputs.
    Files appear whole or not at all, and none is replaced without --force.
    """
    data.check()
    if alignment is not None and (solving.options or save_alignment):
        raise UsageError("--alignment brings an alignment, so there is nothing to solve and nothing to save.")
    if names is not None and not optimizer:
        raise UsageError("--names says the order of an optimiser's parameters: it goes with --optimizer.")
    if optimizer or layouts is not None or alignkit.jobs.Adapter.is_at(tuned_a):
        what = "--optimizer" if optimizer else "an adapter" if layouts is None else "--layouts"
        refuse(
            what,
            {
                "--layouts": optimizer and layouts is not None,
                "--task": data.task is not None,
                "--repair": data.repair,
                "--scale": scale != 1,
                "--dtype": dtype is not None,
            },
        )
        carrying = Carrying(
            base_a, tuned_a, base_b, output, architecture, kinds, solving, job, alignment, save_alignment, memory
        )  # fmt: skip
        if optimizer:
            return carrying.optimizer(names)
        return carrying.adapter() if layouts is None else carrying.tensors(layouts)
    switches.check_memory(memory, {"--task": data.task is not None})
    solver = None if alignment else solving.solver
    with Runner("transport", job, {"--output": output, "--save-alignment": save_alignment}, like=base_b) as run:
        paths, bases = [base_a, tuned_a, base_b], {0: 0, 1: 0}
        files = run.open(paths, architecture, kinds, solver=solver, bases=bases, dtype=dtype, memory=memory)
        check = run.check_function(files, 2) if memory is None else None
        before, after, target = files.weights
        known = None if alignment is None else alignkit.Alignment.load(alignment, files.graph)
        carried = alignkit.transport(
            files.graph, before, target, tuned=after, alignment=known, scale=scale, dtype=dtype,
            **task_arguments(files, data), **solving.arguments,
        )  # fmt: skip
        record = run.record(files, carried)
        card = alignkit.jobs.model_card(
            alignkit.jobs.card_sources(files), output, "A fine-tune that was carried from one base to another.", ROLES,
            {"Scale": f"{scale:g}"}, carried.explain(),
        )  # fmt: skip
        with run.file_set.collecting():
            files.write(output, carried.network, like=2, overwrite=job.force, record=record, card=card)
            if save_alignment is not None:
                carried.alignment.save(save_alignment)
        named = {"base A": base_a, "tuned A": tuned_a, "base B": base_b, "output": output, "task": data.task or "none"}
        pair = files.graph.bind(before, target) if memory is None else None
        return run.finish(carried, f"{tuned_a} carried to {base_b}", files, named=named, pair=pair, check=check)
