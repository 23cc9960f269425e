"""``alignkit merge``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import alignkit
from alignkit.cli import switches
from alignkit.cli.attached import merge_adapters, refuse
from alignkit.cli.merge_recipe import Plan, read_plan
from alignkit.cli.runner import Runner, task_arguments
from alignkit.cli.values import one_of
from alignkit.errors import UsageError


@switches.command
def merge(
    *,
    models: Annotated[
        list[Path] | None,
        typer.Argument(help="Two or more checkpoints, files or folders; the first is the reference."),
    ] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Where the result is written.")] = None,
    recipe: Annotated[
        Path | None,
        typer.Option(
            "--recipe",
            help="Read what is not given here from a YAML file, or from the record of an earlier merge: its output, or "
            "alignkit.json in it.",
        ),
    ] = None,
    architecture: switches.ArchitectureSwitches,
    kinds: switches.SymmetrySwitches,
    solving: switches.SolverSwitches,
    data: switches.TaskSwitches,
    job: switches.JobSwitches,
    weight: Annotated[
        list[str] | None,
        typer.Option(
            "--weight",
            metavar="NUMBER",
            help="Share of each model, or factor of each task vector. PATTERN=NUMBER,NUMBER gives others to tensors of "
            "some names.",
        ),
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
    stretch: Annotated[
        int,
        typer.Option(
            "--stretch",
            metavar="STEPS",
            help="Move free scales and matrices of the second model for so many steps on the inputs of --task. With "
            "--symmetries all.",
        ),
    ] = 0,
    align: Annotated[bool, typer.Option("--align/--no-align", help="Align the units before merging.")] = True,
    tokenizer: Annotated[
        str | None, typer.Option("--tokenizer", metavar="MODEL", help="Which of the models gives the tokenizer.")
    ] = None,
    memory: switches.MemorySwitch = None,
    resume: switches.ResumeSwitch = None,
    dtype: switches.DtypeSwitch = None,
) -> None:
    """Align checkpoints of one architecture and average them.

    Example: alignkit merge ./bert-a ./bert-b -o ./bert-m

    Folders of transformers, diffusers and timm are traced from their config.json; weights files need --model or
    --spec. Reports what alignment gained beside no alignment, what could not be moved, and whether reordering units
    keeps the function. With --task also the losses, and running statistics such as those of BatchNorm are recomputed on
    its inputs. LoRA adapters of one base are averaged by what they add to each weight. The output appears whole or not
    at all, and none is replaced without --force. All this can stand in a recipe, and alignkit.json is one.
    """
    for path in models or ():
        if path.suffix in (".yaml", ".yml") and path.is_file():
            raise UsageError(f"{path} is a recipe: say --recipe {path}, and where the result goes by --output.")
    plan = read_plan(recipe, job)
    if all(map(alignkit.jobs.Adapter.is_at, plan.models)):
        others = {"--task": plan.data.task, "--repair": plan.data.repair, "--memory": plan.recipe.memory}
        others |= {
            "--no-align": not plan.recipe.align,
            "--stretch": bool(plan.recipe.stretch),
            "--dtype": plan.recipe.dtype,
            "--tokenizer": plan.recipe.tokenizer,
            "--resume": resume is not None,
        }
        refuse("adapters", {switch: bool(value) for switch, value in others.items()})
        merge_adapters(plan, job)
    else:
        _merge(plan, job, resume)


def _merge(plan: Plan, job: switches.JobSwitches, resume: Path | None) -> None:
    """Merge networks."""
    recipe, output, memory = plan.recipe, plan.output, plan.recipe.memory
    method = one_of("--method", recipe.method, ("linear", "slerp", "task_arithmetic", "ties", "dare"))
    plan.data.check()
    if recipe.stretch and recipe.task is None:
        raise UsageError("--stretch runs the networks on data: say --task package.module:function.")
    switches.check_memory(memory, {"--task": bool(recipe.task)})
    with Runner("merge", job, {"--output": output}, like=plan.models[0], kept=resume) as run:
        bases = {} if method in ("linear", "slerp") else dict.fromkeys(range(len(plan.models)), 0)
        files = run.open(
            plan.models, plan.architecture, plan.kinds, solver=plan.solving["solver"], memory=memory, bases=bases,
            dtype=recipe.dtype, tokenizer=recipe.tokenizer,
        )  # fmt: skip
        check = run.check_function(files, 1) if memory is None else None
        merged = alignkit.merge(
            files.graph, *files.weights, weights=files.weights_for(recipe.weights, method), method=method,
            dtype=recipe.dtype, density=recipe.density, stretch=recipe.stretch, path=resume,
            on_progress=run.on_progress,
            **task_arguments(files, plan.data), **plan.solving,
        )  # fmt: skip
        run.check_rounding(files, dict(enumerate(merged.aligned)))
        record = run.record(files, merged, recipe.parameters())
        run.tell_changes(record, plan.earlier)
        card = plan.card(files, merged.explain())
        with run.file_set.collecting():
            files.write(output, merged.network, like=0, overwrite=job.force, record=record, card=card)
        names = list(recipe.models)
        named = {"models": names, "output": output, "method": recipe.method, "task": recipe.task or "none"}
        return run.finish(merged, f"Merge of {', '.join(names)}", files, named=named, names=names, check=check)
