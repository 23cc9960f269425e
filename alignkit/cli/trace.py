"""``alignkit trace``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

import alignkit
from alignkit.cli import switches
from alignkit.cli.failures import saying_what_is_there
from alignkit.cli.outputs import check_free
from alignkit.cli.runner import look_in_this_folder


def trace(
    model: Annotated[str, typer.Argument(help=switches.MODEL_HELP)],
    spec: Annotated[Path | None, typer.Option("--spec", help="Write the layouts: JSON, as --spec takes them.")] = None,
    as_json: Annotated[Path | None, typer.Option("--json", help="Write the graph as JSON.")] = None,
    picture: Annotated[Path | None, typer.Option("--picture", help="Draw the graph: .png, .svg or .pdf.")] = None,
    outputs: switches.OutputsSwitch = None,
    force: Annotated[bool, typer.Option("--force", help="Replace files that exist.")] = False,
) -> None:
    """Find the units of a model that can be reordered.

    Example: alignkit trace torchvision:resnet18 --spec resnet18.json

    The model is built with random weights; nothing is downloaded.
    """
    check_free({"--spec": spec, "--json": as_json, "--picture": picture}, force)
    look_in_this_folder()
    with saying_what_is_there(lambda: "Nothing was written."), alignkit.checkpoints.written_together():
        module, args, kwargs = alignkit.models.load_model(model)
        graph = alignkit.trace(module, *args, outputs=outputs or (), **kwargs)
        typer.echo(graph.report())
        for path, text in ((spec, json.dumps(graph.spec(), indent=2)), (as_json, graph.to_json())):
            if path is not None:
                alignkit.checkpoints.write_text(path, text + "\n")
        if picture is not None:
            graph.draw(picture)
    for path in (spec, as_json, picture):
        if path is not None:
            typer.echo(f"Written: {path}")
