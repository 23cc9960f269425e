"""What balancing did to a space of a network."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from alignkit.graph.rewrites import AnyBalance


@dataclass(frozen=True, eq=False)
class BalancedSpace:
    """What balancing did to a space.

    ``before`` and ``after`` are the sums of squares of all that writes or reads it; where phases were moved, of its
    biases. ``empty`` counts units, planes or directions that nothing writes or nothing reads: the other side was set to
    0, too. What writes the space was multiplied by ``write``, what reads it by ``read``: a factor for each unit,
    ``[instances, units]``, or a matrix for each instance. Of sine units ``biases`` are those that were brought to one
    place, and ``turns`` the half periods by which each moved, ``[instances, units]``.
    """

    balance: AnyBalance
    before: float
    after: float
    empty: int
    write: Tensor
    read: Tensor
    biases: Tensor | None = None
    turns: Tensor | None = None

    @property
    def moved(self) -> int:
        """How many biases moved by half periods."""
        return 0 if self.turns is None else int(self.turns.count_nonzero())
