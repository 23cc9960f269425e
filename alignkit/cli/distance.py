"""``alignkit distance``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from alignkit.cli.graphs import check_fit, described, open_input, print_json, print_text, show_plan, write_report
from alignkit.cli.inputs import check_outputs, check_report
from alignkit.cli.switches import ArchitectureSwitches, Shown, Solving, command
from alignkit.errors import AlignkitError
from alignkit.jobs.distance import distance as measure
from alignkit.jobs.estimate import plan
from alignkit.plugins.observers import progress
from alignkit.reports import distance_report


@command
def distance(
    a: Annotated[Path, typer.Argument(help="Reference: a weights file or a folder.", show_default=False)],
    b: Annotated[Path, typer.Argument(help="The network to compare with it.", show_default=False)],
    architecture: ArchitectureSwitches,
    solving: Solving,
    shown: Shown,
    tolerance: Annotated[
        float, typer.Option("--tolerance", min=0, help="Largest difference relative to the tensor that counts as none.")
    ] = 1e-6,
    same: Annotated[bool, typer.Option("--same", help="End with exit code 1 unless B is A reordered.")] = False,
    save_alignment: Annotated[
        Path | None, typer.Option("--save-alignment", help="Where the alignment, the proof, is saved.")
    ] = None,
) -> None:
    """Say how far two networks are apart before and after alignment, and whether they are the same up to permutation.

    Example: [bold]alignkit distance a.safetensors b.safetensors --model torchvision:resnet18[/bold]
    """
    check_outputs({"--save-alignment": save_alignment}, shown.force)
    check_report(shown.report, shown.force)
    arguments = solving.arguments
    left, right = open_input(a), open_input(b)
    facts = described(architecture, left, read=not shown.dry_run)
    if shown.dry_run:
        check_fit(facts, [left, right])
        files = [str(path) for path in (save_alignment, shown.report) if path]
        size = left.checkpoint.nbytes
        show_plan(
            plan(facts.graph, "distance", solver=solving.solver, bytes_each=size, reads=(str(a), str(b)), writes=files),
            shown,
        )
        return
    pair = facts.graph.bind(facts.known(left.weights), facts.known(right.weights))
    with progress():
        found = measure(facts.graph, pair.a, pair.b, tolerance=tolerance, **arguments)
    if save_alignment is not None:
        found.alignment.save(save_alignment)
    verdict = "the same up to permutation" if found.same else f"not the same, most in {found.differs}"
    written = [f"Alignment: {save_alignment}"] if save_alignment else []
    if shown.report is not None:
        report = distance_report(found, f"{b} and {a}", pair=pair, facts={"A": str(a), "B": str(b)})
        written += write_report(report, shown)
    if shown.as_json:
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
            *written,
        )
    if same and not found.same:
        raise AlignkitError(f"{b} is not {a} with its units reordered: {verdict}.")
