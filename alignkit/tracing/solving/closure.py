"""Solving the constraints, first half: congruence closure.

Atoms that were merged become classes. If a class has two targets that determine each other, they are one class; if
one determines the other, that is a relation too; relations compose. All of it works on whole arrays: a relation is
two arrays of class numbers.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from scipy.sparse import coo_matrix, csr_matrix
from scipy.sparse.csgraph import connected_components

from alignkit.tracing.labels.constraints import Constraints, Relation
from alignkit.tracing.labels.labels import IntArray, digest

HashArray = npt.NDArray[np.uint64]
Map = tuple[IntArray, IntArray]

_SPLIT_AT_MOST = 512
"""Two relations are compared separately for each kind of child up to this many kinds."""


@dataclass(eq=False)
class Closed:
    """Classes of atoms and the relations between them.

    Attributes:
        classes: Class of each atom.
        count: Number of classes.
        maps: Relations with one target for each child, as arrays (children, targets) of classes, children ascending.
        multiple: Relations with several targets for some child: which target is meant depends on the position.
        nested: Relations with several rows for some child.
        base: Hash of the kept properties of each class.
    """

    classes: IntArray
    count: int
    maps: list[Map]
    multiple: list[Map]
    nested: list[Map]
    base: HashArray
    first: IntArray = field(default_factory=lambda: np.zeros(0, np.int64))


def mix(x: npt.NDArray[np.generic] | HashArray) -> HashArray:
    """Return a well-mixed 64-bit hash of each element (the finaliser of splitmix64)."""
    h = x.astype(np.uint64)
    h = (h ^ (h >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    h = (h ^ (h >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return h ^ (h >> np.uint64(31))


def seeded(seed: int, x: npt.NDArray[np.generic]) -> HashArray:
    """Return a hash of each element that differs between seeds."""
    start = mix(np.array([seed + 1], np.uint64) * np.uint64(0x9E3779B97F4A7C15))
    return mix(mix(x) + start)


def close(c: Constraints) -> Closed:
    """Return the classes and relations that the constraints imply."""
    n = c.count
    left = [np.concatenate([a for a, _ in c.merges] or [np.zeros(0, np.int64)])]
    right = [np.concatenate([b for _, b in c.merges] or [np.zeros(0, np.int64)])]
    colours = _colour_hashes(c)
    pairs = _pairs(c.relations)
    while True:
        edges = (np.concatenate(left), np.concatenate(right))
        count, found = connected_components(
            coo_matrix((np.ones(len(edges[0]), np.int8), edges), shape=(n, n)), directed=False
        )
        classes = found.astype(np.int64)
        member = np.zeros(count, np.int64)
        member[classes[::-1]] = np.arange(n)[::-1]
        base = _base(c, classes, count, colours)
        maps, multiple, nested, known = _quotient(pairs, classes, count)
        merges, more = _consequences(maps, base, count, known)
        if not merges and not more:
            return Closed(classes, count, maps, multiple, nested, base, member)
        left += [member[a] for a, _ in merges]
        right += [member[b] for _, b in merges]
        pairs = [(member[a], member[b], False) for a, b in (*maps, *multiple, *more)]
        pairs += [(member[a], member[b], True) for a, b in nested]


def _pairs(relations: Iterable[Relation]) -> list[tuple[IntArray, IntArray, bool]]:
    pairs = []
    for r in relations:
        children, targets = np.broadcast_arrays(r.children, r.targets)
        pairs.append((children.ravel(), targets.ravel(), r.context))
    return pairs


def _colour_hashes(c: Constraints) -> tuple[IntArray, HashArray]:
    """Return all coloured atoms and a hash of the colour for each."""
    if not c.colours:
        return np.zeros(0, np.int64), np.zeros(0, np.uint64)
    atoms = np.concatenate([colour.atoms for colour in c.colours])
    hashes = [
        seeded(i, np.zeros(len(x.atoms), np.int64) if x.keys is None else x.keys + 1) for i, x in enumerate(c.colours)
    ]
    return atoms, np.concatenate(hashes)


def _base(c: Constraints, classes: IntArray, count: int, colours: tuple[IntArray, HashArray]) -> HashArray:
    """Return a hash of the kept properties of each class.

    Colours, and the place among several relations to one class.
    """
    base = np.zeros(count, np.uint64)
    np.add.at(base, classes[colours[0]], colours[1])
    for number, relation in enumerate(c.relations):
        targets = relation.targets
        if targets.size < 2:
            continue
        shape = [n if axis in relation.apart else 1 for axis, n in enumerate(targets.shape)]
        rows = np.arange(int(np.prod(shape, dtype=np.int64))).reshape(shape)
        occurrence = _occurrences((classes[targets] * rows.size + rows).ravel())
        if occurrence is None:
            continue
        whole = np.broadcast_shapes(relation.children.shape, targets.shape)
        places = np.broadcast_to(occurrence.reshape(targets.shape), whole)
        children = np.broadcast_to(relation.children, whole)
        tags = np.unique(np.stack([classes[children.ravel()], places.ravel()]), axis=1)
        np.add.at(base, tags[0], seeded(10**7 + number, tags[1]))
    return base


def _occurrences(values: IntArray) -> IntArray | None:
    """Return how often each value came before, or None if none repeats."""
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    first = np.r_[True, ordered[1:] != ordered[:-1]]
    if first.all():
        return None
    start = np.maximum.accumulate(np.where(first, np.arange(len(values)), 0))
    result = np.empty(len(values), np.int64)
    result[order] = np.arange(len(values)) - start
    return result


def _quotient(
    pairs: list[tuple[IntArray, IntArray, bool]], classes: IntArray, count: int
) -> tuple[list[Map], list[Map], list[Map], set[bytes]]:
    """Return the relations between classes without repetitions.

    Maps, those with several targets or rows, and all keys.
    """
    maps: list[Map] = []
    several: tuple[list[Map], list[Map]] = ([], [])
    known: set[bytes] = set()
    seen: set[tuple[bytes, bool]] = set()
    for children, targets, context in pairs:
        a, b = _unique_pairs(classes[children], classes[targets], count)
        key = digest(np.concatenate([a, b]))
        if not len(a) or (key, context) in seen:
            continue
        seen.add((key, context))
        again = a[1:] == a[:-1]
        if again.any():
            repeated = np.isin(a, a[1:][again])
            several[context].append((a[repeated], b[repeated]))
            a, b = a[~repeated], b[~repeated]
            key = digest(np.concatenate([a, b]))
        if len(a) and key not in known:
            known.add(key)
            maps.append((a, b))
    return maps, several[False], several[True], known


def _distinct(values: IntArray) -> IntArray:
    """Return the distinct values, ascending. Sorting beats numpy's hashing on these arrays."""
    ordered = np.sort(values)
    return ordered[np.r_[True, ordered[1:] != ordered[:-1]]] if len(ordered) else ordered


