"""``alignkit trace``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

import alignkit
from alignkit.cli import switches
from alignkit.cli.failures import saying_what_is_there
from alignkit.cli.outputs import check_free, check_picture
from alignkit.cli.runner import look_in_this_folder
from alignkit.cli.telling import TellingSwitches
from alignkit.errors import UsageError


@switches.command
def trace(
    model: Annotated[str, typer.Argument(help=switches.MODEL_HELP + " Or a folder with config.json.")],
    kinds: switches.SymmetrySwitches,
    telling: TellingSwitches,
    spec: Annotated[Path | None, typer.Option("--spec", help="Write the layouts: JSON, as --spec takes them.")] = None,
    as_json: Annotated[Path | None, typer.Option("--json", help="Write the graph as JSON.")] = None,
    picture: Annotated[Path | None, typer.Option("--picture", help="Draw the graph: .png, .svg or .pdf.")] = None,
    outputs: switches.OutputsSwitch = None,
    force: Annotated[bool, typer.Option("--force", help="Replace files that exist.")] = False,
) -> None:
    """Find the units of a model that can be reordered.

    Example: alignkit trace torchvision:resnet18 --spec resnet18.json

    The model is built with random weights; nothing is downloaded. With --symmetries all the report also says what may
    change its sign or rotate, what has to be folded for it, and what keeps a space from more.
    """
    check_picture(picture, force)
    check_free({"--spec": spec, "--json": as_json, "--picture": picture}, force)
    kinds.check()
    look_in_this_folder()
    with saying_what_is_there(lambda: "Nothing was written."), alignkit.checkpoints.written_together():
        given, name = ([model], None) if alignkit.jobs.is_folder_or_id(model) else ([], model)
        wanted: dict[str, Any] = {"symmetries": kinds.symmetries, "keep_tied": kinds.keep_tied}
        graph = alignkit.open_networks(*given, model=name, read=False, outputs=outputs or (), **wanted).graph
        telling.say(graph.report())
        if spec is not None and graph.folds:
            raise UsageError(
                "--spec: a spec says nothing of folds, and is wrong without them. Write the graph by --json."
            )
        for path, text in ((spec, json.dumps(graph.spec(), indent=2)), (as_json, graph.to_json())):
            if path is not None:
                alignkit.checkpoints.write_text(path, text + "\n")
        if picture is not None:
            graph.draw(picture)
    for path in (spec, as_json, picture):
        if path is not None:
            telling.say(f"Written: {path}")
