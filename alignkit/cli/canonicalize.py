"""``alignkit canonicalize``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from alignkit.canonical import canonicalize as bring
from alignkit.cli.graphs import (
    DeviceSwitch,
    ForceSwitch,
    JsonSwitch,
    ModelSwitch,
    SpecSwitch,
    described,
    print_json,
    print_text,
)
from alignkit.errors import UsageError
from alignkit.weights import read_weights, write_weights


def canonicalize(
    reference: Annotated[Path, typer.Argument(help="The network whose order of units all take.", show_default=False)],
    networks: Annotated[list[Path], typer.Argument(help="Checkpoints of the same architecture.", show_default=False)],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder for the reordered networks.", show_default=False)
    ],
    spec: SpecSwitch = None,
    model: ModelSwitch = None,
    device: DeviceSwitch = None,
    as_json: JsonSwitch = False,
    force: ForceSwitch = False,
) -> None:
    """Bring many networks to the order of units of one reference.

    Example: [bold]alignkit canonicalize ref.safetensors zoo/*.safetensors -o canonical --spec spec.json[/bold]

    Each network is written to the output folder under its own name. Files appear whole or not at all, and none is
    replaced without --force.
    """
    targets = _targets(networks, output, force)
    target = read_weights(reference)
    graph = described(spec, model, target).graph
    weights = [read_weights(path) for path in networks]
    found = bring(graph, weights, target, device=device)
    output.mkdir(exist_ok=True)
    names = {name: node.name for node in graph.tensors.values() for name in node.names}
    for index, (given, path) in enumerate(zip(weights, targets, strict=True)):
        network = found.network(index)
        write_weights(path, {name: network[names[name]] for name in given}, {"format": "pt"})
    if as_json:
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
        f"Written to {output}",
    )


def _targets(networks: Sequence[Path], output: Path, force: bool) -> list[Path]:
    """Where each network is written.

    Raises:
        UsageError: Two networks have one name, a file exists and ``force`` is False, or the folder cannot be there.
    """
    if output.is_file() or not output.parent.is_dir():
        raise UsageError(f"--output {output}: " + ("it is a file." if output.is_file() else "its folder is missing."))
    targets = [output / path.name for path in networks]
    twice = sorted({path.name for path in targets if sum(path == other for other in targets) > 1})
    if twice:
        raise UsageError(f"several networks are called {', '.join(twice)}, but all are written to one folder.")
    there = [path.name for path in targets if path.exists()]
    if there and not force:
        listed = ", ".join(there[:5]) + (f" and {len(there) - 5} more" if len(there) > 5 else "")
        raise UsageError(f"{output} holds {listed} already. Choose another folder, or pass --force to replace them.")
    return targets
