"""Random graphs for hypothesis, weights for them, and a slow, independent way to apply an alignment."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from hypothesis import strategies as st
from torch import Tensor

from alignkit import Alignment, SymmetryGraph
from alignkit.graph import Axis, Fixed, Units, parse_layout
from alignkit.graph.kinds import KINDS, PLANES, GroupKind
from alignkit.graph.layout import StackPlaces, factor_size


@dataclass
class Forest:
    """Groups and stacks with sizes and parents, before any tensor mentions them."""

    stacks: set[str] = field(default_factory=set)
    sizes: dict[str, int] = field(default_factory=dict)
    parents: dict[str, str | None] = field(default_factory=dict)
    kinds: dict[str, GroupKind] = field(default_factory=dict)

    def path(self, name: str) -> list[str]:
        parent = self.parents[name]
        return [name] if parent is None else [*self.path(parent), name]

    def mention(self, name: str) -> str:
        parent, sign = self.parents[name], "=" if name in self.stacks else KINDS[self.kinds[name]].mark
        return f"{sign}{name}[{parent}]:{self.sizes[name]}" if parent else f"{sign}{name}:{self.sizes[name]}"


@st.composite
def forests(draw: st.DrawFn, kinds: Sequence[GroupKind]) -> Forest:
    """Up to five groups, of some kinds, and stacks, nested up to three deep."""
    forest = Forest()
    for index in range(draw(st.integers(1, 5))):
        name = f"g{index}"
        owners = [n for n in forest.sizes if len(forest.path(n)) < 3 and forest.kinds[n] == "permutation"]
        forest.parents[name] = draw(st.sampled_from([None, *owners]))
        forest.kinds[name] = draw(st.sampled_from(kinds))
        forest.sizes[name] = draw(st.sampled_from([2, 4]) if forest.kinds[name] in PLANES else st.integers(1, 3))
        if forest.kinds[name] == "permutation" and draw(st.integers(0, 3)) == 0:
            forest.stacks.add(name)
    return forest


@st.composite
def segments(draw: st.DrawFn, forest: Forest, context: tuple[str, ...], depth: int = 0) -> str:
    """One segment; children of the groups in ``context`` may stand without their parents."""
    inside, factors = list(context), []
    for _ in range(draw(st.integers(1, 2))):
        kind = draw(st.sampled_from(["fixed", "group", "group", "sum"] if depth < 2 else ["fixed", "group"]))
        if kind == "fixed":
            factors.append(str(draw(st.integers(1, 2))))
        elif kind == "sum":
            parts = draw(st.lists(segments(forest, tuple(inside), depth + 1), min_size=1, max_size=2))
            factors.append(f"({'+'.join(parts)})")
        else:
            path = forest.path(draw(st.sampled_from(sorted(forest.sizes))))
            known = max((i + 1 for i, name in enumerate(path[:-1]) if name in inside), default=0)
            factors += [forest.mention(name) for name in path[known:]]
            inside += path[known:]
    return f"({' '.join(factors)})"


@st.composite
def layouts(draw: st.DrawFn, forest: Forest) -> str:
    """The layout of one tensor of one to three axes; the second may hold children of groups on the first."""
    first = draw(segments(forest, (), 2))
    if draw(st.booleans()):
        owners = [unit.group for unit in parse_layout(first)[0].units()]
        context = tuple(name for name in owners if owners.count(name) == 1)
        second = draw(segments(forest, context))
    else:
        first = "+".join([first, *draw(st.lists(segments(forest, ()), max_size=2))])
        second = "+".join(draw(st.lists(segments(forest, ()), min_size=1, max_size=2)))
    axes = [first, second, draw(st.sampled_from([".", "2", *(forest.mention(n) for n in forest.sizes)]))]
    kept = axes[: draw(st.integers(1, 3))]
    return " ".join(axis for axis in kept if "[" not in axis or axis is not axes[2])


@st.composite
def graphs(draw: st.DrawFn, kinds: Sequence[GroupKind] = ("permutation",)) -> SymmetryGraph:
    """Graphs with families, stacks, segments, products, nested sums, and families that cross axes."""
    forest = draw(forests(kinds))
    spec = {f"t{i}": draw(layouts(forest)) for i in range(draw(st.integers(1, 4)))}
    shapes = {n: tuple(2 if "." in axis_text(a) else factor_size(a) for a in parse_layout(t)) for n, t in spec.items()}
    small = {n: shape for n, shape in shapes.items() if torch.Size(shape).numel() <= 4096}
    return SymmetryGraph.from_spec({n: spec[n] for n in small}, small)


def axis_text(axis: Axis) -> str:
    lone = axis.segments[0].factors
    return "." if lone == (Fixed(),) else ""


def distinct_weights(graph: SymmetryGraph) -> dict[str, Tensor]:
    """Tensors whose elements all differ."""
    start, weights = 0, {}
    for name, node in graph.tensors.items():
        count = torch.Size(node.shape).numel()
        weights[name] = torch.arange(start, start + count).reshape(node.shape)
        start += count
    return weights


# ------------------------------------------------------------------ every element of a small group


def all_alignments(graph: SymmetryGraph) -> list[Alignment]:
    """Every element of the symmetry group, by trying every combination of index vectors."""
    choices = []
    for name, group in graph.groups.items():
        single = list(itertools.permutations(range(group.size)))
        choices.append(list(itertools.product(single, repeat=graph.instances(name))))
    return [
        Alignment(
            graph,
            {
                name: torch.tensor(vectors).reshape(graph.element_shape(name))
                for name, vectors in zip(graph.groups, picked, strict=True)
            },
        )
        for picked in itertools.product(*choices)
    ]


# ------------------------------------------------------------------ applying element by element

Mention = tuple[Units, int]


def slow_apply(graph: SymmetryGraph, alignment: Alignment, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Move weights one element at a time, straight from the layouts."""
    result = {}
    for name, node in graph.tensors.items():
        result[name] = torch.empty_like(weights[name])
        for place in itertools.product(*map(range, node.shape)):
            to: list[list[Mention]] = []
            sources = [_sources(axis, at, alignment, to) for axis, at in zip(node.layout, place, strict=True)]
            result[name][place] = sum(
                weights[name][tuple(position for position, _ in chosen)] * math.prod(share for _, share in chosen)
                for chosen in itertools.product(*sources)
            )
    return result