def _unique_pairs(a: IntArray, b: IntArray, count: int) -> Map:
    """Return the distinct pairs with different members, sorted."""
    different = a != b
    codes = _distinct(a[different] * count + b[different])
    return codes // count, codes % count


def _consequences(maps: list[Map], base: HashArray, count: int, known: set[bytes]) -> tuple[list[Map], list[Map]]:
    """Return the merges and the new relations that follow from pairs of maps."""
    merges: list[Map] = []
    more: list[Map] = []
    if not maps:
        return merges, more
    by_child, by_target = _incidence([a for a, _ in maps], count), _incidence([b for _, b in maps], count)
    for i, j in _overlaps(by_child, by_child):
        if i < j:
            _compare(maps[i], maps[j], base, count, merges, more)
    for i, j in _overlaps(by_target, by_child):
        (a, b), (a2, b2) = maps[i], maps[j]
        place = np.searchsorted(a2, b).clip(max=len(a2) - 1)
        chained = a2[place] == b
        more.append((a[chained], b2[place[chained]]))
    fresh = []
    for a, b in more:
        a, b = _unique_pairs(a, b, count)
        key = digest(np.concatenate([a, b]))
        if len(a) and key not in known:
            known.add(key)
            fresh.append((a, b))
    return merges, fresh


def _incidence(members: list[IntArray], count: int) -> csr_matrix:
    rows = np.repeat(np.arange(len(members)), [len(m) for m in members])
    matrix = csr_matrix((np.ones(len(rows), np.int32), (rows, np.concatenate(members))), shape=(len(members), count))
    matrix.data[:] = 1
    return matrix


def _overlaps(a: csr_matrix, b: csr_matrix) -> list[tuple[int, int]]:
    """Return the pairs of rows with a common member."""
    product = (a @ b.T).tocoo()
    return list(zip(product.row.tolist(), product.col.tolist(), strict=True))


def _compare(one: Map, other: Map, base: HashArray, count: int, merges: list[Map], more: list[Map]) -> None:
    """Compare the targets that two maps give to their common children: of all at once, else of each kind of child."""
    common, x, y = np.intersect1d(one[0], other[0], assume_unique=True, return_indices=True)
    u, v = one[1][x], other[1][y]
    if _relate(np.zeros(len(common), np.int64), 1, u, v, count, merges, more):
        return
    kinds, kind = np.unique(base[common], return_inverse=True)
    if 1 < len(kinds) <= _SPLIT_AT_MOST:
        _relate(kind, len(kinds), u, v, count, merges, more)


def _relate(
    kind: IntArray, kinds: int, u: IntArray, v: IntArray, count: int, merges: list[Map], more: list[Map]
) -> bool:
    """Merge targets that determine each other, relate those where one determines the other, for each kind apart.

    Return whether either is so for all kinds. A relation to one class says no more than the maps do and counts too.
    """
    codes = _distinct((kind * count + u) * count + v)
    kind, u, v = codes // count // count, codes // count % count, codes % count
    pairs = np.bincount(kind, minlength=kinds)
    left = np.bincount(_distinct(codes // count) // count, minlength=kinds)
    right = np.bincount(_distinct(kind * count + v) // count, minlength=kinds)
    several = (left > 1) & (right > 1)
    forward, backward = several & (pairs == left), several & (pairs == right)
    different = u != v
    same = (forward & backward)[kind] & different
    if same.any():
        merges.append((u[same], v[same]))
    for one_way, a, b in ((forward & ~backward, u, v), (backward & ~forward, v, u)):
        for number in np.flatnonzero(one_way):
            here = (kind == number) & different
            more.append((a[here], b[here]))
    return bool((~several | forward | backward).all())
