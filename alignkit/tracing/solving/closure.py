"""Solving the constraints, first half: congruence closure (Downey, Sethi and Tarjan 1980; Nelson and Oppen 1980).

Atoms that were merged become classes. If a class has two targets that determine each other, they are one class; if
one determines the other, that is a relation too; relations compose. All of it works on whole arrays: a relation is
two arrays of class numbers.

The example of this file are four query units `u0 u1 u2 u3` in heads `h0 h0 h1 h1`, and four key units `w0 w1 w2 w3` in
heads `g0 g0 g1 g1`. The product of queries and keys merges each u with its w. Now every class has two targets:

    class      u0=w0   u1=w1   u2=w2   u3=w3
    targets    h0 g0   h0 g0   h1 g1   h1 g1

Wherever h is the same, g is, and the other way round, so h0 merges with g0, and h1 with g1. Had there been four query
heads, `h0 h1 h2 h3`, then h would determine g and not the other way round: a new relation from h0 and h1 to g0, and
from h2 and h3 to g1. Query heads belong to their key head.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from scipy.sparse import coo_matrix, csr_matrix
from scipy.sparse.csgraph import connected_components

from alignkit.tracing.labels.constraints import Constraints, Relation
from alignkit.tracing.labels.tensor_labels import IntArray, digest

HashArray = npt.NDArray[np.uint64]
Map = tuple[IntArray, IntArray]
"""A relation as arrays (children, targets) of classes: children[i] -> targets[i]."""

_MAX_KINDS = 512
"""Maximum number of kinds of children for which two relations are compared kind by kind. A relation of a real model has
a few kinds; the limit bounds the codes in `_compare_targets` and its loop over kinds."""
_RELATION_SEED = 10**7
"""Seeds of hashes: the colours of a run count from 0, its relations from here, so that no two have one seed."""


@dataclass(eq=False)
class Closed:
    """The class of each atom, and the relations between the `count` classes, children ascending.

    `maps` have one target for each child. Those in `multiple` have several for some child: which one is meant depends
    on the position. Those in `nested` have several rows for some child. `base` is a hash of the kept properties of each
    class, `first` its lowest atom.
    """

    classes: IntArray
    count: int
    maps: list[Map]
    multiple: list[Map]
    nested: list[Map]
    base: HashArray
    first: IntArray = field(default_factory=lambda: np.zeros(0, np.int64))


def mix(x: npt.NDArray[np.generic] | HashArray) -> HashArray:
    """Return a well-mixed 64-bit hash of each element: the finaliser of splitmix64 (Steele, Lea and Flood 2014).

    Its shifts and odd multipliers make every output bit depend on every input bit. Sums of such hashes stand for sets
    with multiplicity: they do not depend on the order.
    """
    h = x.astype(np.uint64)
    h = (h ^ (h >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    h = (h ^ (h >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return h ^ (h >> np.uint64(31))


def seeded_hash(seed: int, x: npt.NDArray[np.generic]) -> HashArray:
    """Return a hash of each element that differs between seeds. Steps of 2**64 / golden ratio keep seeds far apart."""
    start = mix(np.array([seed + 1], np.uint64) * np.uint64(0x9E3779B97F4A7C15))
    return mix(mix(x) + start)


def close(c: Constraints) -> Closed:
    """Return the classes and relations that the constraints imply.

    Three steps repeat until nothing new follows: classes are the connected components of the merges; relations between
    atoms become relations between classes; these imply merges and relations.
    """
    n = c.count
    left = [np.concatenate([a for a, _ in c.merges] or [np.zeros(0, np.int64)])]
    right = [np.concatenate([b for _, b in c.merges] or [np.zeros(0, np.int64)])]
    pairs: list[tuple[IntArray, IntArray, bool]] = []
    for relation in c.relations:
        children, targets = np.broadcast_arrays(relation.children, relation.targets)
        pairs.append((children.ravel(), targets.ravel(), relation.context))
    coloured = np.concatenate([colour.atoms for colour in c.colours] or [np.zeros(0, np.int64)])
    colours = np.zeros(len(coloured), np.uint64)
    end = 0
    for seed, colour in enumerate(c.colours):
        start, end = end, end + len(colour.atoms)
        colours[start:end] = seeded_hash(seed, np.zeros(1, np.int64) if colour.keys is None else colour.keys + 1)
    while True:
        edges = (np.concatenate(left), np.concatenate(right))
        graph = coo_matrix((np.ones(len(edges[0]), np.int8), edges), shape=(n, n))
        count, component = connected_components(graph, directed=False)
        classes = component.astype(np.int64)
        first = np.zeros(count, np.int64)
        first[classes[::-1]] = np.arange(n)[::-1]  # the last write wins: the lowest atom
        base = np.zeros(count, np.uint64)
        np.add.at(base, classes[coloured], colours)
        _add_occurrences(base, c.relations, classes)
        maps, multiple, nested, known = _relate_classes(pairs, classes, count)
        merges, implied = _imply(maps, base, count, known)
        if not merges and not implied:
            return Closed(classes, count, maps, multiple, nested, base, first)
        left += [first[a] for a, _ in merges]
        right += [first[b] for _, b in merges]
        pairs = [(first[a], first[b], False) for a, b in (*maps, *multiple, *implied)]
        pairs += [(first[a], first[b], True) for a, b in nested]


def _add_occurrences(base: HashArray, relations: list[Relation], classes: IntArray) -> None:
    """Add to the properties of a child which occurrence of its target it has.

    A target that stands at several positions of a relation is met in a kept order: the child of its k-th position
    keeps k. With targets `h0 h0 h1 h1` written out, u0 and u2 keep 0, and u1 and u3 keep 1.
    """
    for number, relation in enumerate(relations):
        targets = relation.targets
        if targets.size < 2:
            continue
        # Positions that differ along the axes `apart` are counted separately: one row of counts for each.
        shape = [n if axis in relation.apart else 1 for axis, n in enumerate(targets.shape)]
        rows = np.arange(int(np.prod(shape, dtype=np.int64))).reshape(shape)
        values = (classes[targets] * rows.size + rows).ravel()
        order = np.argsort(values, kind="stable")
        is_first = np.r_[True, values[order][1:] != values[order][:-1]]
        if is_first.all():
            continue
        # In sorted order, position minus position of the first equal value: how often the value came before.
        position = np.arange(len(values))
        occurrence = np.empty(len(values), np.int64)
        occurrence[order] = position - np.maximum.accumulate(np.where(is_first, position, 0))
        whole = np.broadcast_shapes(relation.children.shape, targets.shape)
        children = classes[np.broadcast_to(relation.children, whole).ravel()]
        kept = np.broadcast_to(occurrence.reshape(targets.shape), whole).ravel()
        tags = np.unique(np.stack([children, kept]), axis=1)
        np.add.at(base, tags[0], seeded_hash(_RELATION_SEED + number, tags[1]))


def _relate_classes(
    pairs: list[tuple[IntArray, IntArray, bool]], classes: IntArray, count: int
) -> tuple[list[Map], list[Map], list[Map], set[bytes]]:
    """Turn relations between atoms into relations between classes, each once.

    Return maps, those with several targets, those with several rows (see `Closed`), and the digests of all maps.
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
        again = a[1:] == a[:-1]  # pairs are sorted: a child with several targets stands in several of them
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
    """Return the distinct pairs with different members, sorted. The pair (x, y) is coded as x * count + y."""
    different = a != b
    codes = _distinct(a[different] * count + b[different])
    return codes // count, codes % count


