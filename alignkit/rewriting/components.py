"""Parts of a network that folds and balances do not link: each is rewritten alone, as it would be with all others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from math import prod

from networkx import Graph, connected_components

from alignkit.graph.rewrites import (
    AnyBalance,
    AxisOf,
    Fold,
    Gain,
    Mean,
    OutputScale,
    Phase,
    Shift,
    Through,
    Untie,
    Zero,
)
from alignkit.graph.structure import GraphStructure


@dataclass(frozen=True)
class Component:
    """Tensors that are rewritten together.

    Attributes:
        tensors: Their first names, in the order of the graph.
        folds: What the folds of the graph do to them, in order.
        balances: Spaces that lie on them.
        vectors: Gains, scales and shifts that go into them and belong to other components.
    """

    tensors: tuple[str, ...]
    folds: tuple[Fold, ...] = ()
    balances: tuple[AnyBalance, ...] = ()
    vectors: tuple[str, ...] = ()

    @property
    def is_rewritten(self) -> bool:
        """Whether anything is done to the tensors."""
        return bool(self.folds or self.balances)

    @property
    def by_rows(self) -> bool:
        """Whether each row comes out of the row that was there, so that rows can be rewritten alone."""
        return len(self.tensors) == 1 and not self.balances and all(all(_axes(fold)) for fold in self.folds)

    def numbers(self, graph: GraphStructure) -> int:
        """Count the numbers of all tensors."""
        return sum(prod(graph.tensors[name].shape) for name in self.tensors)


def components_of(graph: GraphStructure, balances: Sequence[AnyBalance]) -> tuple[Component, ...]:
    """Split the tensors of a graph into components, for its folds and some of its balances."""
    alone = _vectors_alone(graph, balances)
    links: Graph = Graph()
    links.add_nodes_from(graph.tensors)
    for names in (*_linked_by_folds(graph.folds, alone), *(_linked_by(graph, balance) for balance in balances)):
        links.add_edges_from(pairwise(names))
    order = {name: number for number, name in enumerate(graph.tensors)}
    parts = [sorted(part, key=order.__getitem__) for part in connected_components(links)]
    return tuple(_component(graph, part, balances) for part in sorted(parts, key=lambda part: order[part[0]]))


def _component(graph: GraphStructure, names: Sequence[str], balances: Sequence[AnyBalance]) -> Component:
    own = set(names)
    folds = tuple(part for fold in graph.folds if (part := restricted(fold, own)) is not None)
    vectors = {vector for fold in folds if (vector := _vector(fold)) is not None} - own
    inside = tuple(balance for balance in balances if balance.writes[0].tensor in own)
    return Component(tuple(names), folds, inside, tuple(sorted(vectors)))


def _vector(fold: Fold) -> str | None:
    """Return the gain, scale or shift that a fold moves into other tensors."""
    match fold:
        case Gain(vector) | OutputScale(vector) | Shift(vector):
            return vector
    return None


def _vectors_alone(graph: GraphStructure, balances: Iterable[AnyBalance]) -> set[str]:
    """Return the gains, scales and shifts that nothing changes but the fold that takes them out."""
    named = Counter(name for fold in graph.folds for name in set(tensors_of(fold)))
    balanced = {place.tensor for balance in balances for place in (*balance.writes, *balance.reads)}
    balanced |= {factor for balance in balances if isinstance(balance, Phase) for factor in balance.factors}
    vectors = {vector for fold in graph.folds if (vector := _vector(fold)) is not None}
    return {vector for vector in vectors if named[vector] == 1 and vector not in balanced}


def tensors_of(fold: Fold) -> Iterator[str]:
    """Yield the tensors that a fold reads or changes, first what it takes out."""
    match fold:
        case Gain(gain, readers, _, shift):
            yield from (gain, *(at.tensor for at in readers), *([] if shift is None else [shift]))
        case OutputScale(scale, writers):
            yield from (scale, *(at.tensor for at in writers))
        case Shift(shift, readers):
            yield from (shift, *(name for at, bias in readers for name in (at.tensor, bias)))
        case Zero(bias):
            yield bias.tensor
        case Through(bias, reader, into):
            yield from (bias.tensor, reader.tensor, into)
        case Mean(writers, readers):
            yield from (at.tensor for at in (*writers, *readers))
        case Untie(tensor):
            yield tensor


def _linked_by_folds(folds: Iterable[Fold], alone: set[str]) -> Iterator[list[str]]:
    """Yield tensors that have to be rewritten together: a vector that stands alone is read for each that takes it."""
    for fold in folds:
        match fold:
            case Gain(vector) | OutputScale(vector) if vector in alone:
                pass
            case Shift(vector, readers) if vector in alone:
                yield from ([at.tensor, bias] for at, bias in readers)
            case Mean() | Untie():
                pass
            case _:
                yield list(tensors_of(fold))


def _linked_by(graph: GraphStructure, balance: AnyBalance) -> list[str]:
    """Return the tensors of a balanced space; signs are chosen by all that the group acts on."""
    if balance.kind == "monomial":
        return list(graph.tensors_of(balance.group))
    factors = balance.factors if isinstance(balance, Phase) else ()
    return [*(place.tensor for place in (*balance.writes, *balance.reads)), *factors]


def restricted(fold: Fold, names: set[str]) -> Fold | None:
    """Return what a fold does to some tensors; None for nothing."""
    match fold:
        case Gain(gain, readers, _, shift):
            kept = tuple(at for at in readers if at.tensor in names)
            own = shift if shift in names else None
            return replace(fold, readers=kept, shift=own) if kept or own or gain in names else None
        case OutputScale(scale, writers):
            kept = tuple(at for at in writers if at.tensor in names)
            return replace(fold, writers=kept) if kept or scale in names else None
        case Shift(shift, pairs):
            inside = tuple(pair for pair in pairs if pair[1] in names)
            return replace(fold, readers=inside) if inside or shift in names else None
        case Mean(writers, readers):
            sides = [tuple(at for at in side if at.tensor in names) for side in (writers, readers)]
            return Mean(*sides) if any(sides) else None
        case Untie():
            return None  # files hold a head and its embedding under both names
    return fold if next(tensors_of(fold)) in names else None


def _axes(fold: Fold) -> list[int]:
    """List the axes along which a fold changes the one tensor that it goes into; 0 where it changes it otherwise."""
    places: tuple[AxisOf, ...] = ()
    match fold:
        case Gain(_, readers, _, None):
            places = readers
        case OutputScale(_, writers):
            places = writers
        case Mean(writers, readers):
            places = (*writers, *readers)
    return [place.axis for place in places] or [0]
