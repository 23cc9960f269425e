"""Errors of commands: a message and an exit code instead of a traceback."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import typer
from typer.core import TyperGroup

from alignkit.errors import AlignkitError, ArgumentError, UsageError

REFUSED, WRONG_USE, UNEXPECTED, INTERRUPTED = 1, 2, 3, 130


@contextmanager
def saying_what_is_there(written: Callable[[], str]) -> Iterator[None]:
    """Let the message about Ctrl-C in the block say what was written, and what was not."""
    try:
        yield
    except KeyboardInterrupt as error:
        error.add_note(written())
        raise


@contextmanager
def _interrupts_of_imports() -> Iterator[None]:
    """Let Ctrl-C be Ctrl-C in an import, too: modules in C make an ImportError of it."""
    try:
        yield
    except ImportError as error:
        if isinstance(error.__cause__, KeyboardInterrupt):
            raise error.__cause__ from None
        raise


class FriendlyGroup(TyperGroup):
    """A group of commands whose errors become messages, unless ``--debug`` was given."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command. Every exit code is decided here."""
        try:
            with _interrupts_of_imports():
                return super().invoke(ctx)
        except AlignkitError as error:
            if ctx.params.get("debug"):
                raise
            typer.echo(f"Error: {error}", err=True)
            raise typer.Exit(WRONG_USE if isinstance(error, UsageError | ArgumentError) else REFUSED) from error
        except KeyboardInterrupt as error:
            if ctx.params.get("debug"):
                raise
            typer.echo(" ".join(["Interrupted.", *getattr(error, "__notes__", ())]), err=True)
            raise typer.Exit(INTERRUPTED) from error
        except BrokenPipeError as error:  # the reader of our output went away, as with "| head"
            sys.stderr.close()
            raise typer.Exit(REFUSED) from error
        except Exception as error:
            # An exit, an abort and a message about the usage are typer's own ways to end a command.
            typers_own = hasattr(error, "exit_code") or hasattr(error, "show") or isinstance(error, typer.Abort)
            if ctx.params.get("debug") or typers_own:
                raise
            typer.echo(
                f"Unexpected error: {type(error).__name__}: {error}\n"
                "This is a fault in alignkit or in a plugin. Run 'alignkit --debug ...' again to see where.",
                err=True,
            )
            raise typer.Exit(UNEXPECTED) from error
