"""Running commands of alignkit inside the test's own process."""

from __future__ import annotations

from typer.testing import CliRunner

from alignkit.cli import app


def run(*arguments: object, code: int | None = 0) -> str:
    """Run a command that has to end with this code, None for any error.

    Returns its standard output, or with an error all that was printed.
    """
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "200"})
    assert result.exit_code == code or (code is None and result.exit_code), result.output
    assert "Traceback" not in result.output
    return result.stdout if code == 0 else result.output
