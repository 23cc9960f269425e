"""Pairs on graphs that are so small that every alignment can be tried."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import torch
from torch import Tensor

from alignkit import Alignment, SymmetryGraph
from alignkit.graph import Pair

SPECS: dict[str, tuple[dict[str, str], dict[str, tuple[int, ...]], dict[str, int]]] = {
    "two layers": (
        {"w1": "a .", "b1": "a", "w2": "b a", "b2": "b", "w3": ". b"},
        {"w1": (4, 3), "b1": (4,), "w2": (4, 4), "b2": (4,), "w3": (2, 4)},
        {},
    ),
    "flatten": (
        {"conv": "c . . .", "fc": "h (c 4)", "out": ". h"},
        {"conv": (3, 2, 2, 2), "fc": (4, 12), "out": (2, 4)},
        {},
    ),
    "one group on both axes": (
        {"ih": "h+h .", "hh": "h+h h", "out": ". h"},
        {"ih": (8, 3), "hh": (8, 4), "out": (2, 4)},
        {},
    ),
    "heads": (
        {"qkv": "(k q[k])+(k q[k])+(k v[k]) m", "out": "m (k v[k])", "in": "m ."},
        {"qkv": (12, 3), "out": (3, 4), "in": (3, 5)},
        {"k": 2, "q": 2},
    ),
    "grouped convolution": (
        {"c1": "(g a[g]) .", "c2": "(g o[g]) a[g] .", "c3": ". (g o[g])"},
        {"c1": (6, 3), "c2": (4, 3, 2), "c3": (3, 4)},
        {"g": 2},
    ),
    "experts": (
        {"up": "e u[e] .", "down": "e . u[e]", "gate": "e ."},
        {"up": (3, 2, 3), "down": (3, 3, 2), "gate": (3, 3)},
        {},
    ),
    "concatenation": (
        {"c0": "a .", "c1": "b a", "dense": "d a+b", "out": ". a+b+d"},
        {"c0": (2, 3), "c1": (3, 2), "dense": (3, 5), "out": (2, 8)},
        {},
    ),
}


def pair_of(name: str, seed: int = 0) -> Pair:
    spec, shapes, sizes = SPECS[name]
    graph = SymmetryGraph.from_spec(spec, shapes, sizes=sizes)
    generator = torch.Generator().manual_seed(seed)

    def side() -> dict[str, Tensor]:
        return {n: torch.randn(shape, generator=generator) for n, shape in shapes.items()}

    return graph.bind(side(), side())


def every_alignment(graph: SymmetryGraph) -> Iterator[Alignment]:
    """All elements of a small symmetry group, by running over the orders of every instance of every group."""
    choices = []
    for name, group in graph.groups.items():
        orders = list(itertools.permutations(range(group.size)))
        choices.append([(name, combo) for combo in itertools.product(orders, repeat=graph.instances(name))])
    for picks in itertools.product(*choices):
        yield Alignment(graph, {n: torch.tensor(combo).reshape(graph.element_shape(n)) for n, combo in picks})
