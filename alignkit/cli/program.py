"""The ``alignkit`` program: its commands, and what becomes of their errors."""

from __future__ import annotations

import io
import platform
import sys
import warnings
from importlib.metadata import version as version_of
from typing import Annotated, Any

import typer
import typer.core

import alignkit
from alignkit.cli.align_many import align_many
from alignkit.cli.canonical_form import canonical_form
from alignkit.cli.canonicalize import canonicalize
from alignkit.cli.check import check
from alignkit.cli.compare import compare
from alignkit.cli.demo import demo
from alignkit.cli.distance import distance
from alignkit.cli.failures import FriendlyGroup
from alignkit.cli.fold import fold
from alignkit.cli.merge import merge
from alignkit.cli.rotate import rotate
from alignkit.cli.solve import solve
from alignkit.cli.solvers import solvers
from alignkit.cli.trace import trace
from alignkit.cli.train_deepalign import train_deepalign
from alignkit.cli.transport import transport
from alignkit.cli.widen import widen
from alignkit.cli.zoo import zoo

app = typer.Typer(
    name="alignkit",
    cls=FriendlyGroup,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(wanted: bool) -> None:
    if wanted:
        python, torch = platform.python_version(), version_of("torch")
        typer.echo(f"alignkit {alignkit.__version__} (torch {torch}, Python {python})")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and exit.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Align the hidden units of neural networks.

    Example: alignkit demo

    Exit codes: 0 done, 1 refused or failed (the message says why), 2 wrong use, 3 unexpected error, 130 interrupted.
    """
    for stream in (sys.stdout, sys.stderr):  # names of files may hold what no text can
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    if not debug:
        warnings.showwarning = lambda message, *_, **__: typer.echo(f"Warning: {message}", err=True)


class PlainUsage(typer.core.TyperCommand):
    """A command whose usage line names arguments as everybody writes them: ``MODELS...``."""

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """Return the parts of the usage line, without the braces around what is required."""
        return [piece.replace("{", "").replace("}", "") for piece in super().collect_usage_pieces(ctx)]


for function in (
    *(solvers, solve, demo, trace, check, merge, compare),
    *(align_many, distance, transport, zoo, canonicalize, canonical_form, fold, rotate, widen, train_deepalign),
):
    app.command(function.__name__.replace("_", "-"), cls=PlainUsage)(function)


def main() -> None:
    """Run the program; the entry point of the package."""
    app()
