"""Coordinate ascent over checkpoints on disk, with an account of each sweep: what it has read, and what is to come."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from time import perf_counter
from typing import ClassVar

from torch import Tensor

from alignkit.checkpoints import ByteProgress, OnProgress
from alignkit.jobs.from_disk.weights import WeightsOnDisk
from alignkit.matching.assignment import Backend
from alignkit.matching.objective import Elements, Objective
from alignkit.matching.products import Product
from alignkit.solver import Report
from alignkit.solvers.coordinate_ascent import Ascent, AscentRun, Proposal

_READ = 50
"""Work of reading and widening one number, in multiplications; measured, as is the next."""
_ASSIGN = 0.5
"""Work of an assignment of n units, in ``n**3`` multiplications."""
_KNOWN = Tensor()
"""Stands for indices that will be known later in the sweep; only that there are some is looked at."""


class AscentOnDisk(Ascent):
    """Coordinate ascent with the weights on disk; ``on_progress`` is called with the bytes read in each sweep."""

    backend: ClassVar[Backend] = "scipy"
    """It needs one copy of a similarity matrix; lapx needs two."""

    def __init__(self, objective: Objective, rtol: float, max_sweeps: int, on_progress: OnProgress | None) -> None:
        super().__init__(objective, rtol, max_sweeps)
        self._sides = tuple(side for side in (objective.a, objective.b) if isinstance(side, WeightsOnDisk))
        self._on_progress = on_progress
        self._sweep = self._read = self._to_read = 0
        self._work = self._to_work = self._started = 0.0
        self._current = (0, 0, 0.0)
        """The tree that is updated: bytes read before it, bytes that it takes, work that it takes."""

    def run(
        self, start: Mapping[str, Tensor | None], classes: list[list[str]], report: Report = lambda step: None
    ) -> AscentRun:
        """Update until nothing improves; bytes are counted meanwhile."""
        self._sweep = 0
        for side in self._sides:
            side.on_read = self._count
        try:
            return super().run(start, classes, report)
        finally:
            for side in self._sides:
                side.on_read = None

    def prepare(self, sweep: int, waiting: list[list[str]], elements: Mapping[str, Tensor | None]) -> None:
        """Sum up what is left of this sweep, as known now: updates may still make later trees wait again."""
        if sweep != self._sweep:
            self._sweep, self._read, self._work, self._started = sweep, 0, 0.0, perf_counter()
        self._to_read, self._to_work = self._read, self._work
        known = dict(elements)
        for roots in waiting:
            for root in roots:
                size, work = self._expected(root, known)
                self._to_read += size
                self._to_work += work
            known.update({name: _KNOWN for root in roots for name in self.graph.tree(root)})

    def propose(self, root: str, elements: dict[str, Tensor | None]) -> Proposal | None:
        """Find a better element for one tree, and count its work as done."""
        size, work = self._expected(root, elements)
        self._current = (self._read, size, work)
        proposal = super().propose(root, elements)
        self._current = (0, 0, 0.0)
        self._work += work
        self._count(0)
        return proposal

    def _expected(self, root: str, elements: Elements) -> tuple[int, float]:
        """Return the bytes that updating one tree reads, and its work in multiplications."""
        size, work = 0, 0.0
        for group in self.graph.tree(root):
            units = self.graph.unit_count(group)
            work += _ASSIGN * units**3
            for use in self.objective.uses[group]:
                product = Product(use, elements, within_parents=True)
                numbers = prod(dim.size for dim in use.block.dims)
                at, runs = product.cut(self._sides[0])
                a, b = (numbers * side.dtype(use.tensor).itemsize for side in self._sides)
                size += a + b * (len(runs) if at in product.compared else 1)
                work += _READ * numbers + product.work
        return size, work

    def _count(self, size: int) -> None:
        """Count bytes that were read, and report how far the sweep has come."""
        self._read += size
        self._to_read = max(self._to_read, self._read)
        if self._on_progress is not None:
            began, expected, in_all = self._current
            work = self._work + in_all * min(1.0, (self._read - began) / max(1, expected))
            share = work / self._to_work if self._to_work else 1.0
            seconds = perf_counter() - self._started
            self._on_progress(ByteProgress(self._read, self._to_read, seconds, f"sweep {self._sweep}", share))
