"""``alignkit canonicalize``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from alignkit.cli.graphs import check_fit, described, open_input, print_json, print_text, show_plan, write_report
from alignkit.cli.inputs import check_report, targets_in
from alignkit.cli.switches import ArchitectureSwitches, DeviceSwitch, Shown, command
from alignkit.jobs.canonicalize import canonicalize as bring
from alignkit.jobs.estimate import plan
from alignkit.reports import canonical_report


@command
def canonicalize(
    reference: Annotated[Path, typer.Argument(help="The network whose order of units all take.", show_default=False)],
    networks: Annotated[list[Path], typer.Argument(help="Checkpoints of the same architecture.", show_default=False)],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder for the reordered networks.", show_default=False)
    ],
    architecture: ArchitectureSwitches,
    shown: Shown,
    device: DeviceSwitch = None,
) -> None:
    """Bring many networks to the order of units of one reference.

    Example: [bold]alignkit canonicalize ref.safetensors zoo/*.safetensors -o canonical --spec spec.json[/bold]

    Each network is written to the output folder under its own name. Files appear whole or not at all, and none is
    replaced without --force.
    """
    targets = targets_in(networks, output, shown.force)
    check_report(shown.report, shown.force)
    target, inputs = open_input(reference), [open_input(path) for path in networks]
    facts = described(architecture, target, read=not shown.dry_run)
    if shown.dry_run:
        check_fit(facts, [target, *inputs])
        reads = [str(path) for path in (reference, *networks)]
        size = target.checkpoint.nbytes
        made = plan(
            facts.graph, "canonicalize", models=len(reads), bytes_each=size, reads=reads, writes=list(map(str, targets))
        )
        show_plan(made, shown)
        return
    weights = [facts.known(one.weights) for one in inputs]
    found = bring(facts.graph, weights, facts.known(target.weights), device=device)
    output.mkdir(exist_ok=True)
    for index, (given, path) in enumerate(zip(weights, targets, strict=True)):
        network = found.network(index)
        inputs[index].write_like(path, {name: network[facts.graph.first_names[name]] for name in given}, shown.force)
    written = [f"Written to {output}"]
    if shown.report is not None:
        title = f"{len(found)} networks in the order of {reference}"
        report = canonical_report(found, [str(path) for path in networks], title, {"written to": str(output)})
        written += write_report(report, shown)
    if shown.as_json:
        rows = zip(targets, found.before.tolist(), found.after.tolist(), strict=True)
        print_json(
            {
                "networks": [{"output": str(p), "before": b, "after": a} for p, b, a in rows],
                "seconds": found.seconds,
                "networks_per_second": found.networks_per_second,
                "batched": found.batched,
            }
        )
        return
    print_text(
        f"{len(found)} networks, mean squared distance to the reference {float(found.before.mean()):.6g} -> "
        f"{float(found.after.mean()):.6g}.",
        f"{found.seconds:.3g} s, {found.networks_per_second:.0f} networks a second, "
        f"{'in batches' if found.batched else 'one after the other'}.",
        *written,
    )
