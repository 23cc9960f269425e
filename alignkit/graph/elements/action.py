"""How a group element acts on a block of a tensor: by indices where it is hard, by matrices where it is soft."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from alignkit.checkpoints.dtypes import as_bits
from alignkit.graph.layout import Block


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
    dims, dtype, part = block.dims, part.dtype, as_bits(part)
    soft: dict[int, Tensor] = {}
    for at, dim in enumerate(dims):
        if dim.group is None or at in skip:
            continue
        element = elements[dim.group]
        if element.is_floating_point():
            soft[at] = element
        elif dim.ancestors:
            shape = [d.size if i in (*dim.ancestors, at) else 1 for i, d in enumerate(dims)]
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
