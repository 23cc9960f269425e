"""``alignkit solvers``."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

import alignkit
from alignkit.cli import switches

if TYPE_CHECKING:
    from alignkit.plugins.plugin_registry import SolverInfo


@switches.command
def solvers(
    name: Annotated[str | None, typer.Argument(help="Show the options of one solver.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, options included.")] = False,
) -> None:
    """List the solvers that are installed, and their options.

    Example: alignkit solvers weight_matching
    """
    registry = alignkit.plugins.registry()
    known = registry.solvers()
    if name is not None:
        registry.solver(name)  # raises, and says which there are, if it is unknown
    if as_json:
        facts = [known[each].facts() for each in sorted(known)] if name is None else known[name].facts()
        typer.echo(json.dumps(facts, indent=2))
        return
    if name is not None:
        info = known[name]
        typer.echo(f"{info.name}: {info.summary} Needs {info.needed}. From {info.package}.")
    Console().print(_options(known[name]) if name is not None else _summaries(known.values()))
    contested = (f"{each!r} is offered by {' and '.join(by)}." for each, by in registry.contested.items())
    for line in (*contested, *map(str, registry.broken)) if name is None else ():
        Console(stderr=True).print(line, markup=False, soft_wrap=True)


def _summaries(infos: Iterable[SolverInfo]) -> Table:
    table = Table("solver", "what it does", "needs", "options", "package")
    for info in infos:
        cells = info.name, info.summary, info.needed, ", ".join(info.options.model_fields), info.package
        table.add_row(*map(escape, cells))
    table.columns[0].no_wrap = True
    return table


def _options(info: SolverInfo) -> Table:
    table = Table("option", "default", "what it is", box=box.SIMPLE_HEAD, pad_edge=False)
    for option, field in info.options.model_fields.items():
        table.add_row(*map(escape, (option, str(field.default), " ".join((field.description or "").split()))))
    table.columns[0].no_wrap = True
    return table
