"""How a group element acts on a block of a tensor: by indices where it is hard, by matrices where it is soft."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

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
    soft: list[int] = []
    for at, dim in enumerate(block.dims):
        if dim.group is None or at in skip:
            continue
        element = elements[dim.group]
        if element.is_floating_point():
            soft.append(at)
        else:
            part = _gather(block, part, at, element.to(part.device))
    return _mix(block, part, soft, elements) if soft else part


def _gather(block: Block, part: Tensor, at: int, indices: Tensor) -> Tensor:
    dim = block.dims[at]
    if not dim.ancestors:
        return part.index_select(at, indices)
    shape = [1] * len(block.dims)
    for i in (*dim.ancestors, at):
        shape[i] = block.dims[i].size
    return torch.take_along_dim(part, indices.reshape(shape), at)


def _mix(block: Block, part: Tensor, soft: list[int], elements: Mapping[str, Tensor]) -> Tensor:
    """Multiply each soft dim by its matrix; a child's matrix depends on the place and on the source of its parents."""
    dims = block.dims
    count = len(dims)
    # One label for the source of each dim; soft dims get a second label for their place.
    operands: list[Tensor | list[int]] = [part, list(range(count))]
    result = [count + at if at in soft else at for at in range(count)]
    for at in soft:
        ancestors = dims[at].ancestors
        sizes = [dims[i].size for i in ancestors]
        matrix = elements[str(dims[at].group)].to(part.device, part.dtype)
        size = dims[at].size
        places = [result[i] for i in ancestors]
        operands += [matrix.reshape(*sizes, *sizes, size, size), [*places, *ancestors, count + at, at]]
    operands.append(result)
    return torch.einsum(*operands)
