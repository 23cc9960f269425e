"""Constraints on the symmetry, collected while rules run.

Three kinds are enough: atoms that move together (`merge`), a map from atoms to atoms that symmetries respect (`relate`)
and a property that they keep (`colour`). Everything is recorded for whole arrays of atoms at once, with the op and the
module that caused it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from alignkit.tracing.labels.tensor_labels import IntArray, LabelBlock, Labels, digest


@dataclass(frozen=True)
class Cause:
    """What caused a constraint: the op ("aten.index") and the path of the module that ran it ("" outside of any)."""

    op: str
    where: str = ""


@dataclass(frozen=True, eq=False)
class Relation:
    """A map from atoms to atoms that every symmetry respects.

    If a symmetry moves atom `children[i]` to `children[j]`, it moves `targets[i]` to `targets[j]`: a head follows its
    units. Example: children `u0 u1 u2 u3`, targets `h0 h0 h1 h1`, recorded as `[[u0 u1] [u2 u3]]` and `[[h0] [h1]]`.

    The arrays broadcast against each other, and along an axis of size 1 a target counts once: `u0` and `u1` may be
    exchanged. A target at several positions of `targets` itself is met in an order that symmetries keep: with
    `h0 h0 h1 h1` written out, `u0` cannot take the position of `u1`. Positions that differ along the axes `apart` do
    not count as several. The targets of a `context` relation name the rows in which the children stand; a child may
    stand in several rows, in any order.
    """

    children: IntArray
    targets: IntArray
    cause: int
    apart: tuple[int, ...] = ()
    context: bool = False


@dataclass(frozen=True, eq=False)
class Colour:
    """A property that every symmetry keeps. Without `keys` it is membership in `atoms`, else also the key's value."""

    atoms: IntArray
    keys: IntArray | None
    cause: int


@dataclass
class Constraints:
    """The atoms in use and what a symmetry has to respect.

    `merges` are pairs of arrays of atoms that move together. `Relation.cause` and `Colour.cause` index `causes`, whose
    first entry stands for no op. `constants` are atoms of positions that
    hold one value. `joined` holds the atoms of a joined dimension by what it was joined from, `products`
    the labels that it was joined from by the digest of its atoms.
    """

    count: int = 0
    merges: list[tuple[IntArray, IntArray]] = field(default_factory=list)
    relations: list[Relation] = field(default_factory=list)
    colours: list[Colour] = field(default_factory=list)
    causes: list[Cause] = field(default_factory=lambda: [Cause("")])
    constants: IntArray = field(default_factory=lambda: np.zeros(0, np.int64))
    products: dict[bytes, Labels] = field(default_factory=dict)
    joined: dict[object, IntArray] = field(default_factory=dict)
    _rows: dict[tuple[bytes, tuple[int, ...], tuple[int, ...]], IntArray] = field(default_factory=dict)
    _recorded: set[tuple[bytes, ...]] = field(default_factory=set)

    def blame(self, op: str, where: str) -> None:
        """Record what follows as caused by this op in this module."""
        if self.causes[-1] != Cause(op, where):
            self.causes.append(Cause(op, where))

    def new_atoms(self, shape: tuple[int, ...] | list[int]) -> IntArray:
        """Return atoms that were never used before."""
        n = int(np.prod(shape, dtype=np.int64))
        atoms = np.arange(self.count, self.count + n, dtype=np.int64).reshape(shape)
        self.count += n
        return atoms

    def merge(self, a: IntArray, b: IntArray) -> None:
        """Make a[i] and b[i] move together, for all i. The arrays broadcast against each other."""
        a, b = np.broadcast_arrays(a, b)
        if a is not b and self._is_new(b"m", a, b) and not np.array_equal(a, b):
            self.merges.append((a.ravel(), b.ravel()))

    def relate(self, children: IntArray, targets: IntArray, apart: tuple[int, ...] = ()) -> None:
        """Make the map children[i] -> targets[i] one that symmetries respect, see `Relation`.

        Other atoms name the positions along the axes `apart` already, so that a target may repeat there in any order.
        """
        if self._is_new(b"r", children, targets):
            self.relations.append(Relation(children, targets, len(self.causes) - 1, apart))

    def colour(self, atoms: IntArray, keys: npt.ArrayLike | None = None) -> None:
        """Keep the set `atoms` (with multiplicity) and, where given, the integer `keys` (broadcast against atoms)."""
        if keys is None and not self._is_new(b"c", atoms):
            return
        values = None if keys is None else np.broadcast_to(np.asarray(keys, dtype=np.int64), atoms.shape).ravel()
        self.colours.append(Colour(atoms.ravel(), values, len(self.causes) - 1))

    def fix_axis(self, atoms: IntArray, axis: int) -> None:
        """Keep each atom's position along one axis of the array."""
        self.colour(atoms, np.indices(atoms.shape, sparse=True)[axis])

    def fix(self, atoms: IntArray) -> None:
        """Keep every atom where it is."""
        if atoms.size:
            self.colour(atoms, np.arange(atoms.size).reshape(atoms.shape))

    def fix_labels(self, *operands: Labels) -> None:
        """Keep every labelled position of some tensors where it is."""
        for block in (block for labels in operands for block in labels.blocks):
            self.fix(block.atoms)

    def rows(self, atoms: IntArray, keep: tuple[int, ...]) -> IntArray:
        """Return atoms for the rows of an array: one for each position along the axes `keep`.

        Elements relate to their row. Example: the rows of `[[0 1] [2 3]]` along axis 0 are new atoms `[4 5]`, with 0
        and 1 related to 4, 2 and 3 to 5. The same array has the same rows whenever it is asked again. An array without
        elements, such as an empty rest of a slice, is no more the same as one of another layer than different: its rows
        are its own each time.
        """
        if not atoms.size:
            return self.new_atoms([atoms.shape[axis] for axis in keep])
        key = (digest(atoms), atoms.shape, keep)
        if key not in self._rows:
            parents = self.new_atoms([atoms.shape[axis] for axis in keep])
            self.relate(atoms, parents.reshape([n if axis in keep else 1 for axis, n in enumerate(atoms.shape)]))
            self._rows[key] = parents
        return self._rows[key]

    def adopt_rows(self, atoms: IntArray, keep: tuple[int, ...], parents: IntArray) -> None:
        """Make `parents` the rows of `atoms` along the axes `keep`; an atom may stand in several of them."""
        if not atoms.size:
            return
        known = self._rows.setdefault((digest(atoms), atoms.shape, keep), parents)
        if known is not parents:
            self.merge(known, parents)
        targets = parents.reshape([n if axis in keep else 1 for axis, n in enumerate(atoms.shape)])
        if self._is_new(b"n", atoms, targets):
            self.relations.append(Relation(atoms, targets, len(self.causes) - 1, context=True))

    def has_rows(self, block: LabelBlock, parent: LabelBlock) -> bool:
        """Return whether `parent` is known to hold the rows of `block`."""
        known = self._rows.get((digest(block.atoms), block.atoms.shape, block.axes(parent.dims)))
        return known is not None and np.array_equal(known, parent.atoms)

    def _is_new(self, kind: bytes, *arrays: IntArray) -> bool:
        """Record a constraint's kind and arrays; return whether they were not recorded before."""
        before = len(self._recorded)
        self._recorded.add((kind, *(part for a in arrays for part in (digest(a), str(a.shape).encode()))))
        return len(self._recorded) > before
