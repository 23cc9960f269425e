"""Where a group acts on the tensors of a network: its uses.

A tensor of layout ``"(heads d[heads]) model"`` with 2 heads of 3 units and 4 places of ``model`` is one block of three
dims, ``[2, 3, 4]``. It holds three uses::

    group   at  chain   rest    others
    heads   0   (0,)    (1, 2)  d, model
    d       1   (0, 1)  (2,)    heads, model
    model   2   (2,)    (0, 1)  heads, d

Brought to the form ``[instances, units, rest]`` by `Use.unfold`, the block is ``[1, 2, 12]`` for ``heads``,
``[2, 3, 4]`` for ``d`` (one matrix for each head) and ``[1, 4, 6]`` for ``model``.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import prod

from jaxtyping import Float
from torch import Tensor

from alignkit.graph.layout import Block


@dataclass(frozen=True, eq=False)
class Use:
    """One dim on which a group acts: number ``at`` among the dims of one block of one tensor."""

    tensor: str
    block: Block
    at: int

    @cached_property
    def group(self) -> str:
        """Name of the group."""
        return str(self.block.dims[self.at].group)

    @cached_property
    def chain(self) -> tuple[int, ...]:
        """Dims of the group's ancestors, outermost first, and of the group itself."""
        return (*self.block.dims[self.at].ancestors, self.at)

    @cached_property
    def rest(self) -> tuple[int, ...]:
        """All other dims."""
        return tuple(i for i in range(len(self.block.dims)) if i not in self.chain)

    @cached_property
    def by_unit(self) -> tuple[int, ...]:
        """All dims, those of the chain first; empty where they stand like this."""
        order = (*self.chain, *self.rest)
        return () if order == tuple(range(len(order))) else order

    @cached_property
    def branches(self) -> tuple[int, ...]:
        """Dims off the chain that are nested in a unit on the chain."""
        return tuple(i for i in self.rest if set(self.block.dims[i].ancestors) & set(self.chain))

    @cached_property
    def others(self) -> tuple[str, ...]:
        """Names of the groups that act on the other dims, and of the group's ancestors."""
        return tuple(dict.fromkeys(group for i, group in self.block.moving if i != self.at))

    @cached_property
    def is_innermost(self) -> bool:
        """Whether no other dim of the block is nested in this one."""
        return not any(self.at in dim.ancestors for dim in self.block.dims)

    @cached_property
    def unit_count(self) -> int:
        """Number of units over all parents."""
        return prod(self.block.dims[i].size for i in self.chain)

    def unfold(self, part: Tensor) -> Float[Tensor, "instances units rest"]:
        """Arrange the elements of the block by unit: one matrix for each unit of the parent, one row for each unit.

        Args:
            part: The elements of the block, one dimension for each of its dims (`Block.view`).
        """
        size = self.block.dims[self.at].size
        return part.permute(*self.chain, *self.rest).reshape(self.unit_count // size, size, -1)

    def add_sums(self, total: Tensor, at: int, places: slice, values: Tensor) -> None:
        """Add to ``total``, a number for each unit over all parents, the sum of its elements in a part of the block.

        ``values`` are those at some places of dim ``at`` (`alignkit.graph.parts`).
        """
        dims, part = self.block.dims, values.permute(*self.chain, *self.rest)
        sums = part.flatten(len(self.chain)).sum(-1) if self.rest else part
        units = tuple(places if i == at else slice(None) for i in self.chain)
        total.view([dims[i].size for i in self.chain])[units] += sums

    def broadcast(self, values: Tensor) -> Tensor:
        """Shape one value for each unit over all parents so that it broadcasts over the elements of the block."""
        return values.reshape([dim.size if i in self.chain else 1 for i, dim in enumerate(self.block.dims)])


def uses_of_block(tensor: str, block: Block) -> tuple[Use, ...]:
    """List the uses of one block, from left to right."""
    return tuple(Use(tensor, block, at) for at, _ in block.moving)
