"""How a group element acts on a block of a tensor: by indices where it is hard, by matrices where it is soft."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from alignkit.checkpoints.dtypes import as_bits
from alignkit.graph.layout import Block, Dim


def act_on_block(
    block: Block, part: Tensor, elements: Mapping[str, Tensor], skip: frozenset[int] = frozenset()
) -> Tensor:
    """Move a block along each of its dims that belongs to a group, parents first.

    Args:
        block: The block.
        part: Its elements, one dimension for each of ``block.dims``.
        elements: For each group int64 indices, as in `Alignment`, or a floating-point matrix, as in `SoftAlignment`.
        skip: Positions of dims to leave alone.

    Returns:
        The moved block. Differentiable with respect to ``part`` and to the matrices.
    """
    moving = {at: dim.group for at, dim in enumerate(block.dims) if dim.group is not None and at not in skip}
    return act_on_dims(block.dims, part, {at: elements[group] for at, group in moving.items()})


def act_on_dims(dims: Sequence[Dim], part: Tensor, elements: Mapping[int, Tensor]) -> Tensor:
    """Move a part of a block along some of its dims, parents first; see `act_on_block`.

    Args:
        dims: All dims of the block. Of dims that own others the part may hold a few places only.
        part: The elements, one dimension for each dim.
        elements: Indices or a matrix for each dim that moves, by its number; for the places that the part holds.
    """
    dtype, part = part.dtype, as_bits(part)
    soft: dict[int, Tensor] = {}
    for at in sorted(elements):
        element, ancestors = elements[at], dims[at].ancestors
        if element.is_floating_point():
            soft[at] = element
        elif ancestors:
            shape = [size if i in (*ancestors, at) else 1 for i, size in enumerate(part.shape)]
            part = torch.take_along_dim(part, element.to(part.device).reshape(shape), at)
        else:
            part = part.index_select(at, element.to(part.device))
    part = part if part.dtype == dtype else part.view(dtype)
    if not soft:
        return part
    # One label for the source of each dim; soft dims get a second label for their place. A child's matrix depends on
    # the place and on the source of its parents.
    operands: list[Tensor | list[int]] = [part, list(range(len(dims)))]
    result = [len(dims) + at if at in soft else at for at in range(len(dims))]
    for at, element in soft.items():
        ancestors, size = dims[at].ancestors, dims[at].size
        sizes = [dims[i].size for i in ancestors]
        matrix = element.to(part.device, part.dtype).reshape(*sizes, *sizes, size, size)
        operands += [matrix, [*(result[i] for i in ancestors), *ancestors, result[at], at]]
    return torch.einsum(*operands, result)


def act_on_blocks(blocks: Iterable[Block], tensor: Tensor, elements: Mapping[str, Tensor]) -> Tensor:
    """Return a tensor, of which these are all blocks, with each of them moved; see `act_on_block`."""
    result = torch.empty_like(tensor)
    for block in blocks:
        block.view(result).copy_(act_on_block(block, block.view(tensor), elements))
    return result
