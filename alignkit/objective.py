"""The alignment objective: distance of A to aligned B, and the similarities whose assignment lowers it.

``|| A - P # B ||^2`` is smallest where the inner product ``<A, P # B>`` is largest. Every solver calls this module for
values and for the similarity matrix of a group; [Ainsworth23], "matching weights".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from alignkit.alignment import Alignment, permute_block
from alignkit.graph.bind import BoundGraph
from alignkit.graph.layout import Block

Perms: TypeAlias = Mapping[str, Tensor | None]
"""Indices for each group, as in `Alignment`; None stands for a group whose order is not known yet."""


@dataclass(frozen=True)
class Use:
    """One place where a group acts: position ``at`` among the dims of one block of one tensor."""

    tensor: str
    block: Block
    at: int

    @property
    def chain(self) -> tuple[int, ...]:
        """Positions of the group's ancestors, outermost first, and of the group itself."""
        return (*self.block.dims[self.at].ancestors, self.at)

    @cached_property
    def rest(self) -> tuple[int, ...]:
        """Positions of all other dims."""
        return tuple(i for i in range(len(self.block.dims)) if i not in self.chain)


class Objective:
    """Values and similarities of one pair of networks.

    Args:
        bound: The pair.
        device: Where products are computed.
        dtype: Type of the products; sums over tensors are always float64.
    """

    def __init__(
        self, bound: BoundGraph, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float64
    ) -> None:
        self.bound, self.graph = bound, bound.graph
        self.device, self.dtype = torch.device(device), dtype
        moved = [name for name, node in self.graph.tensors.items() if node.groups]
        self.a = {name: self._load(bound.a[name]) for name in moved}
        self.b = {name: self._load(bound.b[name]) for name in moved}
        self._unfolded: dict[tuple[str, Block, int], Tensor] = {}

    def _load(self, tensor: Tensor) -> Tensor:
        return tensor.detach().to(self.device, self.dtype).contiguous()

    # ---------------------------------------------------------------- values

    @cached_property
    def squares(self) -> float:
        """``|A|^2 + |B|^2``, the same for every alignment; integer buffers count as numbers too."""
        sides = (self.bound.a, self.bound.b)
        return sum(float(t.detach().double().square().sum()) for side in sides for t in side.values())

    @cached_property
    def fixed_value(self) -> float:
        """``<A, B>`` over the tensors on which no group acts."""
        names = [name for name, node in self.graph.tensors.items() if not node.groups]
        return sum(
            float((self.bound.a[n].detach().double() * self.bound.b[n].detach().double()).sum()) for n in names
        )

    def tensor_value(self, name: str, perms: Perms) -> float:
        """``<A, P # B>`` of one tensor on which groups act."""
        total = 0.0
        for block in self.graph.tensors[name].blocks:
            part = permute_block(block, block.view(self.b[name]), _known(perms, block))
            total += float((block.view(self.a[name]) * part).sum(dtype=torch.float64))
        return total

    def value(self, alignment: Alignment) -> float:
        """``<A, P # B>`` over all tensors."""
        return self.fixed_value + sum(self.tensor_value(name, alignment.perms) for name in self.a)

    def distance2(self, alignment: Alignment) -> float:
        """``|| A - P # B ||^2`` over all tensors, summed in float64."""
        total = 0.0
        for name, tensor in self.bound.b.items():
            aligned = alignment.apply_tensor(name, tensor)
            total += float((self.bound.a[name].detach().double() - aligned.double()).square().sum())
        return total

    # ---------------------------------------------------------------- similarities

    @cached_property
    def uses(self) -> dict[str, tuple[Use, ...]]:
        """Every place where each group acts."""
        table: dict[str, list[Use]] = {name: [] for name in self.graph.groups}
        for name, node in self.graph.tensors.items():
            for block in node.blocks:
                for at, dim in enumerate(block.dims):
                    if dim.group is not None:
                        table[dim.group].append(Use(name, block, at))
        return {name: tuple(uses) for name, uses in table.items()}

    def similarity(self, group: str, perms: Perms) -> Float[Tensor, "instances n n"]:
        """How alike each unit of A is to each unit of B, all other groups being applied to B.

        The sum, over every place where the group acts, of ``unfold(A) @ unfold(others applied to B)^T``. Assigning it
        best is the best update of this group alone, exactly where the group acts once on each block.

        Args:
            group: A group of the graph.
            perms: Indices for the other groups. A group that is None counts as unknown: what it indexes is averaged,
                which is the centre of all its orders.

        Returns:
            ``[instances, n, n]``, one matrix for each unit of the parent at its aligned place (one for a root), in
            squared units of the weights.
        """
        shape = (self.graph.instances(group), self.graph.groups[group].size)
        total = torch.zeros((*shape, shape[-1]), dtype=self.dtype, device=self.device)
        for use in self.uses[group]:
            a, b = self.unfold(use, perms)
            if len(use.chain) == 1:
                total[0].addmm_(a.reshape(shape[-1], -1), b.reshape(shape[-1], -1).mT)
            else:
                total.baddbmm_(a.reshape(*shape, -1), b.reshape(*shape, -1).mT)
        return total

    def unfold(self, use: Use, perms: Perms) -> tuple[Tensor, Tensor]:
        """A's and B's part at one place, the group's chain of dims first, all other groups applied to B.

        The group's ancestors are applied when they are known; the group itself is not.
        """
        unknown = unknown_dims(use, perms)
        dims = use.block.dims
        part = use.block.view(self.b[use.tensor])
        known = {d.group: perms[d.group] for i, d in enumerate(dims) if d.group and i not in unknown and i != use.at}
        part = permute_block(use.block, part, known, skip=unknown | {use.at})  # type: ignore[arg-type]
        a = self._unfold_a(use)
        order = (*use.chain, *use.rest)
        part = part.permute(order)
        if unknown:
            places = [order.index(i) for i in unknown]
            a, part = a.sum(places), part.mean(places)
        return a, part

    def _unfold_a(self, use: Use) -> Tensor:
        key = (use.tensor, use.block, use.at)
        if key not in self._unfolded:
            self._unfolded[key] = use.block.view(self.a[use.tensor]).permute(*use.chain, *use.rest)
        return self._unfolded[key]


def unknown_dims(use: Use, perms: Perms) -> frozenset[int]:
    """Positions, among the dims off the chain, of groups whose order (or whose parents' order) is not known."""
    dims = use.block.dims

    def is_unknown(at: int) -> bool:
        group = dims[at].group
        return group is not None and (perms.get(group) is None or any(map(is_unknown, dims[at].ancestors)))

    return frozenset(at for at in use.rest if is_unknown(at))


def _known(perms: Perms, block: Block) -> dict[str, Tensor]:
    known = {}
    for group in block.groups:
        perm = perms[group]
        assert perm is not None, f"the order of {group} is not known"
        known[group] = perm
    return known
