"""How far a sweep over two networks has come: what it has done, what it has read from disk, and what is to come."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from math import prod
from time import perf_counter

from torch import Tensor

from alignkit.checkpoints import ByteProgress
from alignkit.graph.stored import StoredNetwork
from alignkit.matching.objective import Elements, Objective
from alignkit.matching.products import Product

_READ = 50
"""Work of reading and widening one number, in multiplications; measured, as is the next."""
_ASSIGN = 0.5
"""Work of an assignment of n units, in ``n**3`` multiplications."""
_KNOWN = Tensor()
"""Stands for indices that will be known later in the sweep; only that there are some is looked at."""


class SweepProgress:
    """An account of the sweeps of one run, for the ``on_progress`` of a pair; without one it does nothing."""

    def __init__(self, objective: Objective) -> None:
        self._objective, self._on_progress = objective, objective.bound.on_progress
        self._sweep = self._read = self._to_read = 0
        self._work = self._to_work = self._started = 0.0
        self._current = (0, 0, 0.0)
        """The tree that is updated: bytes read before it, bytes that it takes, work that it takes."""

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Count the bytes that are read meanwhile."""
        self._sweep = 0
        sides = (self._objective.a, self._objective.b) if self._on_progress is not None else ()
        stored = [side for side in sides if isinstance(side, StoredNetwork)]
        for side in stored:
            side.on_read = self._count
        try:
            yield
        finally:
            for side in stored:
                side.on_read = None

    def expect(self, sweep: int, waiting: list[list[str]], elements: Elements) -> None:
        """Sum up what is left of this sweep, class by class, as known now: later trees may still come to wait again."""
        if self._on_progress is None:
            return
        if sweep != self._sweep:
            self._sweep, self._read, self._work, self._started = sweep, 0, 0.0, perf_counter()
        self._to_read, self._to_work = self._read, self._work
        known = dict(elements)
        for roots in waiting:
            for root in roots:
                size, work = self._expected(root, known)
                self._to_read += size
                self._to_work += work
            known.update({name: _KNOWN for root in roots for name in self._objective.graph.tree(root)})

    @contextmanager
    def tree(self, root: str, elements: Elements) -> Iterator[None]:
        """Count the work of a tree, which is updated meanwhile, as done."""
        if self._on_progress is None:
            yield
            return
        size, work = self._expected(root, elements)
        self._current = (self._read, size, work)
        yield
        self._current = (0, 0, 0.0)
        self._work += work
        self._count(0)

    def _expected(self, root: str, elements: Mapping[str, Tensor | None]) -> tuple[int, float]:
        """Return the bytes that updating one tree reads, and its work in multiplications."""
        objective, size, work = self._objective, 0, 0.0
        for group in objective.graph.tree(root):
            units = objective.graph.unit_count(group)
            work += _ASSIGN * units**3
            for use in objective.uses[group]:
                product = Product(use, elements, within_parents=True)
                numbers = prod(dim.size for dim in use.block.dims)
                at, runs = product.cut(objective.a)
                a, b = (numbers * side.dtype(use.tensor).itemsize for side in (objective.a, objective.b))
                size += a + b * (len(runs) if at in product.compared else 1)
                work += _READ * numbers + product.work
        return size, work

    def _count(self, size: int) -> None:
        """Count bytes that were read, and report how far the sweep has come."""
        assert self._on_progress is not None
        self._read += size
        self._to_read = max(self._to_read, self._read)
        began, expected, in_all = self._current
        work = self._work + in_all * min(1.0, (self._read - began) / max(1, expected))
        share = work / self._to_work if self._to_work else 1.0
        seconds = perf_counter() - self._started
        self._on_progress(ByteProgress(self._read, self._to_read, seconds, f"sweep {self._sweep}", share))
