"""``alignkit merge``."""

from __future__ import annotations

from typing import Annotated

import typer

import alignkit
from alignkit.cli import switches
from alignkit.cli.attached import merge_adapters, refuse
from alignkit.cli.runner import Runner, byte_bar, task_arguments
from alignkit.cli.values import one_of
from alignkit.errors import UsageError


@switches.command
def merge(
    models: switches.ModelsArgument,
    output: switches.OutputSwitch,
    architecture: switches.ArchitectureSwitches,
    kinds: switches.SymmetrySwitches,
    solving: switches.SolverSwitches,
    data: switches.TaskSwitches,
    job: switches.JobSwitches,
    weight: Annotated[
        list[float] | None, typer.Option("--weight", help="Share of each model, or factor of each task vector.")
    ] = None,
    method: Annotated[
        str,
        typer.Option(
            "--method",
            help="linear; slerp (two models); task_arithmetic, ties, dare (first: the base); of adapters products or "
            "factors.",
        ),
    ] = "linear",
    density: Annotated[
        float, typer.Option("--density", help="Entries of task vectors that ties and dare keep, up to 1.")
    ] = 0.5,
    align: Annotated[bool, typer.Option("--align/--no-align", help="Align the units before merging.")] = True,
    memory: switches.MemorySwitch = None,
    dtype: switches.DtypeSwitch = None,
) -> None:
    """Align checkpoints of one architecture and average them.

    Example: alignkit merge ./bert-a ./bert-b -o ./bert-m

    Folders of transformers, diffusers and timm are traced from their config.json; weights files need --model or
    --spec. Reports what alignment gained beside no alignment, what could not be moved, and whether reordering units
    keeps the function. With --task also the losses, and running statistics such as those of BatchNorm are recomputed on
    its inputs. LoRA adapters of one base are averaged by what they add to each weight. The output appears whole or not
    at all, and none is replaced without --force.
    """
    if len(models) < 2:
        raise UsageError("merge at least two checkpoints.")
    if all(map(alignkit.jobs.Adapter.is_at, models)):
        others = {"--task": data.task is not None, "--repair": data.repair, "--memory": memory is not None}
        refuse("adapters", {**others, "--no-align": not align, "--dtype": dtype is not None})
        adapted = one_of("--method", "products" if method == "linear" else method, ("products", "factors"))
        return merge_adapters(models, output, job, weight, adapted)
    how = one_of("--method", method, ("linear", "slerp", "task_arithmetic", "ties", "dare"))
    data.check()
    switches.check_memory(memory, {"--task": data.task is not None, f"--method {method}": method != "linear"})
    arguments = solving.arguments if align else {"solver": "identity"}
    with Runner("merge", job, {"--output": output}, like=models[0]) as run:
        files = run.open(models, architecture, kinds, solver=arguments["solver"], memory=memory, dtype=dtype)
        check = run.check_function(files, 1) if memory is None else None
        with byte_bar(memory) as report:
            merged = alignkit.merge(
                files.graph, *files.networks(memory), weights=weight, method=how, dtype=dtype, density=density,
                on_progress=report, **task_arguments(files, data), **arguments,
            )  # fmt: skip
            run.check_rounding(files, dict(enumerate(merged.aligned)))
            with run.file_set.collecting():
                files.write(output, merged.network, like=0, overwrite=job.force, on_progress=report)
        names = [str(path) for path in models]
        named = {"models": names, "output": output, "method": method, "task": data.task or "none"}
        return run.finish(merged, f"Merge of {', '.join(names)}", files, named=named, names=names, check=check)