def _imply(maps: list[Map], base: HashArray, count: int, known: set[bytes]) -> tuple[list[Map], list[Map]]:
    """Return the merges and the new relations that follow from pairs of maps."""
    merges: list[Map] = []
    implied: list[Map] = []
    if not maps:
        return merges, implied
    children, targets = [a for a, _ in maps], [b for _, b in maps]
    for i, j in _overlaps(children, children, count):
        if i >= j:
            continue
        # Two targets of the same children: compared for all of them at once, else for each kind of child.
        common, x, y = np.intersect1d(maps[i][0], maps[j][0], assume_unique=True, return_indices=True)
        u, v = maps[i][1][x], maps[j][1][y]
        if not _compare_targets(np.zeros(len(common), np.int64), 1, u, v, count, merges, implied):
            kinds, kind = np.unique(base[common], return_inverse=True)
            if 1 < len(kinds) <= _MAX_KINDS:
                _compare_targets(kind, len(kinds), u, v, count, merges, implied)
    for i, j in _overlaps(targets, children, count):
        # Targets of map i are children of map j: the maps compose.
        (a, b), (a2, b2) = maps[i], maps[j]
        row = np.searchsorted(a2, b).clip(max=len(a2) - 1)
        chained = a2[row] == b
        implied.append((a[chained], b2[row[chained]]))
    new = []
    for a, b in implied:
        a, b = _unique_pairs(a, b, count)
        key = digest(np.concatenate([a, b]))
        if len(a) and key not in known:
            known.add(key)
            new.append((a, b))
    return merges, new


def _overlaps(a: list[IntArray], b: list[IntArray], count: int) -> list[tuple[int, int]]:
    """Return the pairs of arrays, one of `a` and one of `b`, with a common class."""
    incidence = []
    for members in (a, b):  # a matrix [arrays, classes] with 1 where a class is in an array
        rows = np.repeat(np.arange(len(members)), [len(m) for m in members])
        ones, shape = np.ones(len(rows), np.int32), (len(members), count)
        incidence.append(csr_matrix((ones, (rows, np.concatenate(members))), shape=shape))
        incidence[-1].data[:] = 1
    product = (incidence[0] @ incidence[1].T).tocoo()
    return list(zip(product.row.tolist(), product.col.tolist(), strict=True))


def _compare_targets(
    kind: IntArray, kinds: int, u: IntArray, v: IntArray, count: int, merges: list[Map], implied: list[Map]
) -> bool:
    """Merge targets that determine each other, relate those where one determines the other, for each kind apart.

    Among the children of a kind, u determines v if there are as many distinct pairs (u, v) as distinct u. In the
    example, the pairs are (h0, g0) and (h1, g1): two pairs, two u and two v, so that both determine each other.

    What follows is added to `merges` and `implied`. Return whether one determines the other for all kinds; a relation
    to one class says no more than the maps do and counts too.
    """
    # The triple (kind, u, v) is coded as (kind * count + u) * count + v: 63 bits, for 512 kinds of 10**8 classes.
    codes = _distinct((kind * count + u) * count + v)
    kind, u, v = codes // count // count, codes // count % count, codes % count
    pairs = np.bincount(kind, minlength=kinds)
    distinct_u = np.bincount(_distinct(codes // count) // count, minlength=kinds)
    distinct_v = np.bincount(_distinct(kind * count + v) // count, minlength=kinds)
    several = (distinct_u > 1) & (distinct_v > 1)
    forward, backward = several & (pairs == distinct_u), several & (pairs == distinct_v)
    different = u != v
    same = (forward & backward)[kind] & different
    if same.any():
        merges.append((u[same], v[same]))
    for one_way, a, b in ((forward & ~backward, u, v), (backward & ~forward, v, u)):
        for number in np.flatnonzero(one_way):
            here = (kind == number) & different
            implied.append((a[here], b[here]))
    return bool((~several | forward | backward).all())
