"""Near misses: the sentence that an error adds when a name was probably mistyped."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return ``" Did you mean 'sinkhorn'?"`` for a near miss of a known name, and ``""`` for anything else.

    The answer starts with a blank, so that it can be put behind a sentence as it is.
    """
    by_folded = {_folded(candidate): candidate for candidate in sorted(known, reverse=True)}
    close = difflib.get_close_matches(_folded(name), list(by_folded), n=1, cutoff=0.6)
    return f" Did you mean {by_folded[close[0]]!r}?" if close else ""


def _folded(name: str) -> str:
    return name.casefold().replace("-", "_").replace(" ", "_")
