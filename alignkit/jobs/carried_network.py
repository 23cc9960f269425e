"""A fine-tune on another base, all of them on disk: each part is computed when it is asked for."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from alignkit.checkpoints.dtypes import Rounding, length
from alignkit.checkpoints.fit import is_counter, is_number
from alignkit.errors import MergeError
from alignkit.graph.parts import Places
from alignkit.graph.stored import StoredNetwork
from alignkit.jobs.average import widen


class TaskVector(StoredNetwork):
    """What lies between two networks on disk, in float64; nothing for whole numbers."""

    def __init__(self, before: StoredNetwork, after: StoredNetwork) -> None:
        super().__init__(before.graph, before.budget)
        self.before, self.after = before, after

    def dtype(self, name: str) -> torch.dtype:
        """Return the dtype of a tensor."""
        return torch.float64

    def rows(self, name: str, places: Places) -> Tensor:
        """Read some rows of a tensor; of one without axes all of it."""
        before, after = (side.rows(name, places) for side in (self.before, self.after))
        return widen(after, before.device) - widen(before, before.device)

    @property
    def whole_numbers(self) -> tuple[str, ...]:
        """Tensors of whole numbers, counters left out, in which the networks differ."""
        names = [name for name in self if not is_number(self.before.dtype(name)) and not is_counter(name)]
        sides = self.before, self.after
        return tuple(n for n in names if any(not torch.equal(*(s.rows(n, at) for s in sides)) for at in self.spans(n)))

    @property
    def length(self) -> float:
        """Its Euclidean length."""
        numbers = [name for name in self if is_number(self.before.dtype(name))]
        return math.hypot(*(length(self.rows(name, span)) for name in numbers for span in self.spans(name)))


class CarriedNetwork(StoredNetwork):
    """A base with a multiple of a task vector in the order of its units added, in the dtypes of the base or another."""

    def __init__(
        self, base: StoredNetwork, vector: StoredNetwork, scale: float, dtype: torch.dtype | None, rounding: Rounding
    ) -> None:
        super().__init__(base.graph, base.budget)
        self.base, self.vector, self.scale, self.wanted, self.rounding = base, vector, scale, dtype, rounding

    def dtype(self, name: str) -> torch.dtype:
        """Return the dtype of a tensor."""
        own = self.base.dtype(name)
        return own if self.wanted is None or not is_number(own) else self.wanted

    def rows(self, name: str, places: Places) -> Tensor:
        """Compute some rows of a tensor; of one without axes all of it."""
        target = self.base.rows(name, places)
        if not is_number(target):
            return target
        return carried(name, target, self.vector.rows(name, places), self.scale, self.dtype(name), self.rounding)


def carried(name: str, target: Tensor, vector: Tensor, scale: float, dtype: torch.dtype, rounding: Rounding) -> Tensor:
    """Add a multiple of a part of a task vector to a tensor; running variances stay positive."""
    wide = widen(target, target.device)
    moved = wide + scale * vector
    if name.endswith("running_var"):
        moved = torch.where(moved > 0, moved, wide)
    return rounding.narrow(moved, dtype, name, MergeError)
