"""``alignkit merge``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from time import perf_counter
from typing import Annotated, Any

import torch
import typer
from torch import Tensor

from alignkit.cli.aligned import Aligned, unaligned
from alignkit.cli.aligned import align as align_models
from alignkit.cli.graphs import (
    Described,
    check_fit,
    described,
    is_folder,
    open_input,
    print_json,
    print_text,
    said_of,
    said_of_unknown,
    show_plan,
    write_report,
)
from alignkit.cli.inputs import check_outputs, check_report, load_task
from alignkit.cli.on_disk import MemorySwitch, check_memory, merge_on_disk
from alignkit.cli.switches import ArchitectureSwitches, Shown, Solving, TaskSwitch, command
from alignkit.errors import UsageError
from alignkit.graph.proof.verify import Verification
from alignkit.jobs.estimate import plan
from alignkit.jobs.merge import merge as merge_weights
from alignkit.jobs.merge import shares_of
from alignkit.jobs.peak_memory import peak_memory
from alignkit.plugins.observers import progress
from alignkit.tasks.task import Task
from alignkit.text import readable_bytes


@command
def merge(
    models: Annotated[
        list[Path],
        typer.Argument(
            help="Two or more checkpoints, files or folders; the first is the reference.", show_default=False
        ),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Where the merged one is written.", show_default=False)
    ],
    architecture: ArchitectureSwitches,
    solving: Solving,
    shown: Shown,
    weight: Annotated[
        list[float] | None, typer.Option("--weight", help="Share of each model, in their order; repeatable.")
    ] = None,
    method: Annotated[
        str, typer.Option("--method", help="linear: the average; slerp: on the arc, for two models.")
    ] = "linear",
    align: Annotated[bool, typer.Option("--align/--no-align", help="Align the units before merging.")] = True,
    task: TaskSwitch = None,
    memory: MemorySwitch = None,
) -> None:
    """Align checkpoints that do not share a basin, and average them.

    Example: [bold]alignkit merge ./bert-a ./bert-b -o ./bert-m[/bold]

    Folders of transformers, diffusers and timm are traced from their config.json; weights files need --model or
    --spec. Reports what alignment gained beside no alignment, what could not be moved, and whether reordering units
    keeps the function. With --task also the losses. The output appears whole or not at all, and none is replaced
    without --force.
    """
    check_outputs({"--output": output}, shown.force, folder=is_folder(models[0]))
    check_report(shown.report, shown.force)
    if len(models) < 2:
        raise UsageError("merge at least two checkpoints.")
    if method not in ("linear", "slerp"):
        raise UsageError(f"--method {method!r}: take linear or slerp.")
    shares_of(weight, len(models))
    arguments = solving.arguments
    wanted = {"--task": task is not None, "--no-align": not align, "--method slerp": method == "slerp"}
    limit = check_memory(memory, solving, len(models), [switch for switch, given in wanted.items() if given])
    inputs = [open_input(path) for path in models]
    facts = described(architecture, inputs[0], read=not shown.dry_run and limit is None)
    if shown.dry_run:
        check_fit(facts, inputs)
        show_plan(
            plan(
                facts.graph,
                "merge",
                models=len(models),
                solver=solving.solver if align else None,
                memory=limit,
                bytes_each=inputs[0].checkpoint.nbytes,
                reads=[str(path) for path in models],
                writes=[str(path) for path in (output, shown.report) if path],
            ),
            shown,
        )
        return
    started = perf_counter()
    check: Verification | None = None
    with peak_memory(torch.device("cpu")) as used_memory:
        if limit is not None:
            solution = merge_on_disk(facts, inputs, output, limit, solving, shown, weight)
            aligned, merged = Aligned(facts.graph, [], solution), list(inputs[0].checkpoint)
            checked = "Function check: not done, it holds the whole network, which --memory is there to avoid."
        else:
            weights = [facts.known(one.weights) for one in inputs]
            check = facts.function_check(weights[1], models[1])
            checked = said_of(check)
            aligned = _aligned(facts, weights, arguments, align, None if task is None else load_task(task))
            mean = merge_weights(aligned.weights, weight, "slerp" if method == "slerp" else "linear")
            inputs[0].write_like(output, mean, shown.force)
            merged = list(mean)
    seconds = perf_counter() - started
    used = "" if used_memory.peak is None else f", {readable_bytes(used_memory.peak)} of memory"
    written = [f"Written: {output}"]
    if shown.report is not None:
        named = {f"model {i}": str(path) for i, path in enumerate(models)} | {"merged": str(output), "method": method}
        named |= {"task": task or "none", "in all": f"{seconds:.2f} s{used}"}
        names = [str(path) for path in models]
        written += write_report(aligned.report(f"Merge of {', '.join(names)}", names, check, named), shown)
    if shown.as_json:
        error = None if check is None else check.error
        facts_of_run = {"seconds": seconds, "peak_memory": used_memory.peak, "function_error": error}
        print_json({"output": str(output), "models": [str(path) for path in models], **aligned.facts, **facts_of_run})
        return
    print_text(*aligned.text, checked, *said_of_unknown(facts), *_about_statistics(merged))
    print_text(f"{seconds:.2f} s{used}.", *written)


def _aligned(
    facts: Described, weights: list[dict[str, Tensor]], arguments: dict[str, Any], align: bool, task: Task | None
) -> Aligned:
    if not align:
        return unaligned(facts.graph, weights, task)
    with progress():
        return align_models(facts.graph, weights, arguments, task)


def _about_statistics(merged: Sequence[str]) -> list[str]:
    if not any(name.endswith("running_mean") for name in merged):
        return []
    return [
        "BatchNorm statistics were averaged and do not fit the merged network. Recompute them with data before you use "
        "it: alignkit.reset_batchnorm(model, batches)."
    ]
