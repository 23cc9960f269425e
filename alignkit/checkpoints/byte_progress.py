"""How far a pass over many bytes has come, and when it will end at the pace so far."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias


@dataclass(frozen=True)
class ByteProgress:
    """One report of a pass over tensors.

    Attributes:
        done: Bytes processed.
        total: Bytes to process in this pass, as known now.
        seconds: Seconds since the pass began.
        stage: What is being done, such as ``"write"`` or ``"sweep 2"``.
        share: Part of the work that is done, where bytes alone would say it wrongly; None where they say it.
    """

    done: int
    total: int
    seconds: float
    stage: str = ""
    share: float | None = None

    @property
    def fraction(self) -> float:
        """Part of the pass that is done, from 0 to 1."""
        if self.share is not None:
            return min(1.0, self.share)
        return min(1.0, self.done / self.total) if self.total else 1.0

    @property
    def remaining(self) -> float | None:
        """Seconds to the end of this pass at the pace so far; None before anything is done."""
        if not self.fraction:
            return None
        return self.seconds * (1 - self.fraction) / self.fraction


OnProgress: TypeAlias = Callable[[ByteProgress], None]
