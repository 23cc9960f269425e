"""How alike the units of two networks are, place by place, before and after alignment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from alignkit.checkpoints.fit import is_number
from alignkit.graph.bind import LazyWeights
from alignkit.graph.elements.alignment import Alignment
from alignkit.graph.parts import Network, as_tensors, parts_of_block
from alignkit.graph.structure import GraphStructure
from alignkit.graph.uses import uses_of_block
from alignkit.matching.products import Product

TINY = 1e-300
"""In place of the norm of a unit whose weights are all 0: its cosine is 0 then, not NaN."""


@dataclass(frozen=True, eq=False)
class UnitSimilarity:
    """Cosine similarities of the units of one group.

    A unit's vector is every weight that the group indexes with it: its rows, columns and biases in every tensor.

    Attributes:
        before: Float64 ``[instances, size]``: unit i of A and unit i of B, as the weights were given.
        after: The same with every group of B aligned.
    """

    before: Float[Tensor, "instances size"]
    after: Float[Tensor, "instances size"]


def unit_similarity(
    graph: GraphStructure, a: Mapping[str, Tensor], b: Mapping[str, Tensor], alignment: Alignment
) -> dict[str, UnitSimilarity]:
    """Cosine of every unit of A and the unit of B at its place, before and after alignment.

    Networks are looked at part by part, so these may stay on disk. No matrix of all units against all units is made::

        cosine[p, i] = sum_uses sum_r A[p, i, r] (P # B)[p, i, r] / sqrt(sum_uses sum_r A^2  sum_uses sum_r (P # B)^2)

    with ``p`` a unit of the parent, ``i`` a unit and ``r`` everything else in the block of a use.
    """
    shapes = {name: (graph.instances(name), group.size) for name, group in graph.groups.items()}
    sums = {name: torch.zeros(5, *shape, dtype=torch.float64) for name, shape in shapes.items()}
    left, right = as_tensors(a), as_tensors(b)
    networks: list[Network] = [(left, {}), (right, {}), (right, dict(alignment.elements))]
    for name, node in graph.tensors.items():
        for block in node.blocks if node.groups and is_number(left.dtype(name)) else ():
            for at, places, parts in parts_of_block(name, block, networks):
                mine, plain, moved = (part.double() for part in parts)
                products = (mine * plain, mine * moved, mine.square(), plain.square(), moved.square())
                for use in uses_of_block(name, block):
                    for total, values in zip(sums[use.group], products, strict=True):
                        use.add_sums(total, at, places, values)
    similarities = {}
    for group, (inner_before, inner_after, a2, before2, after2) in sums.items():
        norm_a, *norms_b = (squares.sqrt() for squares in (a2, before2, after2))  # products of squares may overflow
        norms = ((norm_a * norm).clamp_min(TINY) for norm in norms_b)
        similarities[group] = UnitSimilarity(*map(torch.div, (inner_before, inner_after), norms))
    return similarities


def similarity_matrix(
    graph: GraphStructure, a: Mapping[str, Tensor], b: Mapping[str, Tensor], alignment: Alignment, group: str
) -> Float[Tensor, "instances size size"]:
    """Cosine of each unit of A (row) and each place of aligned B (column).

    All groups of B are aligned; its diagonal is `UnitSimilarity.after`. The units of a family are compared within each
    aligned parent. Of the tensors ``a`` and ``b`` by first name only those of the group are read.
    """
    if isinstance(b, LazyWeights):
        sides = as_tensors(a), as_tensors(alignment.apply(b))
    else:
        names = graph.tensors_of(group)
        moved = {name: alignment.apply_tensor(name, b[name]) for name in names}
        sides = as_tensors({name: a[name] for name in names}), as_tensors(moved)
    identity = Alignment.identity(graph).elements
    instances, size = graph.instances(group), graph.groups[group].size
    total, squares = (torch.zeros(*shape, size, dtype=torch.float64) for shape in ((instances, size), (2, instances)))
    for use in graph.uses[group]:
        if not is_number(sides[0].dtype(use.tensor)):
            continue
        product = Product(use, identity, within_parents=True)
        total = product.add_to(total, sides, lambda part, _: part.double())
        for at, places, parts in parts_of_block(use.tensor, use.block, [(side, {}) for side in sides]):
            for sums, part in zip(squares, parts, strict=True):
                use.add_sums(sums, at, places, part.double().square())
    scale = squares[0][..., :, None].sqrt() * squares[1][..., None, :].sqrt()
    return total / scale.clamp_min(TINY)
