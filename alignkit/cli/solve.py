"""``alignkit solve``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from alignkit.cli.graphs import (
    check_fit,
    described,
    is_folder,
    open_input,
    print_json,
    print_text,
    show_plan,
    write_report,
)
from alignkit.cli.inputs import check_outputs, check_report
from alignkit.cli.on_disk import MemorySwitch, check_memory, solve_on_disk
from alignkit.cli.switches import ArchitectureSwitches, Shown, Solving, command
from alignkit.graph import Pair
from alignkit.graph.elements.alignment import Alignment
from alignkit.jobs.estimate import plan
from alignkit.jobs.solve import solve as solve_pair
from alignkit.plugins.observers import progress
from alignkit.reports import solution_report


@command
def solve(
    a: Annotated[Path, typer.Argument(help="Reference: a weights file or a folder.", show_default=False)],
    b: Annotated[Path, typer.Argument(help="Weights to be aligned to A.", show_default=False)],
    output: Annotated[Path, typer.Option("--output", "-o", help="Where aligned B is written.", show_default=False)],
    architecture: ArchitectureSwitches,
    solving: Solving,
    shown: Shown,
    init: Annotated[Path | None, typer.Option("--init", help="Saved alignment to start from.")] = None,
    save_alignment: Annotated[
        Path | None, typer.Option("--save-alignment", help="Where the alignment is saved.")
    ] = None,
    memory: MemorySwitch = None,
) -> None:
    """Reorder the hidden units of B so that its weights come close to those of A.

    Example: [bold]alignkit solve a.safetensors b.safetensors --model torchvision:resnet18 -o aligned.safetensors[/bold]

    Files appear whole or not at all, and none is replaced without --force.
    """
    check_outputs({"--output": output, "--save-alignment": save_alignment}, shown.force, folder=is_folder(b))
    check_report(shown.report, shown.force)
    arguments = solving.arguments
    limit = check_memory(memory, solving, 2, ["--init"] if init is not None else [])
    left, right = open_input(a), open_input(b)
    facts = described(architecture, left, read=not shown.dry_run and limit is None)
    if shown.dry_run:
        check_fit(facts, [left, right])
        size, files = left.checkpoint.nbytes, [str(path) for path in (output, save_alignment, shown.report) if path]
        reads = (str(a), str(b))
        show_plan(
            plan(facts.graph, "solve", solver=solving.solver, memory=limit, bytes_each=size, reads=reads, writes=files),
            shown,
        )
        return
    pair: Pair | None = None
    if limit is not None:
        solution = solve_on_disk(facts, [left, right], output, limit, solving, shown)
    else:
        pair = facts.graph.bind(facts.known(left.weights), facts.known(right.weights))
        start = None if init is None else Alignment.load(init, facts.graph)
        with progress():
            solution = solve_pair(pair, init=start, **arguments)
        right.write_like(output, solution.apply(facts.known(right.weights)), shown.force)
    if save_alignment is not None:
        solution.alignment.save(save_alignment)
    written = [f"Aligned B: {output}", *([f"Alignment: {save_alignment}"] if save_alignment else [])]
    if shown.report is not None:
        check = None if pair is None else facts.function_check(right.weights, b)
        named = {"A": str(a), "B": str(b), "aligned B": str(output)}
        written += write_report(
            solution_report(solution, f"{b} aligned to {a}", pair=pair, check=check, facts=named), shown
        )
    if shown.as_json:
        numbers = {"before": solution.objective_before, "after": solution.objective_after, "seconds": solution.seconds}
        print_json({"output": str(output), **numbers, "moved": dict(solution.moved), "gain": dict(solution.gain)})
    else:
        print_text(solution.explain(), *written)
