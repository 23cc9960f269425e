"""Degrees: with which power a factor of a unit appears at each place of a space.

If unit ``i`` of a hidden layer is scaled by ``s``, what writes it may scale by ``s`` (degree 1), what reads it by
``1 / s`` (degree -1), and a gate beside it not at all (degree 0). Every segment of a parameter has an unknown degree;
operations on them give linear equations. Their solutions over the rational numbers are the scales that a space allows,
those modulo 2 its signs.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from fractions import Fraction
from typing import TypeAlias

Form: TypeAlias = tuple[tuple[int, int], ...]
"""A sum of multiples of unknown degrees: pairs of an unknown and its factor, ascending."""
_Order: TypeAlias = Callable[[int], tuple[bool, int]]

ZERO: Form = ()


def combine(terms: Iterable[tuple[int, Form]]) -> Form:
    """Return a sum of multiples of forms."""
    total: dict[int, int] = {}
    for factor, form in terms:
        for unknown, count in form:
            total[unknown] = total.get(unknown, 0) + factor * count
    return tuple(sorted((unknown, count) for unknown, count in total.items() if count))


def solutions(equations: Iterable[Form], unknowns: Sequence[int]) -> list[dict[int, Fraction]]:
    """Return a basis of the degrees for which all forms are 0."""
    reduced: dict[int, dict[int, Fraction]] = {}  # rows in echelon form, by the unknown that they lead with
    for equation in equations:
        row = {unknown: Fraction(count) for unknown, count in equation}
        row = _reduce(row, reduced)
        if row:
            lead = min(row)
            row = {unknown: value / row[lead] for unknown, value in row.items()}
            for other in reduced:
                reduced[other] = _reduce(reduced[other], {lead: row})
            reduced[lead] = row
    free = [unknown for unknown in unknowns if unknown not in reduced]
    basis = []
    for unknown in free:
        solution = {lead: -row[unknown] for lead, row in reduced.items() if row.get(unknown)}
        basis.append({unknown: Fraction(1), **solution})
    return basis


def _reduce(row: Mapping[int, Fraction], rows: Mapping[int, Mapping[int, Fraction]]) -> dict[int, Fraction]:
    """Return a row without the unknowns that other rows lead with."""
    result = dict(row)
    for lead in [unknown for unknown in row if unknown in rows]:
        factor = result.get(lead, Fraction(0))
        for unknown, value in rows[lead].items():
            changed = result.get(unknown, Fraction(0)) - factor * value
            if changed:
                result[unknown] = changed
            else:
                result.pop(unknown, None)
    return result


def odd_solutions(equations: Iterable[Form], unknowns: Sequence[int]) -> list[frozenset[int]]:
    """Return a basis of the sets of unknowns for which all forms are even, where these are 1 and all others 0.

    A sum of two sets is what is in one of them and not in both. Each set has one unknown to itself, if possible one of
    the first.
    """
    position = {unknown: at for at, unknown in enumerate(unknowns)}
    reduced: dict[int, frozenset[int]] = {}  # rows in echelon form, by the unknown that they lead with
    for equation in equations:
        row = frozenset(unknown for unknown, count in equation if count % 2)
        for lead, known in reduced.items():
            row = row ^ known if lead in row else row
        if row:
            lead = max(row, key=lambda unknown: position[unknown])
            reduced = {other: known ^ row if lead in known else known for other, known in reduced.items()}
            reduced[lead] = row
    free = [unknown for unknown in unknowns if unknown not in reduced]
    return [frozenset({u, *(lead for lead, row in reduced.items() if u in row)}) for u in free]


def rest_modulo(
    members: Iterable[frozenset[int]], span: Iterable[frozenset[int]], out: Collection[int] = ()
) -> list[frozenset[int]]:
    """Return of some sets what is left once sums of others are left out: a basis, none where nothing is.

    Unknowns in ``out`` are left out of the basis first.
    """

    def order(unknown: int) -> tuple[bool, int]:
        return unknown not in out, unknown

    chosen = _echelon(span, order)
    rests = [_without(row, chosen, order) for row in members]
    return [row for row, is_new in zip(rests, map(bool, _echelon(rests, order)), strict=True) if is_new]


def _echelon(rows: Iterable[frozenset[int]], order: _Order) -> list[frozenset[int]]:
    """Return each row without the sums of those before it: empty where it is one of them."""
    reduced: list[frozenset[int]] = []
    for row in rows:
        reduced.append(_without(row, reduced, order))
    return reduced


def _without(row: frozenset[int], echelon: Iterable[frozenset[int]], order: _Order) -> frozenset[int]:
    leads = {min(known, key=order): known for known in echelon if known}
    for lead in sorted(leads, key=order):
        row = row ^ leads[lead] if lead in row else row
    return row


def is_even(equations: Iterable[Form], odd: Iterable[int]) -> bool:
    """Return whether all forms are even where the unknowns in `odd` are 1 and all others 0."""
    ones = set(odd)
    return all(sum(count for unknown, count in form if unknown in ones) % 2 == 0 for form in equations)
