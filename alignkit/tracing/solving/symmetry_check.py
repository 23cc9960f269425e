"""Checking a solved symmetry against its constraints: random elements of it are carried over to all classes."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from alignkit.tracing.solving.closure import Closed
from alignkit.tracing.solving.orbits import Symmetry

BoolArray = npt.NDArray[np.bool_]


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


def _groups_broken_by(closed: Closed, symmetry: Symmetry, mask: BoolArray, rng: np.random.Generator) -> set[int]:
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
