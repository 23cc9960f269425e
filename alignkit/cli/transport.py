"""``alignkit transport``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from alignkit.alignment import Alignment
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
    said_of,
)
from alignkit.cli.inputs import check_outputs, parse_options
from alignkit.errors import UsageError
from alignkit.merge import transport as carry
from alignkit.observers import progress
from alignkit.solve import solve
from alignkit.weights import read_weights, write_weights


def transport(
    base_a: Annotated[Path, typer.Argument(help="The base that was fine-tuned.", show_default=False)],
    tuned_a: Annotated[Path, typer.Argument(help="The same after fine-tuning.", show_default=False)],
    base_b: Annotated[Path, typer.Argument(help="The base that gets the fine-tune.", show_default=False)],
    output: Annotated[Path, typer.Option("--output", "-o", help="Where tuned B is written.", show_default=False)],
    spec: SpecSwitch = None,
    model: ModelSwitch = None,
    scale: Annotated[float, typer.Option("--scale", help="Factor of the task vector; -1 takes it away.")] = 1.0,
    alignment: Annotated[
        Path | None, typer.Option("--alignment", help="Saved alignment of base B to base A, instead of solving.")
    ] = None,
    save_alignment: Annotated[
        Path | None, typer.Option("--save-alignment", help="Where the alignment is saved.")
    ] = None,
    solver: SolverSwitch = "weight_matching",
    option: OptionSwitch = None,
    seed: SeedSwitch = 0,
    device: DeviceSwitch = None,
    as_json: JsonSwitch = False,
    force: ForceSwitch = False,
) -> None:
    """Carry a fine-tune to another base: align the bases once, move the task vector.

    Example: [bold]alignkit transport base_a.pt tuned_a.pt base_b.pt -o tuned_b.pt --spec spec.json[/bold]

    Files appear whole or not at all, and none is replaced without --force.
    """
    check_outputs({"--output": output, "--save-alignment": save_alignment}, force)
    options = parse_options(option or [])
    if alignment is not None and (options or save_alignment):
        raise UsageError("--alignment brings an alignment, so there is nothing to solve or to save.")
    weights = [read_weights(path) for path in (base_a, tuned_a, base_b)]
    facts = described(spec, model, weights[0])
    check = facts.function_check(weights[2], base_b)
    if alignment is not None:
        order = Alignment.load(alignment, facts.graph)
        lines = [f"Alignment: {alignment}"]
        solved = {}
    else:
        with progress():
            pair = facts.graph.bind(weights[0], weights[2])
            solution = solve(pair, solver=solver, seed=seed, device=device, **options)
        order = solution.alignment
        lines = [solution.explain()]
        solved = {"before": solution.objective_before, "after": solution.objective_after, "seconds": solution.seconds}
    tuned = carry(weights[0], weights[1], weights[2], order, scale)
    write_weights(output, tuned, {"format": "pt"})
    if save_alignment is not None:
        order.save(save_alignment)
    size = sum(float((weights[1][n].double() - t.double()).square().sum()) for n, t in weights[0].items()) ** 0.5
    if as_json:
        error = None if check is None else check.error
        print_json({"output": str(output), "scale": scale, "task_vector": size, "function_error": error, **solved})
    else:
        print_text(*lines, said_of(check), f"Task vector of length {size:.6g}, times {scale:g}.", f"Written: {output}")
