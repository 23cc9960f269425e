"""Coordinate ascent over checkpoints on disk, with an account of each sweep: what it has read, and what is to come."""

from __future__ import annotations

from math import prod
from time import perf_counter

from torch import Tensor

from alignkit.checkpoints import ByteProgress, OnProgress
from alignkit.graph.symmetry_graph import SymmetryGraph
from alignkit.jobs.from_disk.objective import ObjectiveOnDisk, TreeOnDisk
from alignkit.matching.assignment import Backend
from alignkit.matching.objective import Elements, unknown_dims
from alignkit.solvers.weight_matching import Ascent, AscentRun, Proposal

_READ = 50
"""Work of reading and widening one number, in multiplications."""
_ASSIGN = 0.5
"""Work of an assignment of n units, in ``n**3`` multiplications."""


class Expected:
    """What updating one tree takes.

    Args:
        objective: The objective of the pair.
        root: The root of the tree.
        elements: What is known when the tree is updated.
    """

    def __init__(self, objective: ObjectiveOnDisk, root: str, elements: Elements) -> None:
        graph = objective.graph
        self.bytes, self.work = 0, 0.0
        for group in graph.tree(root):
            units = _units(graph, group)
            self.work += _ASSIGN * units**3
            for use in objective.uses[group]:
                size = prod(dim.size for dim in use.block.dims)
                self.bytes += objective.reads(use)
                reduced = prod(use.block.dims[at].size for at in unknown_dims(use, elements))
                self.work += size * (_READ + units / reduced)


def _units(graph: SymmetryGraph, group: str) -> int:
    return graph.instances(group) * graph.groups[group].size


class AscentOnDisk(Ascent):
    """Coordinate ascent over the trees of a graph, the weights being on disk.

    Args:
        objective: Objective of the pair.
        rtol: As for `Ascent`.
        max_steps: As for `Ascent`.
        on_progress: Is told of the bytes read in each sweep.
    """

    objective: ObjectiveOnDisk
    backend: Backend = "scipy"
    """It needs one copy of a similarity matrix; lapx needs two."""

    def __init__(self, objective: ObjectiveOnDisk, rtol: float, max_steps: int, on_progress: OnProgress | None) -> None:
        super().__init__(objective, rtol, max_steps)
        self.trees = {root: TreeOnDisk(objective, root) for root in self.graph.roots}
        self._on_progress = on_progress
        self._classes: list[list[str]] = []
        self._pending: set[str] = set()
        self._turns = self._done = self._total = 0
        self._work_done = self._work_total = self._started = 0.0
        self._current: tuple[Expected, int] | None = None

    def run(self, start: dict[str, Tensor | None], classes: list[list[str]]) -> AscentRun:
        """Update until nothing improves."""
        self._classes, self._pending, self._turns = classes, set(self.graph.roots), 0
        sides = self.objective.on_disk
        for side in sides:
            side.on_read = self._read
        try:
            return super().run(start, classes)
        finally:
            for side in sides:
                side.on_read = None

    def _update(self, roots: list[str], elements: dict[str, Tensor | None]) -> dict[str, float]:
        """Update trees that do not meet, as `Ascent` does, and keep account."""
        turn = self._turns % max(1, len(self._classes))
        if turn == 0:
            self._done, self._work_done, self._started = 0, 0.0, perf_counter()
        self._plan(turn, elements)
        self._turns += 1
        gains = super()._update(roots, elements)
        self._pending.difference_update(roots)
        for root in gains:
            self._pending |= self.around[root]
        return gains

    def _plan(self, turn: int, elements: dict[str, Tensor | None]) -> None:
        """What is left of this sweep, as known now: trees that wait, and those of later turns that may be added."""
        known = dict(elements)
        self._total, self._work_total = self._done, self._work_done
        for roots in self._classes[turn:]:
            waiting = [root for root in roots if root in self._pending]
            for root in waiting:
                expected = Expected(self.objective, root, known)
                self._total += expected.bytes
                self._work_total += expected.work
            known.update({name: _SOME for root in waiting for name in self.graph.tree(root)})

    def _propose(self, root: str, elements: dict[str, Tensor | None]) -> Proposal | None:
        expected = Expected(self.objective, root, elements)
        self._current = (expected, self._done)
        found = super()._propose(root, elements)
        self._current = None
        self._work_done += expected.work
        self._report(self._work_done)
        return found

    def _read(self, count: int) -> None:
        self._done += count
        self._total = max(self._total, self._done)
        work = self._work_done
        if self._current is not None:
            expected, began = self._current
            work += expected.work * min(1.0, (self._done - began) / max(1, expected.bytes))
        self._report(work)

    def _report(self, work: float) -> None:
        if self._on_progress is None:
            return
        sweep = 1 + (self._turns - 1) // max(1, len(self._classes))
        share = work / self._work_total if self._work_total else 1.0
        seconds = perf_counter() - self._started
        self._on_progress(ByteProgress(self._done, self._total, seconds, f"sweep {sweep}", share))


_SOME = Tensor()
"""Stands for indices that will be known; only that there are some is looked at."""
