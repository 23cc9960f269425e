"""How a group element acts on a block of a tensor: by indices, with signs, or by matrices."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from math import prod
from types import EllipsisType

import torch
from torch import Tensor

from alignkit.checkpoints.dtypes import as_bits
from alignkit.graph.elements.element import flipped, order_of
from alignkit.graph.kinds import KINDS
from alignkit.graph.layout import Block, Dim

PIECE = 1 << 25
"""Bytes of a block that are moved at once."""


def act_on_block(
    block: Block, part: Tensor, elements: Mapping[str, Tensor], skip: frozenset[int] = frozenset()
) -> Tensor:
    """Move a block along each of its dims that belongs to a group, parents first.

    Args:
        block: The block.
        part: Its elements, one dimension for each of ``block.dims``.
        elements: For each group indices or a rotation, as in `Alignment`, or a matrix, as in `SoftAlignment`.
        skip: Positions of dims to leave alone.

    Returns:
        The moved block. Differentiable with respect to ``part`` and to the matrices.
    """
    return act_on_dims(block.dims, part, {at: elements[group] for at, group in block.moving if at not in skip})


def act_on_dims(dims: Sequence[Dim], part: Tensor, elements: Mapping[int, Tensor]) -> Tensor:
    """Move a part of a block along some of its dims, parents first; see `act_on_block`.

    Args:
        dims: All dims of the block. Of dims that own others the part may hold a few places only.
        part: The elements, one dimension for each dim.
        elements: Indices or a matrix for each dim that moves, by its number; for the places that the part holds.
    """
    dtype, part = part.dtype, as_bits(part)
    matrices: dict[int, Tensor] = {}
    flips: list[Tensor] = []
    for at in sorted(elements):
        element, ancestors = elements[at].to(part.device), dims[at].ancestors
        if element.is_floating_point():
            matrices[at] = element
            continue
        if not ancestors and dims[at].kind == "permutation":
            part = part.index_select(at, element)
            continue
        shape = [size if i in ancestors else 1 for i, size in enumerate(part.shape)]
        shape[at] = element.shape[-1]
        if dims[at].kind == "signed":
            flips.append(flipped(element).reshape(shape))
            element = order_of(element)
        part = _select_within(part, at, element.reshape(shape)) if ancestors else part.index_select(at, element)
    part = part if part.dtype == dtype else part.view(dtype)
    if flips:
        part = change_signs(part, functools.reduce(torch.logical_xor, flips))
    return _act_by_matrices(dims, part, matrices) if matrices else part


def _select_within(part: Tensor, at: int, index: Tensor) -> Tensor:
    """Return a part with dim ``at`` in an order that depends on the places of dims before it.

    ``index`` has a dimension for each of the part's; of size 1 where the order does not depend on it. The dims from the
    first that it depends on are seen as one, so that numbers that lie behind them are moved together.
    """
    first = next((i for i in range(at) if index.shape[i] > 1), at)
    lead, between, behind = part.shape[:first], part.shape[first:at], part.shape[at + 1 :]
    starts = part.shape[at] * torch.arange(prod(between), device=part.device).reshape(*between, 1)
    rows = (starts + index.reshape(index.shape[first : at + 1])).reshape(-1)
    flat = part.reshape(prod(lead), prod(between) * part.shape[at], prod(behind))
    return flat.index_select(1, rows).reshape(*lead, *between, index.shape[at], *behind)


def change_signs(part: Tensor, flips: Tensor) -> Tensor:
    """Return a part with the sign of every number changed where the mask ``flips`` says so, exactly in every bit."""
    if part.is_complex():  # torch leaves the signs of many complex zeros
        negated = torch.view_as_complex(-torch.view_as_real(part.resolve_conj()))
    else:  # torch does not negate floats of 8 bits
        negated = -part if part.dtype.itemsize > 1 else (-part.float()).to(part.dtype)
    return torch.where(flips, negated, part)


def _act_by_matrices(dims: Sequence[Dim], part: Tensor, elements: Mapping[int, Tensor]) -> Tensor:
    """Multiply a part along some of its dims with matrices.

    A matrix has a copy for each place of the dim's ancestors, ``[*places, n, n]``, or for each place and source,
    ``[*places, *sources, n, n]``. Rotations are multiplied in their own dtype if it is wider than that of the part.
    """
    dtype, labels = part.dtype, len(dims)
    for at, element in elements.items():
        if KINDS[dims[at].kind].rotates:
            part = part.to(torch.promote_types(part.dtype, element.dtype))
    # One label for the source of each dim; those with a matrix get a second label for their place.
    operands: list[Tensor | list[int]] = [part, list(range(labels))]
    result = [labels + at if at in elements else at for at in range(labels)]
    for at, element in elements.items():
        ancestors, size = dims[at].ancestors, dims[at].size
        sizes, places = [part.shape[i] for i in ancestors], [result[i] for i in ancestors]
        if element.numel() > prod(sizes) * size**2:
            sizes, places = [*sizes, *sizes], [*places, *ancestors]
        operands += [element.to(part.dtype).reshape(*sizes, size, size), [*places, result[at], at]]
    return torch.einsum(*operands, result).to(dtype)


def act_on_blocks(blocks: Iterable[Block], tensor: Tensor, elements: Mapping[str, Tensor]) -> Tensor:
    """Return a tensor, of which these are all blocks, with each of them moved; see `act_on_block`.

    Large blocks are moved a few places of their first dim at a time, so that little more than the result is held.
    """
    result = torch.empty_like(tensor)
    for block in blocks:
        source, target = block.view(tensor), block.view(result)
        orders = {at: elements[group] for at, group in block.moving}
        below = {at for at in orders if at == 0 or block.dims[at].ancestors[:1] == (0,)}
        for places in _pieces(source, orders):
            part = source if 0 in orders else source[places]
            own = {at: order[places] if at in below else order for at, order in orders.items()}
            target[places].copy_(act_on_dims(block.dims, part, own))
    return result


def _pieces(part: Tensor, orders: Mapping[int, Tensor]) -> list[slice | EllipsisType]:
    """Cut the first dim of a block into runs of about `PIECE` bytes; matrices need it whole."""
    if part.nbytes <= PIECE or any(order.is_floating_point() for order in orders.values()):
        return [...]
    step = max(1, PIECE * len(part) // part.nbytes)
    return [slice(start, start + step) for start in range(0, len(part), step)]
