"""``alignkit solvers``."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from alignkit.plugins.plugin_registry import SolverInfo, registry


def solvers(
    name: Annotated[str | None, typer.Argument(help="Show the options of one solver.", show_default=False)] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, options included.")] = False,
) -> None:
    """List the solvers that can be used: built-in ones and those of installed plugins.

    Example: [bold]alignkit solvers weight_matching[/bold]
    """
    if name is not None:
        registry().solver(name)  # raises, and says which there are, if it is unknown
        _show_one(registry().solvers()[name], as_json)
        return
    found = registry().solvers()
    if as_json:
        typer.echo(json.dumps([_facts(found[name]) for name in sorted(found)], indent=2))
        return
    console = Console()
    drawn = Table()
    for heading in ("solver", "what it does", "needs", "options", "package"):
        drawn.add_column(heading, no_wrap=heading == "solver")
    for name in sorted(found):
        info = found[name]
        options = ", ".join(info.options.model_fields)
        drawn.add_row(*map(escape, (name, info.summary, _needed(info) or "weights", options, info.package)))
    console.print(drawn)
    said = [f"{name!r} is offered by {' and '.join(packages)}." for name, packages in registry().contested.items()]
    for line in (*said, *map(str, registry().broken)):
        Console(stderr=True).print(line, markup=False, soft_wrap=True)


def _show_one(info: SolverInfo, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(_facts(info), indent=2))
        return
    typer.echo(f"{info.name}: {info.summary} Needs {_needed(info) or 'weights'}. From {info.package}.")
    drawn = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("option", "default", "what it is"):
        drawn.add_column(heading, no_wrap=heading == "option")
    for option, field in info.options.model_fields.items():
        said = " ".join((field.description or "").split())
        drawn.add_row(*map(escape, (option, str(field.default), said)))
    Console().print(drawn)


def _needed(info: SolverInfo) -> str:
    return ", ".join(name for name, wanted in asdict(info.needs).items() if wanted)


def _facts(info: SolverInfo) -> dict[str, Any]:
    return {
        "name": info.name,
        "summary": info.summary,
        "package": info.package,
        "needs": asdict(info.needs),
        "returns": asdict(info.returns),
        "options": info.options.model_json_schema(),
    }
