"""How much each network counts in an average: the same for all tensors, or other shares where a pattern says so."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from numbers import Real
from typing import TypeAlias

from alignkit.errors import MergeError
from alignkit.text import did_you_mean, list_some, plural, show_value

Shares: TypeAlias = Sequence[float] | None
"""How much each network counts, in their order; they are scaled to the sum 1. None: all the same."""
SharesByPattern: TypeAlias = Shares | Mapping[str, Sequence[float]]
"""The same for all tensors; or by patterns of their names, such as ``"*.layers.3.*"``, of which the first counts that
matches. ``"*"`` is for all other tensors, wherever it stands; without it they have equal shares."""
REST = "*"


def shares_of(weights: Shares, count: int) -> list[float]:
    """Return finite shares of one model or more that add up to 1, equal ones for None; else raise `MergeError`."""
    if not count:
        raise MergeError("there are no models: give at least one.")
    if weights is None:
        return [1.0 / count] * count
    shares = [float(weight) for weight in weights]
    if len(shares) != count:
        raise MergeError(f"{plural(len(shares), 'weight')} for {plural(count, 'model')}: give one each.")
    for at, share in enumerate(shares):
        if not math.isfinite(share) or share < 0:
            raise MergeError(f"weights[{at}] is {share}: shares are finite and not negative.")
    if not (total := sum(shares)):
        raise MergeError("all weights are 0: give at least one model a share.")
    if not math.isfinite(total):
        raise MergeError("the weights add up to infinity: give smaller numbers.")
    return [share / total for share in shares]


def factors_of(weights: Shares, count: int) -> list[float]:
    """Return finite factors of task vectors, equal ones that add up to 1 for None; else raise `MergeError`."""
    factors = [1.0 / count] * count if weights is None else [float(weight) for weight in weights]
    if len(factors) != count:
        raise MergeError(
            f"{plural(len(factors), 'weight')} for {plural(count, 'task vector')}: give one for each model but the "
            "first, which is the base."
        )
    if wrong := [at for at, factor in enumerate(factors) if not math.isfinite(factor)]:
        raise MergeError(f"weights[{wrong[0]}] is {factors[wrong[0]]}: factors are finite.")
    return factors


def read_patterns(
    weights: SharesByPattern, read: Callable[[Shares], list[float]]
) -> tuple[list[float], dict[str, list[float]]]:
    """Return the shares of tensors that no pattern names, and those of each pattern.

    Args:
        weights: As a user gave them.
        read: Checks one list of shares, or factors, and raises a `MergeError` for what is wrong with it.
    """
    if not isinstance(weights, Mapping):
        return read(weights), {}
    patterns: dict[str, list[float]] = {}
    for pattern, shares in weights.items():
        if not isinstance(pattern, str) or not isinstance(shares, Sequence) or not all(map(_is_number, shares)):
            entry = f"{show_value(pattern)}: {show_value(shares)}"
            raise MergeError(f"weights={{{entry}}}: give a pattern of names, and one number for each model.")
        try:
            patterns[pattern] = read(shares)
        except MergeError as error:
            raise MergeError(f"weights of {pattern!r}: {error}") from error
    rest = patterns.pop(REST, None)
    return read(None) if rest is None else rest, patterns


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def shares_by_name(
    patterns: Mapping[str, list[float]], rest: list[float], first_names: Mapping[str, str]
) -> dict[str, list[float]]:
    """Return the shares of every tensor, by each of its names.

    Args:
        patterns: Shares by pattern.
        rest: Shares of what no pattern matches.
        first_names: The first name of each tensor by every name that it has.

    Raises:
        MergeError: No tensor is left for a pattern, or the names of tied tensors have different shares.
    """
    pattern_of: dict[str, str] = {}
    for pattern in patterns:
        matched = [pattern] if pattern in first_names else [n for n in first_names if fnmatchcase(n, pattern)]
        if not matched:
            raise MergeError(f"weights of {pattern!r}: {no_match(pattern, list(first_names))}")
        if all(name in pattern_of for name in matched):
            earlier = list_some(sorted({repr(pattern_of[name]) for name in matched}), 3)
            raise MergeError(
                f"weights of {pattern!r}: all that it matches is taken by {earlier} before it. Put it first."
            )
        pattern_of |= {name: pattern for name in matched if name not in pattern_of}
    shares = {name: patterns[pattern_of[name]] if name in pattern_of else rest for name in first_names}
    for name, first in first_names.items():
        if shares[name] != shares[first]:
            both = f"{first!r} has {shares[first]} and {name!r} has {shares[name]}"
            raise MergeError(
                f"tied tensors are one tensor, and need one weight each: {both}. Let a pattern match both."
            )
    return shares


def no_match(pattern: str, names: Sequence[str]) -> str:
    """Say that no tensor has a name that a pattern matches, and which patterns and names are near."""
    near = did_you_mean(pattern, (*names, *_patterns_of(names)))
    return f"no tensor has such a name. There are {list_some(list(map(repr, names)), 4)}.{near}"


def _patterns_of(names: Sequence[str]) -> set[str]:
    """List patterns for the modules of tensors: what stands in one, and what has one in its name."""
    patterns = set()
    for name in names:
        steps = name.split(".")
        patterns |= {".".join(steps[:at]) + ".*" for at in range(1, len(steps))}
        patterns |= {f"*.{step}.*" for step in steps[1:-1]} | {f"*.{steps[-1]}"}
    return patterns
