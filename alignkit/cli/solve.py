"""``alignkit solve``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from alignkit.alignment import Alignment
from alignkit.cli.graphs import (
    DeviceSwitch,
    ForceSwitch,
    ModelSwitch,
    OptionSwitch,
    SolverSwitch,
    SpecSwitch,
    described,
    print_text,
)
from alignkit.cli.inputs import check_outputs, parse_options
from alignkit.observers import progress
from alignkit.solve import solve as solve_pair
from alignkit.weights import read_weights, write_weights


def solve(
    a: Annotated[Path, typer.Argument(help="Reference: .safetensors, or a .pt state dict.", show_default=False)],
    b: Annotated[Path, typer.Argument(help="Weights to be aligned to A.", show_default=False)],
    output: Annotated[Path, typer.Option("--output", "-o", help="Where aligned B is written.", show_default=False)],
    spec: SpecSwitch = None,
    model: ModelSwitch = None,
    solver: SolverSwitch = "weight_matching",
    option: OptionSwitch = None,
    seed: Annotated[int | None, typer.Option("--seed", min=0, help="Seed of every random choice.")] = None,
    init: Annotated[Path | None, typer.Option("--init", help="Saved alignment to start from.")] = None,
    save_alignment: Annotated[
        Path | None, typer.Option("--save-alignment", help="Where the alignment is saved.")
    ] = None,
    device: DeviceSwitch = None,
    force: ForceSwitch = False,
) -> None:
    """Reorder the hidden units of B so that its weights come close to those of A.

    Example: [bold]alignkit solve a.safetensors b.safetensors --model torchvision:resnet18 -o aligned.safetensors[/bold]

    Files appear whole or not at all, and none is replaced without --force.
    """
    check_outputs({"--output": output, "--save-alignment": save_alignment}, force)
    options = parse_options(option or [])
    weights_a, weights_b = read_weights(a), read_weights(b)
    graph = described(spec, model, weights_a).graph
    with progress():
        solution = solve_pair(
            graph.bind(weights_a, weights_b),
            solver=solver,
            init=None if init is None else Alignment.load(init, graph),
            device=device,
            seed=seed,
            **options,
        )
    write_weights(output, solution.apply(weights_b), {"format": "pt"})
    if save_alignment is not None:
        solution.alignment.save(save_alignment)
    print_text(
        solution.explain(), f"Aligned B: {output}", *([f"Alignment: {save_alignment}"] if save_alignment else [])
    )
