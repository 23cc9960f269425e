"""Products of units at one use of a group where orders of other groups are matrices, as in `SoftAlignment`.

In the place of ``others # B`` (`alignkit.matching.products`) stands the sum over all sources, each with its share ::

    product[p i, q j] = sum_rs A[p, i, r] * share[r, s] * B[q, j, s]

with ``r`` a place and ``s`` a source of the other dims, and ``share`` one factor for each of them: ``M[m, n]`` of a
root, ``D[p, q, i, j]`` of a family, for its parents at ``p`` and from ``q``, and ``D[p, i, j]`` of a rotation. Example:
a tensor of layout ``"(heads d[heads]) model"`` with matrices ``H``, ``D`` and ``M`` of its groups, at the uses of ``d``
and of ``model``::

    product[p i, q j] = sum_mn   A[p, i, m] M[m, n] B[q, j, n]
    product[m, n]     = sum_piqj A[p, i, m] H[p, q] D[p, q, i, j] B[q, j, n]
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod

import torch
from jaxtyping import Float
from torch import Tensor

from alignkit.graph.layout import Dim
from alignkit.graph.parts import Orders, Tensors, ordered_part, ranges
from alignkit.graph.uses import Use


def add_soft_product(
    total: Float[Tensor, "parents n n"],
    use: Use,
    orders: Orders,
    compared: frozenset[int],
    averaged: frozenset[int],
    sides: tuple[Tensors, Tensors],
    factors: Callable[[Tensor, int], Tensor],
    scale: float,
) -> None:
    """Add the product times ``scale`` to ``total``, part by part; the arguments are those of `Product`.

    Each part is one einsum, with letter ``k`` for the source and ``count + k`` for the place of dim ``k``, in an order
    in which every product is small: B, one matrix after the other, A last.
    """
    block, dims, count = use.block, use.block.dims, len(use.block.dims)
    soft = {at: _matrix(dims, at, order) for at, order in orders.items() if order.is_floating_point()}
    hard = {at: order for at, order in orders.items() if at not in soft}
    place = [count + k if k in soft or k in compared else k for k in range(count)]
    at = sides[0].cut(block, frozenset(use.rest) - averaged - soft.keys())
    # A part under a matrix of a family has a copy for each place of its parents.
    nested = {i for k in soft for i in dims[k].ancestors if place[i] != i}
    runs = ranges(sides[0].piece // prod(dims[i].size for i in nested), block, at)
    # Where places and sources differ, every range of A meets every range of B.
    is_apart = at in soft or at in compared or at in averaged
    chain = [(i, 0) for i in use.chain] + [(i, 1) for i in use.chain if i in compared]
    view = total.view([dims[i].size for i, _ in chain])
    for own in runs:
        a = _read(sides, 0, use, at, own, {}, averaged, factors)
        for other in runs if is_apart else [own]:
            b = _read(sides, 1, use, at, other, hard, averaged, factors)
            operands: list[Tensor | list[int]] = [b, list(range(count))]
            for k, matrix in soft.items():
                places, sources = ([(i, of) for i in dims[k].ancestors] for of in (0, 1))
                axes = [*places, *(sources if matrix.ndim > len(places) + 2 else ()), (k, 0), (k, 1)]
                cut = tuple((own, other)[of] if i == at else slice(None) for i, of in axes)
                operands += [matrix[cut].to(b.device, b.dtype), [i if of else place[i] for i, of in axes]]
            operands += [a, place]
            product = torch.einsum(*operands, [i if of else place[i] for i, of in chain])
            view[tuple((own, other)[of] if i == at else slice(None) for i, of in chain)].add_(product, alpha=scale)


def _matrix(dims: tuple[Dim, ...], at: int, order: Tensor) -> Float[Tensor, "*ancestors n n"]:
    """Return a matrix with an axis for the place of each ancestor, and, unless it is a rotation, for its source."""
    sizes, size = [dims[i].size for i in dims[at].ancestors], dims[at].size
    by_pairs = order.numel() > prod(sizes) * size**2
    return order.reshape(*sizes, *(sizes if by_pairs else ()), size, size)


def _read(
    sides: tuple[Tensors, Tensors],
    side: int,
    use: Use,
    at: int,
    run: slice,
    orders: Orders,
    averaged: frozenset[int],
    factors: Callable[[Tensor, int], Tensor],
) -> Tensor:
    """Read a part of A (0) as it stands, summed over averaged dims, or of B (1) in order, with their mean."""
    part = factors(ordered_part(sides[side], use.tensor, use.block, at, run, orders), side)
    if averaged:
        part = part.sum(tuple(averaged), keepdim=True)
    return part / prod(use.block.dims[i].size for i in averaged) if side and averaged else part
