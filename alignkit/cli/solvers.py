"""``alignkit solvers``."""

from __future__ import annotations

import json
from typing import Annotated

import typer
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

import alignkit


def solvers(
    name: Annotated[str | None, typer.Argument(help="Show the options of one solver.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, options included.")] = False,
) -> None:
    """List the solvers that can be used: built-in ones and those of installed plugins.

    Example: [bold]alignkit solvers weight_matching[/bold]
    """
    registry = alignkit.plugins.registry()
    known = registry.solvers()
    if name is not None:
        registry.solver(name)  # raises, and says which there are, if it is unknown
    if as_json:
        facts = [known[each].facts() for each in sorted(known)] if name is None else known[name].facts()
        typer.echo(json.dumps(facts, indent=2))
        return
    if name is None:
        drawn = Table()
        for heading in ("solver", "what it does", "needs", "options", "package"):
            drawn.add_column(heading, no_wrap=heading == "solver")
        for info in known.values():
            options = ", ".join(info.options.model_fields)
            drawn.add_row(*map(escape, (info.name, info.summary, info.needed, options, info.package)))
    else:
        info = known[name]
        typer.echo(f"{info.name}: {info.summary} Needs {info.needed}. From {info.package}.")
        drawn = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        for heading in ("option", "default", "what it is"):
            drawn.add_column(heading, no_wrap=heading == "option")
        for option, field in info.options.model_fields.items():
            drawn.add_row(*map(escape, (option, str(field.default), " ".join((field.description or "").split()))))
    Console().print(drawn)
    contested = (f"{each!r} is offered by {' and '.join(by)}." for each, by in registry.contested.items())
    for line in (*contested, *map(str, registry.broken)) if name is None else ():
        Console(stderr=True).print(line, markup=False, soft_wrap=True)
