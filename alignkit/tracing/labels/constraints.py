"""Constraints on the symmetry, collected while rules run.

Three kinds are enough: atoms that move together (`merge`), a map from atoms to atoms that symmetries respect (`relate`)
and a property that they keep (`colour`). Everything is recorded for whole arrays of atoms at once, with the op and the
module that caused it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from alignkit.tracing.labels.stand_ins import StandIns, are_stand_ins, row_numbers
from alignkit.tracing.labels.tensor_labels import Choice, IntArray, LabelBlock, Labels, digest


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
    the labels that it was joined from by the digest of its atoms. `stand_ins` are atoms that stand for others: what is
    recorded of them are constraints on these. `summed` are the atoms over whose positions the op of the moment sums.
    """

    count: int = 0
    merges: list[tuple[IntArray, IntArray]] = field(default_factory=list)
    relations: list[Relation] = field(default_factory=list)
    colours: list[Colour] = field(default_factory=list)
    causes: list[Cause] = field(default_factory=lambda: [Cause("")])
    constants: IntArray = field(default_factory=lambda: np.zeros(0, np.int64))
    products: dict[bytes, Labels] = field(default_factory=dict)
    joined: dict[object, IntArray] = field(default_factory=dict)
    stand_ins: StandIns = field(default_factory=StandIns)
    summed: list[IntArray] = field(default_factory=list)
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
        if a is b or not self._is_new(b"m", a, b) or np.array_equal(a, b):
            return
        if not are_stand_ins(a, b):
            self.merges.append((a.ravel(), b.ravel()))
            return
        ordered = [self.stand_ins.rows_in_order(side) for side in (a, b)]
        for side, other, is_row in ((a, b, ordered[1]), (b, a, ordered[0])):
            here = is_row & (a != b)
            self._fix_orders(other[here])
            self.colour(side[here & ~(ordered[0] & ordered[1])], row_numbers(other[here & ~(ordered[0] & ordered[1])]))
        if (ordered[0] | ordered[1]).any():
            a, b = (side[~(ordered[0] | ordered[1])] for side in (a, b))
        self.merges += self.stand_ins.merges(a, b)

    def relate(self, children: IntArray, targets: IntArray, apart: tuple[int, ...] = ()) -> None:
        """Make the map children[i] -> targets[i] one that symmetries respect, see `Relation`.

        Other atoms name the positions along the axes `apart` already, so that a target may repeat there in any order.
        """
        if self._is_new(b"r", children, targets):
            self._relate(children, targets, apart)

    def _relate(
        self, children: IntArray, targets: IntArray, apart: tuple[int, ...] = (), *, context: bool = False
    ) -> None:
        if are_stand_ins(children, targets):
            ordered = [self.stand_ins.rows_in_order(side) for side in (children, targets)]
            if ordered[0].any() or ordered[1].any():
                self._relate_rows(children, targets, ordered, context=context)
                return
            merges, children, targets, apart = self.stand_ins.relations(children, targets, apart)
            self.merges += merges
        self.relations.append(Relation(children, targets, len(self.causes) - 1, apart, context))

    def colour(self, atoms: IntArray, keys: npt.ArrayLike | None = None) -> None:
        """Keep the set `atoms` (with multiplicity) and, where given, the integer `keys` (broadcast against atoms)."""
        if keys is None and not self._is_new(b"c", atoms):
            return
        values = None if keys is None else np.broadcast_to(np.asarray(keys, dtype=np.int64), atoms.shape)
        if are_stand_ins(atoms):
            ordered = self.stand_ins.rows_in_order(atoms)
            if ordered.any():
                if keys is not None or not self.stand_ins.has_whole_orders(atoms[ordered]):
                    self._fix_orders(atoms[ordered])
                atoms, values = atoms[~ordered], None if values is None else values[~ordered]
            atoms, values = self.stand_ins.members(atoms, values)
        self.colours.append(Colour(atoms.ravel(), None if values is None else values.ravel(), len(self.causes) - 1))

    def fix_axis(self, atoms: IntArray, axis: int) -> None:
        """Keep each atom's position along one axis of the array."""
        self.colour(atoms, np.indices(atoms.shape, sparse=True)[axis])

    def fix(self, atoms: IntArray) -> None:
        """Keep every atom where it is."""
        if atoms.size:
            self.colour(atoms, np.arange(atoms.size).reshape(atoms.shape))

    def fix_labels(self, *operands: Labels) -> None:
        """Keep every labelled position of some tensors where it is."""
        for labels in operands:
            for block in labels.blocks:
                self.fix(block.atoms)
            self.fix_choice(labels.choice)

    def fix_choice(self, choice: Choice | None) -> None:
        """Keep the units where they are of which a tensor holds the numbers."""
        if choice is not None and choice.kind in ("position", "end"):
            self.fix(choice.atoms)

    def _fix_orders(self, rows: IntArray) -> None:
        """Keep rows where they are that stand in orders: those of the units that were chosen."""
        for choice in self.stand_ins.orders_among(rows):
            self.fix_choice(choice)

    def _relate_rows(
        self, children: IntArray, targets: IntArray, ordered: Sequence[npt.NDArray[np.bool_]], *, context: bool
    ) -> None:
        """Relate rows in an order, on either side. They stay, unless stand-ins say what moves in each of them."""
        if (
            context
            and ordered[1].all()
            and not ordered[0].any()
            and are_stand_ins(children)
            and children.min() > self.count
        ):
            return
        children, targets = np.broadcast_arrays(children, targets)
        for side, other, is_row in ((children, targets, ordered[1]), (targets, children, ordered[0])):
            is_row = np.broadcast_to(is_row, side.shape)
            self._fix_orders(other[is_row])
            here = is_row & ~self.stand_ins.rows_in_order(side)
            self.colour(side[here], row_numbers(other[here]))

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
            self._relate(atoms, targets, context=True)

    def has_rows(self, block: LabelBlock, parent: LabelBlock) -> bool:
        """Return whether `parent` is known to hold the rows of `block`."""
        known = self._rows.get((digest(block.atoms), block.atoms.shape, block.axes(parent.dims)))
        return known is not None and np.array_equal(known, parent.atoms)

    def _is_new(self, kind: bytes, *arrays: IntArray) -> bool:
        """Record a constraint's kind and arrays; return whether they were not recorded before."""
        before = len(self._recorded)
        self._recorded.add((kind, *(part for a in arrays for part in (digest(a), str(a.shape).encode()))))
        return len(self._recorded) > before