Sources = list[tuple[int, float]]


def _sources(axis: Axis, position: int, alignment: Alignment, to: list[list[Mention]]) -> Sources:
    """Where the element at ``position`` comes from, and its shares; ``to`` collects the mentions of all axes so far."""
    to.append([])
    return _walk_axis(axis, position, alignment, to)


def _walk_axis(axis: Axis, position: int, alignment: Alignment, to: list[list[Mention]]) -> Sources:
    start = 0
    for segment in axis.segments:
        sizes = [_size(factor) for factor in segment.factors]
        total = torch.Size(sizes).numel()
        if position >= start + total:
            start += total
            continue
        rest, moved = position - start, [(start, 1)]
        for index, factor in enumerate(segment.factors):
            below = torch.Size(sizes[index + 1 :]).numel()
            digit, rest = divmod(rest, below)
            digits: Sources = [(digit, 1)]
            if isinstance(factor, Axis):
                digits = _walk_axis(factor, digit, alignment, to)
            elif isinstance(factor, Units):
                to[-1].append((factor, digit))
                if not isinstance(factor, StackPlaces):
                    owners = _owners(factor, to)
                    group = ".".join(
                        [factor.group, *(str(place) for units, place in owners if isinstance(units, StackPlaces))]
                    )
                    places = [place for units, place in owners if not isinstance(units, StackPlaces)]
                    element = alignment.elements[group][tuple(places)].tolist()
                    if isinstance(element, list):  # a row of a matrix
                        digits = list(enumerate(element))
                    else:
                        digits = [(element, 1) if element >= 0 else (~element, -1)]
            moved = [(at + digit * below, share * more) for at, share in moved for digit, more in digits]
        return moved
    raise AssertionError("position outside of the axis")


def _owners(units: Units, to: list[list[Mention]]) -> list[Mention]:
    """Mentions of the ancestors, then of the unit itself, that belong to the mention noted last."""
    trail, wanted = [to[-1][-1]], units.parent
    axis, before = len(to) - 1, len(to[-1]) - 1
    while wanted is not None:
        axis, before = next(
            (a, i)
            for a in range(axis, -1, -1)
            for i in range((before if a == axis else len(to[a])) - 1, -1, -1)
            if to[a][i][0].group == wanted
        )
        trail.insert(0, to[axis][before])
        wanted = trail[0][0].parent
    return trail


def _size(factor: object) -> int:
    return factor_size(factor) if isinstance(factor, Axis) else int(factor.size)
