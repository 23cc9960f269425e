"""``alignkit trace``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from alignkit.checkpoints.staging import write_text
from alignkit.cli.inputs import check_free, look_in_this_folder
from alignkit.models.sources import load_model
from alignkit.tracing import trace as trace_model

MODEL_HELP = (
    "torchvision:NAME, timm:NAME, transformers:FOLDER or config.json, or package.module:factory (a function that "
    "returns a model, or a model and its example inputs)."
)


def trace(
    model: Annotated[str, typer.Argument(help=MODEL_HELP, show_default=False)],
    spec: Annotated[
        Path | None, typer.Option("--spec", help="Where the layouts are written: JSON, as solve --spec takes them.")
    ] = None,
    as_json: Annotated[
        Path | None, typer.Option("--json", help="Where the whole graph is written, for SymmetryGraph.from_json.")
    ] = None,
    picture: Annotated[
        Path | None, typer.Option("--picture", help="Where the graph is drawn: .png, .svg or .pdf.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace files that exist.")] = False,
) -> None:
    """Find the groups of units that can be reordered in a model, and what had to stay fixed.

    Example: [bold]alignkit trace torchvision:resnet18 --spec resnet18.json[/bold]

    The model is built with random weights; nothing is downloaded.
    """
    check_free({"--spec": spec, "--json": as_json, "--picture": picture}, force)
    look_in_this_folder()
    module, args, kwargs = load_model(model)
    graph = trace_model(module, *args, **kwargs)
    typer.echo(graph.report())
    for path, text in ((spec, json.dumps(graph.spec(), indent=2)), (as_json, graph.to_json())):
        if path is not None:
            write_text(path, text + "\n")
    if picture is not None:
        graph.draw(picture)
    for path in (spec, as_json, picture):
        if path is not None:
            typer.echo(f"Written: {path}")
