"""How alike the units of two networks are, place by place, before and after alignment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from alignkit.checkpoints.fit import is_number
from alignkit.graph.elements.action import act_on_block
from alignkit.graph.elements.alignment import Alignment
from alignkit.graph.structure import GraphStructure
from alignkit.graph.uses import uses_of_block

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

    The tensors ``a`` and ``b`` by first name are looked at one after the other, so these may be lazy mappings of
    checkpoints that do not fit into memory. No matrix of all units against all units is made.
    """
    shapes = {name: (graph.instances(name), group.size) for name, group in graph.groups.items()}
    sums = {name: torch.zeros(5, *shape, dtype=torch.float64) for name, shape in shapes.items()}
    identity = Alignment.identity(graph).elements
    for name, node in graph.tensors.items():
        if not node.groups:
            continue
        left, right = (side[name].detach().cpu() for side in (a, b))
        if not is_number(left):
            continue
        for block in node.blocks:
            mine = block.view(left).double()
            plain, moved = (act_on_block(block, block.view(right), p).double() for p in (identity, alignment.elements))
            squares = (mine * plain, mine * moved, mine.square(), plain.square(), moved.square())
            for use in uses_of_block(name, block):
                for row, values in enumerate(squares):
                    sums[use.group][row] += use.unfold(values).sum(-1)
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
    instances, size = graph.instances(group), graph.groups[group].size
    total, squares = (torch.zeros(*shape, size, dtype=torch.float64) for shape in ((instances, size), (2, instances)))
    for use in graph.uses[group]:
        left, right = (use.block.view(side[use.tensor].detach().cpu()) for side in (a, b))
        if not is_number(left):
            continue
        right = act_on_block(use.block, right, alignment.elements)
        mine, other = (use.unfold(part).double() for part in (left, right))
        total += mine @ other.mT
        squares += torch.stack([mine.square().sum(-1), other.square().sum(-1)])
    scale = squares[0][..., :, None].sqrt() * squares[1][..., None, :].sqrt()
    return total / scale.clamp_min(TINY)
