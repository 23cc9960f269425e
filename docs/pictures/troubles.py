"""Messages of errors for the page about them: each is raised when the page is built, so that its text is real."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Callable

from alignkit import AlignkitError


def message(action: Callable[[], object]) -> str:
    """Run what fails; its message as Markdown, as wide as code on the page.

    Raises:
        RuntimeError: It did not fail.
    """
    try:
        action()
    except AlignkitError as error:
        rows = f"{type(error).__name__}: {error}".replace(os.getcwd() + os.sep, "").splitlines()
        wrapped = [part for row in rows for part in textwrap.wrap(row, 80, subsequent_indent="  ")]
        return "```text\n" + "\n".join(wrapped) + "\n```\n"
    raise RuntimeError("what should have failed did not")
