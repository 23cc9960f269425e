"""Solving the constraints, second half: colour refinement, the groups that it leaves, and a check of these.

Classes that refinement (Weisfeiler and Leman 1968) cannot tell apart form an orbit. An orbit is either *free* (its
classes may be exchanged, all of them or those with equal ancestors) or *determined*: each class is the only one with
its ancestors. Free orbits are the groups and families; the units among a class's ancestors are its coordinates.

The example of this file are two heads `h0 h1` with two units each, `u0 u1 u2 u3` -> `h0 h0 h1 h1`, and four columns
`p0 p1 p2 p3` -> `h0 h0 h1 h1` whose position inside of the head is kept (keys `0 1 0 1`). Refinement ends with four
orbits:

    orbit       coordinates         is
    h0 h1       {h: h0 h1}          a group of 2 units
    u0..u3      {h: h0 h0 h1 h1,    a family: 2 units for each unit of the parent h,
                 u: u0 u1 u2 u3}    with places 0 1 0 1
    p0 p2       {h: h0 h1}          determined: one class for each head
    p1 p3       {h: h0 h1}          determined
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from alignkit.tracing.labels.tensor_labels import IntArray
from alignkit.tracing.solving.closure import Closed, HashArray, Map, mix, seeded_hash


@dataclass(eq=False)
class Orbit:
    """Classes that no constraint tells apart, ascending, and whether they are the units of a group or family.

    `coordinates` are, for each group (by the number of its orbit), the unit among each member's ancestors, itself
    included, as a class. Each unit of the `parent` owns an instance of a family; a group has one instance. An instance
    has `size` units; `place` says where each member is among them.
    """

    members: IntArray
    coordinates: dict[int, IntArray] = field(default_factory=dict)
    group: bool = False
    parent: int | None = None
    place: IntArray = field(default_factory=lambda: np.zeros(0, np.int64))
    size: int = 0


@dataclass(eq=False)
class Symmetry:
    """The solved symmetry: orbits with at least two classes by number, parents before children.

    `orbit_of` is the number of each class's orbit, -1 where it cannot move, `index_of` its position among the members.
    Classes in `undecided` have keys that must be kept, because the notation cannot express how they move.
    """

    orbits: dict[int, Orbit]
    orbit_of: IntArray
    index_of: IntArray
    undecided: list[tuple[IntArray, IntArray]]

    @property
    def log_order(self) -> float:
        """The logarithm of the number of symmetries."""
        groups = [orbit for orbit in self.orbits.values() if orbit.group]
        return sum(len(orbit.members) // orbit.size * math.lgamma(orbit.size + 1) for orbit in groups)


def refine(closed: Closed, extra: HashArray) -> HashArray:
    """Return a stable colour for each class: equal colours have equal properties and equally coloured relatives.

    Each round adds to the colour of a class a hash of each relative's colour, with the number of the relation and the
    direction. It ends when a round makes no more colours than there were. `extra` holds further properties to keep, one
    hash a class, zero for none.
    """
    colour = closed.base + extra
    relations = [*closed.maps, *closed.multiple, *closed.nested]
    child = np.concatenate([a for a, _ in relations] or [np.zeros(0, np.int64)])
    target = np.concatenate([b for _, b in relations] or [np.zeros(0, np.int64)])
    number = np.repeat(np.arange(len(relations)), [len(a) for a, _ in relations])
    down, up = seeded_hash(1, number), seeded_hash(2, number)  # any two different seeds
    before, kinds = 0, len(np.unique(colour))
    while kinds != before:
        refined = mix(colour)
        np.add.at(refined, child, mix(mix(colour[target]) + down))
        np.add.at(refined, target, mix(mix(colour[child]) ^ up))
        colour = refined
        before, kinds = kinds, len(np.unique(colour))
    # Movable targets that have to be fixed, because refinement does not follow how they move. Where a child has several
    # targets, positions tell which is which. Where it stands in several rows, the rows may move as long as all children
    # of a colour stand in all rows of a colour: as many pairs as the product of both sizes.
    values, code, size = np.unique(colour, return_inverse=True, return_counts=True)
    vague = [targets[size[code[targets]] > 1] for _, targets in closed.multiple]
    for children, rows in closed.nested:
        codes = code[children] * len(values) + code[rows]
        pairs, index, count = np.unique(codes, return_inverse=True, return_counts=True)
        row_kinds = size[pairs % len(values)]
        partial = count != size[pairs // len(values)] * row_kinds
        vague.append(rows[(partial & (row_kinds > 1))[index]])
    fixed = np.unique(np.concatenate(vague or [np.zeros(0, np.int64)]))
    if not len(fixed):
        return colour
    told_apart = extra.copy()
    told_apart[fixed] += seeded_hash(3, fixed)
    return refine(closed, told_apart)


def solve(closed: Closed, extra: HashArray) -> Symmetry:
    """Return the groups and the coordinates of every class that can move. See `refine` for `extra`."""
    colour = refine(closed, extra)
    _, number, size = np.unique(colour, return_inverse=True, return_counts=True)
    orbit_of = np.where(size[number] > 1, number, -1)
    index_of = np.zeros(closed.count, np.int64)
    orbits: dict[int, Orbit] = {}
    order = np.argsort(orbit_of, kind="stable")
    movable = order[orbit_of[order] >= 0]
    bounds = np.flatnonzero(np.diff(orbit_of[movable])) + 1
    for members in np.split(movable, bounds) if len(movable) else []:
        index_of[members] = np.arange(len(members))
        orbits[int(orbit_of[members[0]])] = Orbit(members)
    # For each orbit, the maps from its classes to classes that can move too.
    parents: dict[int, list[Map]] = {key: [] for key in orbits}
    for child, target in closed.maps:
        both = (orbit_of[child] >= 0) & (orbit_of[target] >= 0)
        child, target = child[both], target[both]
        for key in np.unique(orbit_of[child]).tolist():
            of_orbit = orbit_of[child] == key
            parents[key].append((child[of_orbit], target[of_orbit]))
    symmetry = Symmetry({}, orbit_of, index_of, [])
    waiting = {key: {int(orbit_of[target[0]]) for _, target in maps} for key, maps in parents.items()}
    while waiting:
        ready = [key for key, above in waiting.items() if not above & waiting.keys()]
        if not ready:  # a cycle of relations, which has no notation: all of it stays
            symmetry.undecided += [(orbits[key].members, orbits[key].members) for key in waiting]
            break
        for key in ready:
            symmetry.orbits[key] = orbits[key]
            _find_coordinates(symmetry, key, orbits[key], parents[key], closed.first)
        for key in ready:
            del waiting[key]
    return symmetry


def _find_coordinates(symmetry: Symmetry, key: int, orbit: Orbit, parents: list[Map], first: IntArray) -> None:
    """Fill in the coordinates of an orbit whose ancestors have theirs, and whether it is a group.

    Members with equal coordinates form an instance: `u0 u1` and `u2 u3` in the example, by the coordinate h. In it,
    places follow the lowest atoms, which are the order of the first tensor that has these units.
    """
    contradicts = False
    for child, target in parents:
        above = symmetry.orbits[int(symmetry.orbit_of[target[0]])]
        for group, units in above.coordinates.items():
            column = np.full(len(orbit.members), -1)
            column[symmetry.index_of[child]] = units[symmetry.index_of[target]]
            contradicts |= not np.array_equal(orbit.coordinates.setdefault(group, column), column)
    groups = list(orbit.coordinates)
    columns = np.stack([orbit.coordinates[g] for g in groups] or [np.zeros(len(orbit.members), np.int64)])
    order = np.lexsort((first[orbit.members], *columns))
    new_instance = np.r_[True, (columns[:, order][:, 1:] != columns[:, order][:, :-1]).any(0)]
    starts = np.flatnonzero(new_instance)
    sizes = np.diff(np.r_[starts, len(order)])
    orbit.place = np.empty(len(order), np.int64)
    orbit.place[order] = np.arange(len(order)) - np.repeat(starts, sizes)
    # The parent is the innermost group, of which all others are ancestors: a group's coordinates are its ancestors' and
    # its own.
    orbit.parent = next((g for g in groups if symmetry.orbits[g].coordinates.keys() == set(groups)), None)
    # A family has an instance for each unit of its parent, all of one size.
    complete = not groups or (orbit.parent is not None and len(starts) == len(symmetry.orbits[orbit.parent].members))
    if contradicts or len(set(sizes.tolist())) != 1 or (sizes[0] > 1 and not complete):
        # Where the coordinates name every class already, yet contradict each other, places tell nothing apart.
        symmetry.undecided.append((orbit.members, orbit.place if orbit.place.any() else orbit.members))
    elif sizes[0] > 1:
        orbit.group, orbit.size = True, int(sizes[0])
        orbit.coordinates[key] = orbit.members


def broken_groups(closed: Closed, symmetry: Symmetry, seed: int = 0) -> set[int]:
    """Return groups whose permutations do not respect the constraints; none, unless refinement was not exact.

    An *instance* is a group, or the units of a family inside of one parent unit. One element moves all instances. Then,
    for each bit, one moves those whose number has this bit: of any two instances some element moves one and not the
    other, so that groups which are tied to each other are always found, however small they are.
    """
    rng = np.random.default_rng(seed)
    count = sum(len(orbit.members) // orbit.size for orbit in symmetry.orbits.values() if orbit.group)
    numbers = np.arange(count)
    masks = [(numbers >> bit) % 2 == 1 for bit in range(max(count - 1, 0).bit_length())]
    tries = (_groups_broken_by(closed, symmetry, mask, rng) for mask in (np.ones(count, bool), *masks))
    return next((broken for broken in tries if broken), set())


def _groups_broken_by(
    closed: Closed, symmetry: Symmetry, mask: npt.NDArray[np.bool_], rng: np.random.Generator
) -> set[int]:
    """Return groups of classes whose relations are lost by an element that moves the instances in `mask`."""
    image = np.arange(closed.count)
    broken: set[int] = set()
    start = 0
    for orbit in symmetry.orbits.values():
        if not orbit.group:
            # Classes that their coordinates determine go where these go, if a class is there.
            coordinates = np.stack(list(orbit.coordinates.values()), axis=1)
            moved = image[coordinates]
            order, moved_order = np.lexsort(coordinates.T[::-1]), np.lexsort(moved.T[::-1])
            if np.array_equal(coordinates[order], moved[moved_order]):
                image[orbit.members[moved_order]] = orbit.members[order]
            else:
                broken |= set(orbit.coordinates)
            continue
        # All units of an instance go where their parent goes; those of instances in the mask change places, too.
        instances = len(orbit.members) // orbit.size
        target = instance = np.zeros(len(orbit.members), np.int64)
        if orbit.parent is not None:
            owners, instance = np.unique(orbit.coordinates[orbit.parent], return_inverse=True)
            target = np.searchsorted(owners, image[owners])[instance]
        table = np.empty((instances, orbit.size), np.int64)
        table[instance, orbit.place] = orbit.members
        new_place = np.tile(np.arange(orbit.size), (instances, 1))
        for number in np.flatnonzero(mask[start : start + instances]):
            order = rng.permutation(orbit.size)
            new_place[number, order] = np.roll(order, 1)  # a cycle: nothing stays in its place
        image[orbit.members] = table[target, new_place[instance, orbit.place]]
        start += instances
    for child, target in (*closed.maps, *closed.multiple, *closed.nested):
        # The image of every pair (child, target) has to be a pair of the relation; its codes are ascending.
        codes = child * closed.count + target
        moved = image[child] * closed.count + image[target]
        wrong = codes[np.searchsorted(codes, moved).clip(max=len(codes) - 1)] != moved
        for key in np.unique(symmetry.orbit_of[np.concatenate([child[wrong], target[wrong]])]).tolist():
            broken |= set(symmetry.orbits[key].coordinates) if key >= 0 else set()
    return broken
