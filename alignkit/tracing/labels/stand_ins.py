"""Atoms that stand for others: units of the expert that a run picked, whichever it is.

A row of `up[chosen]` holds the units of one expert, and another input picks another. So what an op says of the row has
to hold for each of the experts. The units of the row get *stand-ins*, and a constraint on these is one on the units of
every expert at once. Where the stand-ins of two choices meet, the units of any two experts meet: all of them have one
order then.

The example is a stack of two experts with the units `[[2 3] [4 5]]`. A row has stand-ins `a b`. Merged with the columns
`[[6 7] [8 9]]` of the same choice, which have stand-ins `c d`, they merge 2 with 6 and 3 with 7, and 4 with 8 and 5
with 9. Merged with `10 11`, which stand in no stack, they merge 2 and 4 with 10, and 3 and 5 with 11.

Rows that are sorted by their choices are in an *order* that follows from the numbers. Their atoms stand for no others:
they say that the rows move as the choices do. What takes some rows by position, or ties them to others, fixes the units
that were chosen, and with them the order.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from alignkit.tracing.labels.tensor_labels import Choice, IntArray, LabelBlock, Labels, digest

_SHIFT = 42
"""A stand-in is a number of a table, from 1, behind which stand 42 bits: choice * units + unit. These are enough for
10^7 choices among experts of 400,000 units."""
_REST = (1 << _SHIFT) - 1
Pair = tuple[IntArray, IntArray]


@dataclass
class StandIns:
    """Tables of what stand-ins stand for, and the orders of rows.

    `tables` have the atoms of all units of one expert in a row, `orders` the choices by which rows are sorted. Both
    are known by the number in front of a stand-in.
    """

    tables: dict[int, IntArray] = field(default_factory=dict)
    orders: dict[int, Choice] = field(default_factory=dict)
    _known: dict[tuple[bytes, ...], int] = field(default_factory=dict)
    _count: int = 0
    _sorted: dict[tuple[bytes, int], IntArray] = field(default_factory=dict)
    _read: dict[int, IntArray] = field(default_factory=dict)
    _origins: dict[bytes, bytes] = field(default_factory=dict)

    def new_choices(self, shape: tuple[int, ...]) -> IntArray:
        """Return choices that were never made before."""
        n = int(np.prod(shape, dtype=np.int64))
        self._count += n
        return np.arange(self._count - n, self._count).reshape(shape)

    def read(self, content: int) -> IntArray:
        """Return the choice that one number makes, by a number of what it was read from."""
        return self._read.setdefault(content, self.new_choices(()))

    def pick(self, atoms: IntArray, made: IntArray) -> IntArray:
        """Return stand-ins for the rows of an array [experts, ...] that choices pick: [*choices, ...]."""
        table = np.ascontiguousarray(atoms).reshape(len(atoms), -1)
        number = self._known.setdefault((digest(table), str(table.shape).encode()), len(self._known) + 1)
        self.tables[number] = table
        units = np.arange(table.shape[1]).reshape(atoms.shape[1:])
        first = (number << _SHIFT) + made.reshape(*made.shape, *[1] * units.ndim) * table.shape[1]
        return first + units

    def sort(self, choice: Choice) -> IntArray:
        """Return atoms for rows in the order of choices."""
        number = self._known.setdefault((b"order", str(len(self._known)).encode()), len(self._known) + 1)
        self.orders[number] = choice
        return (number << _SHIFT) + np.arange(choice.made.size)

    def in_order(self, made: IntArray, rows: IntArray) -> IntArray:
        """Return choices put into an order: nobody knows which stands where, but they are the same each time."""
        key = digest(made), int(rows[0])
        if key not in self._sorted:
            self._sorted[key] = self.new_choices(rows.shape)
            self._origins[_of_set(self._sorted[key])] = self._origin(made)
        return self._sorted[key]

    def _origin(self, made: IntArray) -> bytes:
        """Return what choices have in common with the same ones in other orders."""
        return self._origins.get(_of_set(made), _of_set(made))

    def choice_of_runs(self, rows: IntArray | None, ends: Choice | None) -> Choice | None:
        """Return the choice of each row, if rows are sorted by the choices of which the ends of all runs are known."""
        if rows is None or ends is None or ends.kind != "end":
            return None
        number = int(rows[0]) >> _SHIFT
        order = self.orders.get(number)
        if order is None or not np.array_equal(rows, (number << _SHIFT) + np.arange(order.made.size)):
            return None
        alike = np.array_equal(order.atoms, ends.atoms) and self._origin(order.made) == self._origin(ends.made)
        return Choice("position", order.atoms, self.in_order(order.made, rows)) if alike else None

    def rows_in_order(self, atoms: IntArray) -> npt.NDArray[np.bool_]:
        """Return which atoms stand for rows in an order."""
        return np.isin(atoms >> _SHIFT, list(self.orders))

    def orders_among(self, rows: IntArray) -> Iterator[Choice]:
        """Yield the choices by which some rows are sorted."""
        return (self.orders[number] for number in np.unique(rows >> _SHIFT).tolist())

    def has_whole_orders(self, rows: IntArray) -> bool:
        """Return whether rows are all those of their orders, each as often as the others."""
        for number in np.unique(rows >> _SHIFT).tolist():
            counts = np.bincount(rows[rows >> _SHIFT == number] & _REST, minlength=self.orders[number].made.size)
            if (counts != counts[0]).any():
                return False
        return True

    def example(self, labels: Labels) -> Labels:
        """Return the labels that a tensor has if every choice picks the first expert; sorted rows are fixed."""
        if not are_stand_ins(*(block.atoms for block in labels.blocks)):
            return labels
        units = [block for block in labels.blocks if not self.rows_in_order(block.atoms).any()]
        return labels.with_blocks(
            [LabelBlock(b.dims, b.context, self._first_of(self._parts(b.atoms)[0])) for b in units]
        )

    def merges(self, a: IntArray, b: IntArray) -> Iterator[Pair]:
        """Yield pairs of arrays without stand-ins that move together if a and b, of one shape, do."""
        (unit_a, made_a), (unit_b, made_b) = self._parts(a), self._parts(b)
        apart = ((made_a >= 0) & (made_b >= 0) & (made_a != made_b)).astype(np.int64)
        unit_a, unit_b, apart = _first_rows(unit_a, unit_b, apart)
        unit_a, unit_b, apart = np.unique(np.stack([x.ravel() for x in (unit_a, unit_b, apart)]), axis=1)
        for number_a, number_b, is_apart in np.unique(
            np.stack([unit_a >> _SHIFT, unit_b >> _SHIFT, apart]), axis=1
        ).T.tolist():
            here = (unit_a >> _SHIFT == number_a) & (unit_b >> _SHIFT == number_b) & (apart == is_apart)
            left, right = self._rows(unit_a[here]), self._rows(unit_b[here])
            if is_apart:
                yield from map(_alike, (left, right))
                left, right = left[:1], right[:1]
            left, right = np.broadcast_arrays(left, right)
            yield left.ravel(), right.ravel()

    def members(self, atoms: IntArray, keys: IntArray | None) -> tuple[IntArray, IntArray | None]:
        """Return atoms without stand-ins, and keys, that a symmetry keeps if it keeps these."""
        units, made = self._parts(atoms)
        if keys is None:
            (units, is_unit) = _first_rows(units, (made >= 0).astype(np.int64))
        else:
            units, is_unit, keys = _first_rows(units, (made >= 0).astype(np.int64), keys.reshape(atoms.shape))
        stood, values = is_unit.ravel() > 0, np.zeros(units.size, np.int64) if keys is None else keys.ravel()
        units = units.ravel()
        (picked, value), count = np.unique(np.stack([units[stood], values[stood]]), axis=1, return_counts=True)
        expanded = [units[~stood]]
        tags = [np.stack([values[~stood], np.full((~stood).sum(), -1)])]
        for number in np.unique(picked >> _SHIFT).tolist():
            here = picked >> _SHIFT == number
            rows = self._rows(picked[here])
            expanded.append(rows.ravel())
            tags.append(np.tile(np.stack([value[here], count[here]]), len(rows)))
        every = np.concatenate(expanded)
        kinds, kind = np.unique(np.concatenate(tags, axis=1), axis=1, return_inverse=True)
        return every, None if keys is None and kinds.shape[1] == 1 else kind.ravel()

    def relations(
        self, children: IntArray, targets: IntArray, apart: tuple[int, ...]
    ) -> tuple[list[Pair], IntArray, IntArray, tuple[int, ...]]:
        """Return a relation without stand-ins that says what one with them says, and merges that it needs."""
        rank = max(children.ndim, targets.ndim)
        children, targets = (x.reshape((1,) * (rank - x.ndim) + x.shape) for x in (children, targets))
        (child, made), (target, of_target) = self._parts(children), self._parts(targets)
        paired = (made >= 0).all() and ((of_target < 0).all() or bool((made == of_target).all()))
        for axis in range(rank):
            arrays = child, made, target, of_target
            if paired and all((x == x.take([0], axis)).all() for x in (child, target)):
                # Along an axis of choices, each says the same.
                child, made, target, of_target = (x.take([0], axis) for x in arrays)
        if paired and len(np.unique(made)) == 1:
            rows, above = self._rows_of(child), self._rows_of(target)
            return [], rows, above, (0, *(axis + 1 for axis in apart))
        merges = []
        for units, choices in ((child, made), (target, of_target)):
            numbers = np.unique(units[choices >= 0] >> _SHIFT).tolist()
            merges += [_alike(self._rows(np.unique(units[units >> _SHIFT == number]))) for number in numbers]
        return merges, self._first_of(child), self._first_of(target), apart

    def _parts(self, atoms: IntArray) -> Pair:
        """Return for each atom the unit that it stands for, without the choice, and the choice; -1 for no stand-in."""
        units, made = atoms.copy(), np.full(atoms.shape, -1)
        for number in np.unique(atoms >> _SHIFT).tolist():
            if number in self.tables:
                here = atoms >> _SHIFT == number
                made[here], unit = np.divmod(atoms[here] & _REST, self.tables[number].shape[1])
                units[here] = (number << _SHIFT) + unit
        return units, made

    def _rows(self, units: IntArray) -> IntArray:
        """Return what units of one table stand for: [experts, units]; of no table, themselves: [1, units]."""
        number = int(units[0]) >> _SHIFT if len(units) else 0
        return self.tables[number][:, units & _REST] if number else units[None]

    def _rows_of(self, units: IntArray) -> IntArray:
        """Return what units of tables for the same experts stand for: [experts, ...]; of no table, [1, ...]."""
        numbers = [number for number in np.unique(units >> _SHIFT).tolist() if number]
        rows = np.tile(units, (len(self.tables[numbers[0]]) if numbers else 1, *[1] * units.ndim))
        for number in numbers:
            here = units >> _SHIFT == number
            rows[:, here] = self.tables[number][:, units[here] & _REST]
        return rows

    def _first_of(self, units: IntArray) -> IntArray:
        """Return the units of the first expert in place of those of any."""
        first = units.copy()
        for number in np.unique(units >> _SHIFT).tolist():
            if number:
                here = units >> _SHIFT == number
                first[here] = self.tables[number][0, units[here] & _REST]
        return first


def are_stand_ins(*arrays: IntArray) -> bool:
    """Return whether stand-ins, or rows in an order, are among some atoms."""
    return any(bool(array.max(initial=0) >> _SHIFT) for array in arrays)


def row_numbers(rows: IntArray) -> IntArray:
    """Return the places of rows in their order."""
    return rows & _REST


def _alike(rows: IntArray) -> Pair:
    """Return the merges that give all rows of [experts, units] one order."""
    return np.broadcast_to(rows[:1], rows[1:].shape).ravel(), rows[1:].ravel()


def _of_set(made: IntArray) -> bytes:
    return digest(np.sort(made, axis=None))


def _first_rows(*arrays: IntArray) -> tuple[IntArray, ...]:
    """Return the first rows of arrays of one shape whose rows are all alike; so for the rows of these."""
    while arrays[0].ndim > 1 and len(arrays[0]) and all((array == array[:1]).all() for array in arrays):
        arrays = tuple(array[0] for array in arrays)
    return arrays
