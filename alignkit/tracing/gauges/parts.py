"""Where spaces stand in the tensors of a run.

A *space* is a group of the first pass that is nowhere an outer factor of another: the residual stream, the units of a
layer, the dimensions inside heads, but not the heads. In a tensor it has *parts*: positions that come from one segment
of one axis of one parameter. The queries, keys and values of a fused projection are three parts, whatever was split,
transposed or joined in between, because labels carry the atoms of the parameter along.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from alignkit.graph.rewrites import AxisOf
from alignkit.tracing.labels.tensor_labels import IntArray, LabelBlock, Labels
from alignkit.tracing.reading.axes import LabelledSegment, groups_on
from alignkit.tracing.reading.traced_layouts import TracedLayouts


@dataclass(frozen=True)
class ParameterSegment:
    """Positions of an axis of a parameter at which a space stands: one of several if it stands there repeatedly."""

    space: int
    axis: AxisOf


@dataclass(frozen=True, eq=False)
class Part:
    """Positions of a tensor at which a space stands.

    Attributes:
        space: The space, by the number of its orbit.
        source: The segment whose atoms these are, by its number; -1 where an op made atoms of its own.
        block: The block of labels.
        dims: The dimensions of the tensor along which the space stands: not those of a block of products, such as all
            units of all experts, along which its units repeat.
        first: Coordinates of the first position, one for each dimension that the block spans.
        unit: The class of the atom there.
    """

    space: int
    source: int
    block: LabelBlock
    dims: tuple[int, ...]
    first: Mapping[int, int]
    unit: int


@dataclass(eq=False)
class Spaces:
    """The spaces of a traced model, the segments of parameters where they stand, and the parts of any tensor."""

    traced: TracedLayouts
    segments: list[ParameterSegment] = field(default_factory=list)
    _leaves: frozenset[int] = frozenset()
    _source: IntArray = field(default_factory=lambda: np.zeros(0, np.int64))
    _known: dict[int, tuple[Labels, tuple[Part, ...]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        orbits = self.traced.symmetry.orbits
        groups = {key for key, orbit in orbits.items() if orbit.group}
        outer = {orbits[key].parent for key in groups}
        for segment in (segment for axes in self.traced.axes.values() for axis in axes for segment in axis):
            outer |= _outer_groups(segment)
        self._leaves = frozenset(groups - outer)
        self._source = np.full(len(self.traced.closed.classes), -1, np.int64)

    @property
    def leaves(self) -> frozenset[int]:
        """The numbers of all spaces."""
        return self._leaves

    def size_of(self, space: int) -> int:
        """Return the number of units of a space; for a family, of each unit of the parent."""
        return self.traced.symmetry.orbits[space].size

    def source_of(self, atom: int) -> int:
        """Return the number of the segment that an atom comes from, -1 if an op made it."""
        return int(self._source[atom])

    def add_parameter(self, name: str, labels: Labels) -> tuple[Part, ...]:
        """Find the segments of a parameter, and return its parts."""
        for block in labels.blocks:
            if len(block.dims) != 1:
                continue
            axis = block.dims[0]
            rows = np.moveaxis(block.atoms, block.span.index(axis), -1).reshape(-1, labels.shape[axis])
            classes = self.traced.closed.classes[rows]
            turns = np.stack([_occurrences(row) for row in classes])
            for space, here in self._positions(classes).items():
                # Queries that share their keys stand in several heads for each of them: a segment of its own.
                owners = np.where(here, self._owners(classes), -1)
                for owner in np.unique(owners[here]).tolist():
                    for turn in np.unique(turns[owners == owner]).tolist():
                        chosen = (owners == owner) & (turns == turn)
                        for places in _describable(np.flatnonzero(chosen.any(0)), labels.shape[axis]):
                            own = rows[:, places]
                            fresh = own[chosen[:, places] & (self._source[own] < 0)]
                            self._source[fresh] = len(self.segments)
                            described = _axis_of(name, axis, places, labels.shape[axis])
                            self.segments.append(ParameterSegment(space, described))
        return self.parts(labels)

    def parts(self, labels: Labels) -> tuple[Part, ...]:
        """Return where spaces stand in a tensor."""
        if id(labels) not in self._known:
            parts = [part for block in labels.blocks for part in self._parts_of_block(block)]
            self._known[id(labels)] = (labels, tuple(parts))  # keeps the labels, so that the number stays theirs
        return self._known[id(labels)][1]

    def _parts_of_block(self, block: LabelBlock) -> list[Part]:
        classes = self.traced.closed.classes[block.atoms]
        parts = []
        for space, here in self._positions(classes).items():
            sources = np.where(here, self._source[block.atoms], -2)
            dims = block.dims if len(block.dims) == 1 else self._dims_of(space, classes, here, block)
            for source, at in zip(*np.unique(sources, return_index=True), strict=True):
                if source > -2:
                    first = np.unravel_index(int(at), classes.shape)
                    where = dict(zip(block.span, map(int, first), strict=True))
                    parts.append(Part(space, int(source), block, dims, where, int(classes.flat[int(at)])))
        return parts

    def _dims_of(self, space: int, classes: IntArray, here: np.ndarray, block: LabelBlock) -> tuple[int, ...]:
        """Return those dimensions of a block along which the units of a space differ."""
        units = np.full(classes.shape, -1, np.int64)
        members = classes[here]
        keys = self.traced.symmetry.orbit_of[members]
        values = np.empty(len(members), np.int64)
        for key in np.unique(keys).tolist():
            among = self.traced.symmetry.index_of[members[keys == key]]
            values[keys == key] = self.traced.symmetry.orbits[key].coordinates[space][among]
        units[here] = values
        axes = {d: block.span.index(d) for d in block.dims}
        return tuple(d for d, axis in axes.items() if (units != units.take([0], axis)).any()) or block.dims

    def _owners(self, classes: IntArray) -> IntArray:
        """Return a number for the set of groups on which each of some classes depends."""
        orbits = self.traced.symmetry.orbits
        keys, index = np.unique(self.traced.symmetry.orbit_of[classes], return_inverse=True)
        sets: dict[frozenset[int], int] = {}
        owners = [frozenset(orbits[key].coordinates) if key in orbits else frozenset() for key in keys.tolist()]
        return np.array([sets.setdefault(owner, len(sets)) for owner in owners])[index].reshape(classes.shape)

    def _positions(self, classes: IntArray) -> dict[int, np.ndarray]:
        """Return, for each space, at which of some classes it stands."""
        orbits = self.traced.symmetry.orbit_of[classes]
        positions: dict[int, np.ndarray] = {}
        for key in np.unique(orbits[orbits >= 0]).tolist():
            for space in self._leaves.intersection(self.traced.symmetry.orbits[key].coordinates):
                positions[space] = positions.get(space, False) | (orbits == key)
        return positions


def _outer_groups(segment: LabelledSegment) -> set[int]:
    """Return the groups that have another one inside of their units, in a segment of an axis."""
    outer: set[int] = set().union(*map(_outer_groups, segment.inner))
    if segment.group is not None and groups_on(segment.inner):
        outer.update((segment.group,) if isinstance(segment.group, int) else segment.group)
    return outer


def _occurrences(classes: IntArray) -> IntArray:
    """Count, for each position, the positions before it that hold the same class: 0 0 1 1 for ``a b a b``."""
    order = np.argsort(classes, kind="stable")
    ordered = classes[order]
    starts = np.r_[True, ordered[1:] != ordered[:-1]]
    index = np.arange(len(classes))
    counts = np.empty(len(classes), np.int64)
    counts[order] = index - np.maximum.accumulate(np.where(starts, index, 0))
    return counts


def _runs(places: IntArray) -> list[IntArray]:
    return np.split(places, np.flatnonzero(np.diff(places) > 1) + 1)


def _describable(places: IntArray, size: int) -> list[IntArray]:
    """Cut positions of an axis into parts that `AxisOf` can describe: one where they come regularly to its end."""
    runs = _runs(places)
    every = set(np.diff([run[0] for run in runs]).tolist())
    regular = len({len(run) for run in runs}) == len(every) == 1 and len(runs) * max(every) == size
    return [places] if regular else runs


def _axis_of(name: str, axis: int, places: IntArray, size: int) -> AxisOf:
    """Describe positions of an axis: all, a run, or a run that comes again and again."""
    runs = _runs(places)
    start, length = int(places[0]), len(runs[0])
    if len(places) == size:
        return AxisOf(name, axis)
    if len(runs) == 1:
        return AxisOf(name, axis, start, length)
    every = int(runs[1][0] - runs[0][0])
    return AxisOf(name, axis, start, length, every)
