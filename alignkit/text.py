"""Sentences: near misses, lists, counts, sizes, and errors and values of any kind on one line."""

from __future__ import annotations

import difflib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from html import escape
from typing import TYPE_CHECKING

from alignkit.errors import AlignkitError

if TYPE_CHECKING:
    from pydantic import ValidationError

MAX_VALUE, MAX_LINE = 100, 1000
"""Maximum number of characters of a value, and of the text of an error, in a message."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return ``" Did you mean 'sinkhorn'?"`` for a near miss of a known name, and ``""`` for anything else.

    The answer starts with a blank, so that it can be put behind a sentence as it is.
    """

    def fold(text: str) -> str:
        return text.casefold().replace("-", "_").replace(" ", "_")

    by_folded = {fold(candidate): candidate for candidate in sorted(known, reverse=True)}
    close = difflib.get_close_matches(fold(name), list(by_folded), n=1, cutoff=0.6)
    return f" Did you mean {by_folded[close[0]]!r}?" if close else ""


def plural(count: int, noun: str, many: str | None = None) -> str:
    """Count things: ``1 file``, ``3 files``, ``2 matrices`` (with ``many="matrices"``)."""
    return f"{count} {noun if count == 1 else many or noun + 's'}"


def install_extra(extra: str) -> str:
    """Return the command that installs what an extra of alignkit needs."""
    return f'pip install "alignkit[{extra}]", in a clone pip install ".[{extra}]"'


def with_article(noun: str) -> str:
    """Put the indefinite article before a noun: ``a solution``, ``an alignment``."""
    return f"{'an' if noun[0].lower() in 'aeiou' else 'a'} {noun}"


def list_some(names: Sequence[str], most: int = 10, separator: str = ", ") -> str:
    """List the first ``most`` names, and say how many more there are: ``a, b and 7 more``."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return separator.join(names[:most]) + more


def shorten_list(lines: Sequence[str], most: int, hint: str = "") -> list[str]:
    """Indent the first ``most`` lines, and say how many more there are; ``hint`` says where the others are."""
    more = [f"and {len(lines) - most} more{hint}"] if len(lines) > most else []
    return [f"  {line}" for line in [*lines[:most], *more]]


def timed_seconds(seconds: float) -> str:
    """Say how long something takes of which a few steps were timed."""
    return f"about {seconds:.2g} s (a few steps were timed; right within a factor of two or so)"


def readable_bytes(number: float) -> str:
    """Write a number of bytes with a unit: ``3.2 GB``."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return f"{number:.0f} bytes"


def dtype_name(dtype: object) -> str:
    """Name a dtype without its package: ``float32``."""
    return str(dtype).removeprefix("torch.")


def shorten(text: str, most: int) -> str:
    """Write a text on one line, cut off with dots where it is longer than ``most`` characters."""
    line = " ".join(text.split())
    return line if len(line) <= most else f"{line[: most - 3]}..."


def one_line(error: BaseException) -> str:
    """Return the text of an error on one line; ``""`` where it has none, or raises when it is asked for it."""
    try:
        return shorten(str(error), MAX_LINE)
    except Exception:
        return ""


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text without its full stop, or the type of an error that has no text.

    A line that ends in a colon goes on in the next.
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    whole = next((at for at, line in enumerate(lines, 1) if not line.endswith(":")), len(lines))
    return " ".join(lines[:whole]).rstrip(".:") or type(error).__name__


def describe_error(error: BaseException) -> str:
    """Write the type and the text of an error on one line."""
    text = one_line(error)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def explain_error(error: BaseException) -> str:
    """Return the text of an error that alignkit raised, which is a sentence; of any other, its type as well."""
    return str(error) if isinstance(error, AlignkitError) else describe_error(error)


def describe_validation(error: ValidationError) -> str:
    """List every problem that pydantic found, with the path of its field, in one sentence."""
    parts = []
    for entry in error.errors(include_url=False):
        path = ".".join(str(step) for step in entry["loc"])
        if entry["type"] == "union_tag_invalid":  # the words of pydantic are for programmers
            known, tag = entry["ctx"]["expected_tags"], entry["ctx"]["tag"]
            parts.append(f"{tag!r} is none of {known}")
            continue
        parts.append(f"{path}: {entry['msg']}" if path else entry["msg"])
    return "; ".join(parts) + "."


def show_value(value: object) -> str:
    """Write a value on one short line, whatever its ``repr`` does."""
    try:
        return shorten(repr(value), MAX_VALUE)
    except Exception:
        return show_type(value)


def show_type(value: object) -> str:
    """Say of which type an object is: ``an object of type Linear``."""
    return f"an object of type {type(value).__name__}"


class Explained(ABC):
    """What says in a few lines what it is: a notebook shows them."""

    @abstractmethod
    def explain(self) -> str:
        """Say in a few lines what came out."""

    def _repr_html_(self) -> str:
        return f"<pre style='white-space:pre-wrap'>{escape(self.explain())}</pre>"


def html_table(header: Sequence[str], rows: Iterable[Sequence[str]], caption: str) -> str:
    """Write a small HTML table for notebooks; leading blanks of a cell stay, so that trees can be indented."""

    def line(cells: Sequence[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag} style='text-align:left;white-space:pre'>{escape(c)}</{tag}>" for c in cells)

    lines = [line(header, "th"), *(line(row, "td") for row in rows)]
    return "\n".join([f"<table><caption>{escape(caption)}</caption>", *lines, "</table>"])
