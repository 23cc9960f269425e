"""Checking a solved symmetry against its constraints: random elements of it are carried over to all classes."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from alignkit.tracing.labels.labels import IntArray
from alignkit.tracing.solving.closure import Closed
from alignkit.tracing.solving.orbits import Orbit, Symmetry

BoolArray = npt.NDArray[np.bool_]


def broken_groups(closed: Closed, symmetry: Symmetry, seed: int = 0) -> set[int]:
    """Return groups whose permutations do not respect the constraints; none, unless refinement was not exact.

    Of any two groups, or two instances of a family, some element moves one and not the other: groups that are tied to
    each other are always found, however small they are. One more element moves all.

    Args:
        closed: Classes and relations.
        symmetry: The groups to be checked.
        seed: Seed of the random elements.
    """
    rng = np.random.default_rng(seed)
    count = sum(len(orbit.members) // orbit.size for orbit in symmetry.orbits.values() if orbit.group)
    numbers = np.arange(count)
    masks = [(numbers >> bit) % 2 == 1 for bit in range(max(count - 1, 0).bit_length())]
    for mask in (np.ones(count, bool), *masks):
        broken = _broken_by(closed, symmetry, mask, rng)
        if broken:
            return broken
    return set()


def _broken_by(closed: Closed, symmetry: Symmetry, mask: BoolArray, rng: np.random.Generator) -> set[int]:
    """Return groups of classes whose relations are lost by an element that moves the instances in `mask`."""
    image = np.arange(closed.count)
    broken: set[int] = set()
    at = 0
    for orbit in symmetry.orbits.values():
        if orbit.group:
            instances = len(orbit.members) // orbit.size
            _move_group(symmetry, orbit, image, mask[at : at + instances], rng)
            at += instances
        elif not _move_determined(orbit, image):
            broken |= set(orbit.coordinates)
    for child, target in (*closed.maps, *closed.multiple, *closed.nested):
        codes = child * closed.count + target  # ascending, as relations are
        moved = image[child] * closed.count + image[target]
        wrong = codes[np.searchsorted(codes, moved).clip(max=len(codes) - 1)] != moved
        for key in np.unique(symmetry.orbit_of[np.concatenate([child[wrong], target[wrong]])]).tolist():
            broken |= set(symmetry.orbits[key].coordinates) if key >= 0 else set()
    return broken


def _move_group(symmetry: Symmetry, orbit: Orbit, image: IntArray, mask: BoolArray, rng: np.random.Generator) -> None:
    """Move every unit of the instances in `mask`, and carry all to the instance where their parent goes."""
    count = len(orbit.members) // orbit.size
    instance = np.zeros(len(orbit.members), np.int64)
    target = instance
    if orbit.parent is not None:
        parents = orbit.coordinates[orbit.parent]
        owners, instance = np.unique(parents, return_inverse=True)
        target = np.searchsorted(owners, image[owners])[instance]
    table = np.empty((count, orbit.size), np.int64)
    table[instance, orbit.place] = orbit.members
    order = np.arange(orbit.size)
    shuffled = np.stack([_cycle(rng, orbit.size) if moves else order for moves in mask])
    image[orbit.members] = table[target, shuffled[instance, orbit.place]]


def _cycle(rng: np.random.Generator, size: int) -> IntArray:
    """Return a random permutation that leaves nothing in its place."""
    order = rng.permutation(size)
    result = np.empty(size, np.int64)
    result[order] = np.roll(order, 1)
    return result


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
