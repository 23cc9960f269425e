"""``alignkit distance``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from alignkit.cli.graphs import (
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
)
from alignkit.cli.inputs import check_outputs, parse_options
from alignkit.distance import distance as measure
from alignkit.errors import AlignkitError
from alignkit.observers import progress
from alignkit.weights import read_weights


def distance(
    a: Annotated[Path, typer.Argument(help="Reference: .safetensors, or a .pt state dict.", show_default=False)],
    b: Annotated[Path, typer.Argument(help="The network to compare with it.", show_default=False)],
    spec: SpecSwitch = None,
    model: ModelSwitch = None,
    solver: SolverSwitch = "weight_matching",
    option: OptionSwitch = None,
    tolerance: Annotated[
        float, typer.Option("--tolerance", min=0, help="Largest difference relative to the tensor that counts as none.")
    ] = 1e-6,
    same: Annotated[bool, typer.Option("--same", help="End with exit code 1 unless B is A reordered.")] = False,
    save_alignment: Annotated[
        Path | None, typer.Option("--save-alignment", help="Where the alignment, the proof, is saved.")
    ] = None,
    seed: SeedSwitch = 0,
    device: DeviceSwitch = None,
    as_json: JsonSwitch = False,
    force: ForceSwitch = False,
) -> None:
    """Say how far two networks are apart before and after alignment, and whether they are the same up to permutation.

    Example: [bold]alignkit distance a.safetensors b.safetensors --model torchvision:resnet18[/bold]
    """
    check_outputs({"--save-alignment": save_alignment}, force)
    options = parse_options(option or [])
    weights_a, weights_b = read_weights(a), read_weights(b)
    graph = described(spec, model, weights_a).graph
    with progress():
        found = measure(
            graph, weights_a, weights_b, solver=solver, tolerance=tolerance, seed=seed, device=device, **options
        )
    if save_alignment is not None:
        found.alignment.save(save_alignment)
    verdict = "the same up to permutation" if found.same else f"not the same, most in {found.differs}"
    if as_json:
        print_json(
            {
                "squared_distance_before": found.before,
                "squared_distance_after": found.after,
                "same": found.same,
                "differs": found.differs,
                "moved": dict(found.solution.moved),
                "tensors": {name: vars(tensor) for name, tensor in found.tensors.items()},
                "alignment": None if save_alignment is None else str(save_alignment),
            }
        )
    else:
        print_text(
            f"Squared distance {found.before:.6g}, after alignment {found.after:.6g} ({found.solution.solver}).",
            f"{b} and {a} are {verdict} (tolerance {tolerance:g}).",
            *(["Alignment: " + str(save_alignment)] if save_alignment else []),
        )
    if same and not found.same:
        raise AlignkitError(f"{b} is not {a} with its units reordered: {verdict}.")
