"""Checking a solved symmetry against its constraints: a random element of it is carried over to all classes."""

from __future__ import annotations

import numpy as np

from alignkit.trace.closure import Closed
from alignkit.trace.labels import IntArray
from alignkit.trace.orbits import Orbit, Symmetry


def broken_groups(closed: Closed, symmetry: Symmetry, seed: int = 0) -> set[int]:
    """Return groups whose permutations do not respect the constraints; none, unless refinement was not exact.

    Args:
        closed: Classes and relations.
        symmetry: The groups to be checked.
        seed: Seed of the random element.
    """
    rng = np.random.default_rng(seed)
    image = np.arange(closed.count)
    broken: set[int] = set()
    for orbit in symmetry.orbits.values():
        if orbit.group:
            _move_group(symmetry, orbit, image, rng)
        elif not _move_determined(orbit, image):
            broken |= set(orbit.coordinates)
    for child, target in (*closed.maps, *closed.multiple, *closed.nested):
        codes = child * closed.count + target
        moved = image[child] * closed.count + image[target]
        wrong = ~np.isin(moved, codes)
        for key in np.unique(symmetry.orbit_of[child[wrong]]).tolist():
            broken |= set(symmetry.orbits[key].coordinates) if key >= 0 else set()
        for key in np.unique(symmetry.orbit_of[target[wrong]]).tolist():
            broken |= set(symmetry.orbits[key].coordinates) if key >= 0 else set()
    return broken


def _move_group(symmetry: Symmetry, orbit: Orbit, image: IntArray, rng: np.random.Generator) -> None:
    """Permute the units of each instance, and carry them to the instance where their parent goes."""
    count = len(orbit.members) // orbit.size
    instance = np.zeros(len(orbit.members), np.int64)
    target = instance
    if orbit.parent is not None:
        parents = orbit.coordinates[orbit.parent]
        owners, instance = np.unique(parents, return_inverse=True)
        target = np.searchsorted(owners, image[owners])[instance]
    table = np.empty((count, orbit.size), np.int64)
    table[instance, orbit.place] = orbit.members
    shuffled = np.stack([rng.permutation(orbit.size) for _ in range(count)])
    image[orbit.members] = table[target, shuffled[instance, orbit.place]]


def _move_determined(orbit: Orbit, image: IntArray) -> bool:
    """Carry over classes that their coordinates determine; return whether each has an image."""
    columns = np.stack(list(orbit.coordinates.values()), axis=1)
    order = np.lexsort(columns.T[::-1])
    wanted = image[columns]
    back = np.lexsort(wanted.T[::-1])
    if not np.array_equal(columns[order], wanted[back]):
        return False
    image[orbit.members[back]] = orbit.members[order]
    return True
