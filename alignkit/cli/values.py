"""Values on the command line: KEY=VALUE pairs, numbers with commas, names from a short list."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from alignkit.errors import UsageError

OWN_SWITCHES = ("seed", "init", "device")
"""Arguments of `alignkit.solve` that have a switch of their own."""
NOT_OPTIONS = ("pair", "a", "b", "solver", "task", "throw", "registry")
"""Arguments of `alignkit.solve` that the commands give."""


def key_values(switch: str, texts: Sequence[str] | None) -> dict[str, Any]:
    """Turn ``["restarts=8", "order=random"]`` into keyword arguments; values are read as JSON where they are JSON.

    Raises:
        UsageError: There is no ``=``, or a key comes twice.
    """
    values: dict[str, Any] = {}
    for text in texts or ():
        key, equals, value = text.partition("=")
        key = key.strip().replace("-", "_")
        if not equals or not key:
            raise UsageError(f"{switch} {text!r}: write KEY=VALUE, for example {switch} max_steps=100.")
        if key in values:
            raise UsageError(f"{switch} {key} is given twice.")
        values[key] = plain_value(value)
    return values


def solver_options(texts: Sequence[str] | None) -> dict[str, Any]:
    """Read the ``--option`` switches of a solver.

    Raises:
        UsageError: One is not KEY=VALUE, comes twice, or is an argument that has its own switch.
    """
    return check_options(key_values("--option", texts))


def check_options(options: dict[str, Any]) -> dict[str, Any]:
    """Return options of a solver; refuse arguments of `alignkit.solve` that are none."""
    for key in options:
        if key in OWN_SWITCHES:
            raise UsageError(f"--option {key}=...: use --{key} instead.")
        if key in NOT_OPTIONS:
            raise UsageError(f"--option {key}=...: {key!r} is not an option of a solver.")
    return options


def weights_by_pattern(texts: Sequence[str]) -> dict[str, list[float]]:
    """Read ``--weight``: a number for each model, and ``PATTERN=NUMBER,NUMBER`` for tensors of some names.

    Raises:
        UsageError: One is neither, or a pattern comes twice.
    """
    weights: dict[str, list[float]] = {}
    for text in texts:
        pattern, equals, listed = text.rpartition("=")
        if not equals:
            weights.setdefault("*", []).extend(numbers("--weight", text, float))
        elif pattern in weights or not pattern:
            raise UsageError(f"--weight {text!r}: " + ("the pattern comes twice." if pattern else "name a pattern."))
        else:
            weights[pattern] = numbers("--weight", listed, float)
    return weights


def plain_value(text: str) -> Any:
    """Read a value as JSON where it is JSON, else as text."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def numbers(switch: str, text: str, kind: type[int] | type[float]) -> list[Any]:
    """Read numbers with commas between them.

    Raises:
        UsageError: They are not numbers.
    """
    try:
        return [kind(part) for part in text.split(",")]
    except ValueError as error:
        raise UsageError(f"{switch} {text}: write numbers with commas between them.") from error


def one_of(switch: str, value: str, choices: Sequence[str]) -> Any:
    """Return a value that is one of a few names.

    Raises:
        UsageError: It is not.
    """
    if value not in choices:
        raise UsageError(f"{switch} {value!r}: take {', '.join(choices)}.")
    return value
