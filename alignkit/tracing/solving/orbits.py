"""Solving the constraints, second half: colour refinement and the groups that it leaves.

Classes that refinement cannot tell apart form an orbit. An orbit is either *free* (its classes may be exchanged, all
of them or those with equal ancestors) or *determined*: each class is the only one with its ancestors. Free orbits are
the groups and families; the units among a class's ancestors are its coordinates.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from alignkit.tracing.labels.labels import IntArray
from alignkit.tracing.solving.closure import Closed, HashArray, Map, mix, seeded


@dataclass(eq=False)
class Orbit:
    """Classes that no constraint tells apart.

    Attributes:
        members: The classes, ascending.
        coordinates: For each group (by the number of its orbit) the unit among each member's ancestors, itself
            included, as a class.
        group: Whether the orbit is a group or family.
        parent: The group whose units each own an instance of this family, or None.
        place: If a group, the place of each member among the units of its instance.
        size: If a group, the number of units of an instance.
    """

    members: IntArray
    coordinates: dict[int, IntArray] = field(default_factory=dict)
    group: bool = False
    parent: int | None = None
    place: IntArray = field(default_factory=lambda: np.zeros(0, np.int64))
    size: int = 0


@dataclass(eq=False)
class Symmetry:
    """The solved symmetry: orbits with at least two classes, ancestors first, and the orbit and place of each class.

    Attributes:
        orbits: Orbits by number, parents before children.
        orbit_of: Number of each class's orbit, -1 where the class cannot move.
        index_of: Place of each class among the members of its orbit.
        undecided: Classes, each with keys that must be kept, because the notation cannot express how they move.
    """

    orbits: dict[int, Orbit]
    orbit_of: IntArray
    index_of: IntArray
    undecided: list[tuple[IntArray, IntArray]]


def refine(closed: Closed, extra: HashArray) -> HashArray:
    """Return a stable colour for each class: equal colours have equal properties and equally coloured relatives.

    Args:
        closed: Classes and relations.
        extra: Further properties to keep, one hash a class, zero for none.
    """
    colour = closed.base + extra
    relations = [*closed.maps, *closed.multiple, *closed.nested]
    child = np.concatenate([a for a, _ in relations] or [np.zeros(0, np.int64)])
    target = np.concatenate([b for _, b in relations] or [np.zeros(0, np.int64)])
    number = np.repeat(np.arange(len(relations)), [len(a) for a, _ in relations])
    down, up = seeded(1, number), seeded(2, number)
    kinds = len(np.unique(colour))
    while True:
        refined = mix(colour)
        np.add.at(refined, child, mix(mix(colour[target]) + down))
        np.add.at(refined, target, mix(mix(colour[child]) ^ up))
        now = len(np.unique(refined))
        colour = refined
        if now == kinds:
            break
        kinds = now
    vague = _vague_targets(closed, colour)
    if not len(vague):
        return colour
    told_apart = extra.copy()
    told_apart[vague] += seeded(3, vague)
    return refine(closed, told_apart)


def _vague_targets(closed: Closed, colour: HashArray) -> IntArray:
    """Return movable targets that have to be fixed, because refinement does not follow how they move.

    Where a child has several targets, positions tell which is which. Where it stands in several rows, the rows may
    move as long as all children of a colour stand in all rows of a colour.
    """
    values, code, size = np.unique(colour, return_inverse=True, return_counts=True)
    found = [target[size[code[target]] > 1] for _, target in closed.multiple]
    for child, target in closed.nested:
        pairs, index, count = np.unique(
            code[child] * len(values) + code[target], return_inverse=True, return_counts=True
        )
        partial = count != size[pairs // len(values)] * size[pairs % len(values)]
        movable = size[pairs % len(values)] > 1
        found.append(target[(partial & movable)[index]])
    return np.unique(np.concatenate(found)) if found else np.zeros(0, np.int64)


def solve(closed: Closed, extra: HashArray) -> Symmetry:
    """Return the groups and the coordinates of every class that can move. See `refine` for the arguments."""
    colour = refine(closed, extra)
    _, number, size = np.unique(colour, return_inverse=True, return_counts=True)
    orbit_of = np.where(size[number] > 1, number, -1)
    index_of = np.zeros(closed.count, np.int64)
    orbits: dict[int, Orbit] = {}
    order = np.argsort(orbit_of, kind="stable")
    ordered = orbit_of[order]
    movable = order[ordered >= 0]
    bounds = np.flatnonzero(np.diff(ordered[ordered >= 0])) + 1
    for members in np.split(movable, bounds) if len(movable) else []:
        index_of[members] = np.arange(len(members))
        orbits[int(orbit_of[members[0]])] = Orbit(members)
    parents = _parents(closed.maps, orbit_of)
    symmetry = Symmetry({}, orbit_of, index_of, [])
    instances: dict[int, int] = {}
    for key in _ancestors_first(orbits, parents, symmetry):
        _place(symmetry, key, orbits[key], parents.get(key, []), closed.first, instances)
    return symmetry


def _parents(maps: list[Map], orbit_of: IntArray) -> dict[int, list[Map]]:
    """Return, for each orbit, the maps from its classes to classes that can move too."""
    result: dict[int, list[Map]] = {}
    for child, target in maps:
        both = (orbit_of[child] >= 0) & (orbit_of[target] >= 0)
        child, target = child[both], target[both]
        of = orbit_of[child]
        for key in np.unique(of).tolist():
            result.setdefault(key, []).append((child[of == key], target[of == key]))
    return result


def _ancestors_first(orbits: dict[int, Orbit], parents: dict[int, list[Map]], symmetry: Symmetry) -> list[int]:
    """Return the orbits with every parent before its children; orbits on a cycle are told to be fixed."""
    above = {key: {int(symmetry.orbit_of[t[0]]) for _, t in parents.get(key, [])} for key in orbits}
    done: list[int] = []
    ready: set[int] = set()
    waiting = dict(above)
    while waiting:
        free = [key for key, needs in waiting.items() if needs <= ready]
        if not free:
            symmetry.undecided += [(orbits[key].members, orbits[key].members) for key in waiting]
            break
        done += free
        ready |= set(free)
        for key in free:
            del waiting[key]
    return done


def _place(
    symmetry: Symmetry, key: int, orbit: Orbit, parents: list[Map], first: IntArray, instances: dict[int, int]
) -> None:
    """Fill in the coordinates of an orbit, and whether it is a group."""
    symmetry.orbits[key] = orbit
    clash = False
    for child, target in parents:
        above = symmetry.orbits[int(symmetry.orbit_of[target[0]])]
        row = symmetry.index_of[target]
        for group, units in above.coordinates.items():
            column = np.full(len(orbit.members), -1)
            column[symmetry.index_of[child]] = units[row]
            known = orbit.coordinates.setdefault(group, column)
            clash |= not np.array_equal(known, column)
    groups = list(orbit.coordinates)
    columns = (
        np.stack([orbit.coordinates[g] for g in groups]) if groups else np.zeros((0, len(orbit.members)), np.int64)
    )
    order = np.lexsort((first[orbit.members], *columns))
    new = (
        np.r_[True, (columns[:, order][:, 1:] != columns[:, order][:, :-1]).any(0)]
        if groups
        else np.arange(len(order)) == 0
    )
    starts = np.flatnonzero(new)
    sizes = np.diff(np.r_[starts, len(order)])
    orbit.place = np.empty(len(order), np.int64)
    orbit.place[order] = np.arange(len(order)) - np.repeat(starts, sizes)
    orbit.parent = _innermost(symmetry, groups)
    instances[key] = len(order)
    complete = not groups or (orbit.parent is not None and len(starts) == instances[orbit.parent])
    if clash or len(set(sizes.tolist())) != 1 or (sizes[0] > 1 and not complete):
        # Where the coordinates name every class already, yet contradict each other, places tell nothing apart.
        symmetry.undecided.append((orbit.members, orbit.place if orbit.place.any() else orbit.members))
    elif sizes[0] > 1:
        orbit.group, orbit.size = True, int(sizes[0])
        orbit.coordinates[key] = orbit.members


def _innermost(symmetry: Symmetry, groups: list[int]) -> int | None:
    """Return the group of which all others are ancestors, or None if there is no such group."""
    for group in groups:
        chain = {group}
        up = symmetry.orbits[group].parent
        while up is not None:
            chain.add(up)
            up = symmetry.orbits[up].parent
        if chain == set(groups):
            return group
    return None
