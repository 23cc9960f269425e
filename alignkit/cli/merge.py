"""``alignkit merge``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Annotated, Any, Literal

import torch
import typer
from torch import Tensor

from alignkit.cli.graphs import (
    Described,
    DeviceSwitch,
    ForceSwitch,
    JsonSwitch,
    ModelSwitch,
    OptionSwitch,
    SeedSwitch,
    SolverSwitch,
    SpecSwitch,
    described,
    print_json,
    print_text,
    said_of,
)
from alignkit.cli.inputs import check_outputs, parse_options
from alignkit.errors import UsageError
from alignkit.many import align_many
from alignkit.memory import peak_memory
from alignkit.merge import merge as merge_weights
from alignkit.merge import shares_of
from alignkit.observers import progress
from alignkit.solve import solve
from alignkit.weights import read_weights, write_weights

Weights = dict[str, Tensor]


def merge(
    models: Annotated[
        list[Path], typer.Argument(help="Two or more checkpoints; the first is the reference.", show_default=False)
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Where the merged one is written.", show_default=False)
    ],
    spec: SpecSwitch = None,
    model: ModelSwitch = None,
    weight: Annotated[
        list[float] | None, typer.Option("--weight", help="Share of each model, in their order; repeatable.")
    ] = None,
    method: Annotated[
        str, typer.Option("--method", help="linear: the average; slerp: on the arc, for two models.")
    ] = "linear",
    align: Annotated[bool, typer.Option("--align/--no-align", help="Align the units before merging.")] = True,
    solver: SolverSwitch = "weight_matching",
    option: OptionSwitch = None,
    seed: SeedSwitch = 0,
    device: DeviceSwitch = None,
    as_json: JsonSwitch = False,
    force: ForceSwitch = False,
) -> None:
    """Align checkpoints that do not share a basin, and average them.

    Example: [bold]alignkit merge a.safetensors b.safetensors -o merged.safetensors --model torchvision:resnet18[/bold]

    Reports what alignment gained beside no alignment, what could not be moved, and whether reordering units keeps the
    function (with --model). The file appears whole or not at all, and none is replaced without --force.
    """
    check_outputs({"--output": output}, force)
    if len(models) < 2:
        raise UsageError("merge at least two checkpoints.")
    if method not in ("linear", "slerp"):
        raise UsageError(f"--method {method!r}: take linear or slerp.")
    shares_of(weight, len(models))
    options = parse_options(option or [])
    started = perf_counter()
    with peak_memory(torch.device("cpu")) as memory:
        weights = [read_weights(path) for path in models]
        facts = described(spec, model, weights[0])
        check = facts.function_check(weights[1], models[1])
        aligned = _Aligned(weights, ["Not aligned."], {})
        if align:
            with progress():
                aligned = _align(facts, weights, {"solver": solver, "seed": seed, "device": device, **options})
        how: Literal["linear", "slerp"] = "slerp" if method == "slerp" else "linear"
        merged = merge_weights(aligned.weights, weight, how)
        write_weights(output, merged, {"format": "pt"})
    seconds = perf_counter() - started
    if as_json:
        error = None if check is None else check.error
        facts_of_run = {"seconds": seconds, "peak_memory": memory.peak, "function_error": error}
        print_json({"output": str(output), "models": [str(path) for path in models], **aligned.facts, **facts_of_run})
        return
    used = "" if memory.peak is None else f", {memory.peak / 2**20:.0f} MB of memory"
    print_text(*aligned.lines, said_of(check), *_about_statistics(merged))
    print_text(f"{seconds:.2f} s{used}.", f"Written: {output}")


@dataclass(frozen=True)
class _Aligned:
    """Models in one order of units, and what there is to say about it."""

    weights: Sequence[Weights]
    lines: list[str]
    facts: dict[str, Any]


def _align(facts: Described, weights: Sequence[Weights], arguments: dict[str, Any]) -> _Aligned:
    """Two models as a pair; more with a common place, each aligned to the mean of the others."""
    if len(weights) == 2:
        solution = solve(facts.graph.bind(*weights), **arguments)
        before, after = solution.objective_before, solution.objective_after
        lines = [solution.explain(), f"Squared distance of the two: {before:.6g} unaligned, {after:.6g} aligned."]
        numbers = {"before": before, "after": after, "gain": dict(solution.gain), "uncovered": solution.uncovered}
        return _Aligned([weights[0], solution.apply(weights[1])], lines, numbers)
    many = align_many(facts.graph, weights, **arguments)
    before, after = many.spread_before, many.spread_after
    lines = [
        f"{len(weights)} models, {many.method} with {many.solver}, {len(many.history)} sweeps.",
        f"Mean squared distance of a pair: {before:.6g} unaligned, {after:.6g} aligned.",
    ]
    uncovered = list(facts.graph.uncovered)
    lines += [f"Not covered: {', '.join(uncovered[:20])}{' and more' if len(uncovered) > 20 else ''}."] * bool(
        uncovered
    )
    return _Aligned(many.apply(list(weights)), lines, {"before": before, "after": after, "uncovered": uncovered})


def _about_statistics(merged: Weights) -> list[str]:
    if not any(name.endswith("running_mean") for name in merged):
        return []
    return [
        "BatchNorm statistics were averaged and do not fit the merged network. Recompute them with data before you use "
        "it: alignkit.reset_batchnorm(model, batches)."
    ]
