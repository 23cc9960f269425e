"""The table of laws by the names of ops."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from alignkit.tracing.gauges.operation import Operation

Law: TypeAlias = Callable[[Operation], None]


class LawSet(dict[str, Law]):
    """The laws of one file, by op name. Its functions add themselves while the file is imported."""

    def law(self, *names: str) -> Callable[[Law], Law]:
        """Decorate a function as the law of ops, given without namespace."""

        def keep(function: Law) -> Law:
            for name in names:
                self[name] = function
            return function

        return keep
