"""``alignkit transport``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from alignkit.cli.graphs import (
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
from alignkit.cli.inputs import check_outputs, check_report
from alignkit.cli.switches import ArchitectureSwitches, Shown, Solving, command
from alignkit.errors import UsageError
from alignkit.graph.elements.alignment import Alignment
from alignkit.jobs.estimate import plan
from alignkit.jobs.merge import transport as carry
from alignkit.jobs.solve import solve
from alignkit.plugins.observers import progress
from alignkit.reports import solution_report
from alignkit.solver.solution import Solution


@command
def transport(
    base_a: Annotated[Path, typer.Argument(help="The base that was fine-tuned.", show_default=False)],
    tuned_a: Annotated[Path, typer.Argument(help="The same after fine-tuning.", show_default=False)],
    base_b: Annotated[Path, typer.Argument(help="The base that gets the fine-tune.", show_default=False)],
    output: Annotated[Path, typer.Option("--output", "-o", help="Where tuned B is written.", show_default=False)],
    architecture: ArchitectureSwitches,
    solving: Solving,
    shown: Shown,
    scale: Annotated[float, typer.Option("--scale", help="Factor of the task vector; -1 takes it away.")] = 1.0,
    alignment: Annotated[
        Path | None, typer.Option("--alignment", help="Saved alignment of base B to base A, instead of solving.")
    ] = None,
    save_alignment: Annotated[
        Path | None, typer.Option("--save-alignment", help="Where the alignment is saved.")
    ] = None,
) -> None:
    """Carry a fine-tune to another base: align the bases once, move the task vector.

    Example: [bold]alignkit transport base_a.pt tuned_a.pt base_b.pt -o tuned_b.pt --spec spec.json[/bold]

    Files appear whole or not at all, and none is replaced without --force.
    """
    check_outputs({"--output": output, "--save-alignment": save_alignment}, shown.force, folder=is_folder(base_b))
    check_report(shown.report, shown.force)
    if alignment is not None and (solving.options or save_alignment or shown.report):
        raise UsageError("--alignment brings an alignment, so there is nothing to solve, to save or to report.")
    arguments = solving.arguments
    inputs = [open_input(path) for path in (base_a, tuned_a, base_b)]
    facts = described(architecture, inputs[0], read=not shown.dry_run)
    if shown.dry_run:
        check_fit(facts, inputs)
        show_plan(
            plan(
                facts.graph,
                "transport",
                models=3,
                solver=solving.solver if alignment is None else None,
                bytes_each=inputs[0].checkpoint.nbytes,
                reads=[str(one.path) for one in inputs],
                writes=[str(path) for path in (output, save_alignment, shown.report) if path],
            ),
            shown,
        )
        return
    weights = [facts.known(one.weights) for one in inputs]
    check = facts.function_check(weights[2], base_b)
    pair = facts.graph.bind(weights[0], weights[2])
    solution: Solution | None = None
    if alignment is None:
        with progress():
            solution = solve(pair, **arguments)
    order = solution.alignment if solution is not None else Alignment.load(alignment or Path(), facts.graph)
    tuned = carry(weights[0], weights[1], weights[2], order, scale)
    inputs[2].write_like(output, tuned, shown.force)
    if save_alignment is not None:
        order.save(save_alignment)
    size = sum(float((weights[1][n].double() - t.double()).square().sum()) for n, t in weights[0].items()) ** 0.5
    written = [f"Written: {output}"]
    if solution is not None and shown.report is not None:
        files = {"base A": str(base_a), "tuned A": str(tuned_a), "base B": str(base_b), "tuned B": str(output)}
        files |= {"length of the task vector": f"{size:.6g}", "scale": f"{scale:g}"}
        report = solution_report(solution, f"{tuned_a} carried to {base_b}", pair=pair, check=check, facts=files)
        written += write_report(report, shown)
    if shown.as_json:
        solved: dict[str, Any] = {}
        if solution is not None:
            solved = {"before": solution.objective_before, "after": solution.objective_after}
            solved["seconds"] = solution.seconds
        error = None if check is None else check.error
        print_json({"output": str(output), "scale": scale, "task_vector": size, "function_error": error, **solved})
        return
    print_text(solution.explain() if solution is not None else f"Alignment: {alignment}", said_of(check))
    print_text(*said_of_unknown(facts), f"Task vector of length {size:.6g}, times {scale:g}.", *written)
