"""Which positions a run reads: those that it leaves aside stay where they are, because another run may read them.

A model adds `table[:, :10]`, the first of 64 positions, to an input of length 10. This run tells nothing of the other
54: nothing holds them in place. A longer input reads them, so they are fixed here. The bound of a slice may come from
the input, so the positions that it takes are told apart as well: a shorter input takes fewer of them.

Reading is followed from view to view. A slice or a transpose reads nothing by itself; the op that computes with its
elements does. So `a, b = h.chunk(2)` reads all of h if a and b are both used, and half of it if only a is.

What is told to users is less than what is fixed. The last layer of a classifier may read the first token alone. The
others stay, but the run did use them, in the layers before: positions of a parameter are told where no result of the
run depends on them. That is followed backwards through ops that compute each position by itself.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from alignkit.tracing.labels.constraints import Cause, Constraints
from alignkit.tracing.labels.tensor_labels import IntArray, LabelBlock, Labels


@dataclass(frozen=True, eq=False)
class Pick:
    """The positions `index` taken along one dimension of labels; `in_pieces` if these have sizes of their own."""

    labels: Labels
    dim: int
    index: IntArray
    in_pieces: bool = False

    @property
    def owner(self) -> LabelBlock | None:
        """The block that owns the dimension, if it is labelled."""
        return self.labels.owner.get(self.dim)

    @property
    def taken(self) -> Labels:
        """The labels of the positions that are taken."""
        return self.labels.index_select(self.dim, self.index)


@dataclass(frozen=True, eq=False)
class _Use:
    """An op that computes `results`, by their storages, with a tensor; sums over `summed`, and keeps others apart."""

    storage: int
    labels: Labels
    results: Sequence[tuple[int, Labels]]
    summed: Sequence[IntArray]


@dataclass
class Reads:
    """Collects, for each storage, the atoms that ops compute with and the picks among its positions."""

    _read: dict[int, list[tuple[Labels, Sequence[Labels]]]] = field(default_factory=lambda: defaultdict(list))
    _picks: dict[int, list[tuple[Pick, Cause]]] = field(default_factory=lambda: defaultdict(list))
    _uses: list[_Use] = field(default_factory=list)

    def read(self, storage: int, labels: Labels, views: Sequence[Labels] = ()) -> None:
        """Record that an op computes with a tensor, or only looks at it through `views` of other shapes."""
        self._read[storage].append((labels, views))

    def pick(self, storage: int, pick: Pick, views: Sequence[Labels], cause: Cause) -> None:
        """Record that an op takes some positions of a tensor, of which `views` are read where ops compute with them."""
        self._picks[storage].append((pick, cause))
        self.read(storage, pick.taken, views)

    def use(
        self,
        storage: int,
        labels: Labels,
        results: Sequence[tuple[int, Labels]] = (),
        summed: Sequence[IntArray] = (),
    ) -> None:
        """Record what an op computes with a tensor: `results` hold its positions apart, but for those summed over."""
        self._uses.append(_Use(storage, labels, results, summed))

    def written(self, storage: int) -> None:
        """Record that a part of a tensor is written: what was picked so far is not what the run has to read of it."""
        self._picks[storage].clear()

    def fix_unread(self, c: Constraints) -> IntArray:
        """Fix what was left aside; return the atoms of these positions."""
        unread = [_NOTHING]
        for storage, picks in self._picks.items():
            read = np.concatenate([_NOTHING, *(_taken(*pair) for pair in self._read[storage])])
            for pick, cause in picks:
                c.blame(cause.op, cause.where)
                unread += _fix_pick(c, pick, read)
        return np.unique(np.concatenate(unread))

    def unused(self, atoms: IntArray) -> IntArray:
        """Return those of some atoms on which no result of the run depends."""

        def among(arrays: Iterable[IntArray]) -> npt.NDArray[np.bool_]:
            return np.isin(atoms, np.concatenate([_NOTHING, *(array.ravel() for array in arrays)]))

        used: dict[int, npt.NDArray[np.bool_]] = defaultdict(lambda: np.zeros(len(atoms), bool))
        for use in reversed(self._uses if len(atoms) else ()):
            here = among(block.atoms for block in use.labels.blocks)
            if not here.any():
                continue
            kept, needed = np.zeros(len(atoms), bool), among(use.summed)
            for storage, labels in use.results:
                passed = among(block.atoms for block in labels.blocks)
                kept |= passed
                needed |= passed & used[storage]
            used[use.storage] |= here & (needed | ~kept)
        is_used = np.zeros(len(atoms), bool)
        for some in used.values():
            is_used |= some
        return atoms[~is_used]


_NOTHING: IntArray = np.zeros(0, np.int64)


def _taken(labels: Labels, views: Sequence[Labels]) -> IntArray:
    """Return the atoms that an op computes with. Those that go on in its views are read where the views are."""
    atoms, passed = (
        np.concatenate([_NOTHING, *(block.atoms.ravel() for x in tensors for block in x.blocks)])
        for tensors in ([labels], views)
    )
    return atoms[~np.isin(atoms, passed)] if len(passed) else atoms


def _fix_pick(c: Constraints, pick: Pick, read: IntArray) -> list[IntArray]:
    """Fix the positions along the dimension of a pick that nothing reads, and those that a slice takes beside them."""
    owner = pick.owner
    if owner is None:
        return []
    axis = owner.span.index(pick.dim)
    others = tuple(a for a in range(owner.atoms.ndim) if a != axis)
    aside = np.flatnonzero(~np.isin(owner.atoms, read).any(others))
    if not len(aside):
        return []
    unread = []
    for block in pick.labels.blocks:
        if pick.dim in block.span:
            unread.append(block.atoms.take(aside, block.span.index(pick.dim)).ravel())
            if block is not owner:  # units of the positions that are left aside
                c.fix(unread[-1])
    c.fix_axis(owner.atoms.take(aside, axis) if pick.in_pieces else owner.atoms, axis)
    return unread


def positions_of(labels: Labels, atoms: IntArray) -> dict[int, IntArray]:
    """Return for each dimension of a parameter the positions all of whose atoms are among these, if there are some."""
    found = {}
    for dim, owner in labels.owner.items():
        axis = owner.span.index(dim)
        others = tuple(a for a in range(owner.atoms.ndim) if a != axis)
        positions = np.flatnonzero(np.isin(owner.atoms, atoms).all(others))
        if len(positions):
            found[dim] = positions
    return found


def fix_single_rows(c: Constraints, labels: Labels, aside: Mapping[int, IntArray]) -> None:
    """Fix a parameter of which one slice of several dimensions was read: it does not tell what moves in the others.

    Two weights in a stack may read the units that each other write. Where two or more slices were read, the labels
    that they share tell; where slices are vectors, there is nothing that could be tied to anything else.
    """
    for dim, positions in aside.items():
        others = [n for d, n in enumerate(labels.shape) if d != dim and n > 1]
        if labels.shape[dim] - len(positions) == 1 and len(others) > 1:
            c.fix_labels(labels)
