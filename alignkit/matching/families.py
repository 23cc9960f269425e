"""Nested assignment: families of units inside units, solved from the inside out.

The inner assignments of every pair of parents are solved first, and their values are the parents' similarities: exact
for a linear objective over a wreath product (heads, and the units inside each head).

Example: 2 heads of 2 units ``d``. Similarities of all 4 units of A (rows) and of B (columns), cut by `split_pairs`::

           B: head 0 | head 1
    A: head 0   0  1 |  4  0         matrices[0, 0] = [[0, 1], [1, 0]]   best: swap,  value 2
                1  0 |  0  3         matrices[0, 1] = [[4, 0], [0, 3]]   best: stay,  value 7
       head 1   5  0 |  0  1         matrices[1, 0] = [[5, 0], [0, 2]]   best: stay,  value 7
                0  2 |  1  0         matrices[1, 1] = [[0, 1], [1, 0]]   best: swap,  value 2

The values are the similarities of heads, ``[[2, 7], [7, 2]]``: heads change places, and ``d`` stays in both. So the
element is ``heads = [1, 0]``, ``d = [[0, 1], [0, 1]]``, of value 14.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from alignkit.graph.structure import GraphStructure
from alignkit.matching.oracles import best_of_kind, value_of


def split_pairs(similarity: Float[Tensor, "units units"], size: int) -> Float[Tensor, "p p n n"]:
    """Cut similarities of all units over all parents into one matrix for each pair of parents."""
    parents = similarity.shape[0] // size
    return similarity.reshape(parents, size, parents, size).transpose(1, 2)


def nested_assignment(
    graph: GraphStructure, root: str, similarity: Mapping[str, Float[Tensor, "units units"]]
) -> dict[str, Tensor]:
    """Find the best element of a tree of groups, as indices for each group of it, for given similarities of units.

    Args:
        graph: The graph.
        root: A group without a parent.
        similarity: For each group of the tree, similarities of A's units (rows) to B's (columns) over all parents,
            row-major: ``[instances * n, instances * n]``. A group that is left out has no similarities of its own.

    Raises:
        AssignmentError: Similarities hold NaN or infinity.
    """
    pairs: dict[str, Tensor] = {}

    def solve(group: str) -> Tensor:
        """Assign the group for each pair of parents; the values are the parents' similarities."""
        own, units = similarity.get(group), graph.unit_count(group)
        total = torch.zeros(units, units, dtype=torch.float64) if own is None else own.detach().cpu().double()
        for child in graph.children(group):
            total = total + solve(child)
        matrices = split_pairs(total, graph.groups[group].size)
        kind = graph.groups[group].kind
        pairs[group] = best_of_kind(kind, matrices)
        return value_of(kind, matrices, pairs[group])

    solve(root)
    return read_off(graph, graph.tree(root), pairs)


def best_element(graph: GraphStructure, similarity: Mapping[str, Float[Tensor, "units units"]]) -> dict[str, Tensor]:
    """Assign every tree of groups; see `nested_assignment`. The indices are those of the best `Alignment`."""
    return {n: element for root in graph.roots for n, element in nested_assignment(graph, root, similarity).items()}


def unit_masses(graph: GraphStructure, matrices: Mapping[str, Tensor]) -> dict[str, Float[Tensor, "units units"]]:
    """Multiply soft matrices down the trees: shares of all units (columns) at all places (rows), over all parents.

    With 2 heads of 3 units, the mass of unit ``j`` of head ``q`` at place ``i`` of head ``p`` is the share of head
    ``q`` at place ``p`` times ``matrices["d"][p, q, i, j]``. Matrices are as in `SoftAlignment`.
    """
    masses: dict[str, Tensor] = {}
    for group in graph.parents_first:
        parent, matrix = graph.groups[group].parent, matrices[group]
        if parent is not None:
            units = graph.unit_count(group)
            matrix = (masses[parent][:, :, None, None] * matrix).transpose(1, 2).reshape(units, units)
        masses[group] = matrix
    return masses


def read_off(graph: GraphStructure, groups: Iterable[str], pairs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Read off elements of groups, parents first, from those for every pair of parents, ``[p, p, n]``.

    Matrices are ``[p, p, n, n]``.
    """
    flats: dict[str, Tensor] = {}
    elements: dict[str, Tensor] = {}
    for group in groups:
        parent = graph.groups[group].parent
        source = torch.zeros(1, dtype=torch.int64) if parent is None else flats[parent]
        chosen = pairs[group][torch.arange(len(source)), source]
        elements[group] = chosen.reshape(graph.element_shape(group))
        if graph.children(group):
            flats[group] = (source[:, None] * chosen.shape[-1] + chosen).reshape(-1)
    return elements
