"""Products of units at one use of a group: the terms that similarities are sums of.

The kernel of every similarity is, for a use (`alignkit.graph.uses.Use`) of a group ::

    product[p, i, j] = sum_r unfold(A)[p, i, r] * unfold(others # B)[p, j, r]

with ``p`` a unit of the group's parent, ``i`` and ``j`` units of the group in A and in B, ``r`` all other positions of
the block, and ``others # B`` the block of B with the other groups applied. It is added up part by part, along one dim
of the block (`alignkit.graph.parts`), which plays one of four roles: it is averaged, it is summed over, it is an
ancestor whose units are matched already, or its units (or those nested in them) are what is compared.

Two uses of a group in one tensor are two products. With a group on both axes, and ``P`` its order so far, that at the
first axis is ``A P B^T`` and that at the second ``A^T P B``. They are equal for every order only if A and B are both
symmetric or both antisymmetric, apart from what is constant along rows or columns: no weights of a network are.
Transposing does not make one of the other either, since ``A P`` is not ``A^T P``. What both share is one number,
``<A, P B P^T>``, the sum of the entries that ``P`` picks. So each use is multiplied for itself.

Example: a tensor ``[8 units, 1000]`` on disk, and memory for 2 rows. Rows 0 and 1 of A with rows 0 and 1 of B fill
``total[0:2, 0:2]``, and so on, 16 products of ``[2, 1000] @ [1000, 2]``. Where the group acts on the second axis
instead, each range of rows adds ``[1000, 2] @ [2, 1000]`` to all of ``total``, and every row is read once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from math import prod

import torch
from jaxtyping import Float
from torch import Tensor

from alignkit.graph.kinds import WITH_MEAN
from alignkit.graph.parts import (
    Change,
    Orders,
    Places,
    Tensors,
    changes,
    ordered_part,
    orders_of,
    ranges,
    split_places,
)
from alignkit.graph.uses import Use
from alignkit.matching.soft_products import add_soft_product

ROWS = 512
"""Rows of a product that are widened to float64 at once: few enough to be small beside the matrix of similarities."""
LARGE = 1 << 20
"""Multiplications of a product from which `multiply` may bring its factors to the form that oneDNN takes."""

Factors = Callable[[Tensor, int], Tensor]
"""Brings a part of A (0) or of B (1) to the type of the products, divided by the size of that side."""


class Product:
    """The product at one use, for given elements of the other groups.

    Args:
        use: The use.
        elements: Indices or matrices of each group; a group without any is unknown. What it indexes is summed in A and
            averaged in B, which is the centre of all its orders; the product is 0 where the centre of its kind is.
        within_parents: Whether the group's ancestors are applied to B, and units of one parent compared with each
            other: ``[parents, n, n]``. Otherwise all units of all parents are: ``[1, units, units]``. What is nested in
            them is averaged then, unless it has a matrix for each pair of parents.
    """

    def __init__(self, use: Use, elements: Mapping[str, Tensor | None], *, within_parents: bool) -> None:
        self.use, self.dims, self.within_parents = use, use.block.dims, within_parents
        self.compared = frozenset({use.at}) if within_parents else frozenset(use.chain)
        self.averaged = unknown_dims(use, elements, self.compared)
        if not within_parents and use.branches:
            matrices = {name for name, order in elements.items() if order is not None and order.is_floating_point()}
            self.averaged |= {at for at in use.branches if self.dims[at].group not in matrices}
        self.orders = orders_of(use.block, elements, self.averaged | self.compared)
        self._given = {name: elements.get(name) for name in use.others}
        self.is_soft = any(order.is_floating_point() for order in self.orders.values())
        """Whether an order is a matrix."""
        self.work = self._work()
        """Multiplications of the whole product; 0 where it is known to be 0."""

    def _work(self) -> int:
        if any(self.dims[at].group is not None and self.dims[at].kind not in WITH_MEAN for at in self.averaged):
            return 0  # the mean over all elements of such a group is 0
        size = prod(dim.size for at, dim in enumerate(self.dims) if at not in self.averaged)
        return size * (self.dims[self.use.at].size if self.within_parents else self.use.unit_count)

    def cut(self, tensors: Tensors) -> tuple[int, list[slice]]:
        """Return the dim along which the block is cut, and the places of each part."""
        at = tensors.cut(self.use.block, frozenset(self.use.rest) - self.averaged)
        return at, ranges(tensors.piece, self.use.block, at, self.orders)

    def add_to(
        self, total: Float[Tensor, "parents n n"], sides: tuple[Tensors, Tensors], factors: Factors, scale: float = 1.0
    ) -> Tensor:
        """Add the product times ``scale`` to ``total`` and return it: in place, unless gradients flow."""
        if not self.work:
            return total
        if self.is_soft:
            add_soft_product(total, self.use, self.orders, self.compared, self.averaged, sides, factors, scale)
            return total
        at, runs = self.cut(sides[0])

        def factor(side: int, run: Places) -> Tensor:
            return self._factor(sides, side, at, run, self.orders if side else {}, factors)

        return self._sum(total, at, runs, factor, scale)

    def of_parents(
        self, parents: Places, sides: tuple[Tensors, Tensors], factors: Factors
    ) -> Float[Tensor, "parents n n"]:
        """Return the product within some units of the outermost parent, the first dim, alone."""
        left, right = (self._factor(sides, side, 0, parents, self.orders if side else {}, factors) for side in (0, 1))
        return left @ right.mT

    def _sum(
        self, total: Tensor, at: int, runs: Sequence[Places], factor: Callable[[int, Places], Tensor], scale: float
    ) -> Tensor:
        """Add the products of A's factors (0) and B's (1) over runs of dim ``at``."""
        if at in self.averaged:
            # A is summed and B averaged over the dim before they are multiplied.
            left, right = (sum((factor(side, run) for run in runs), start=torch.zeros(())) for side in (0, 1))
            return add_product(total, left, right / self.dims[at].size, scale)
        if len(runs) == 1 or at not in self.use.chain:
            for run in runs:
                total = add_product(total, factor(0, run), factor(1, run), scale)
            return total
        each = total.shape[-1 if at in self.compared else 0] // self.dims[at].size
        units = [slice(run.start * each, run.stop * each) for run in runs if isinstance(run, slice)]
        for own, run in zip(units, runs, strict=True):
            left = factor(0, run)
            if at in self.compared:  # every range of A with every range of B
                for columns, other in zip(units, runs, strict=True):
                    add_product(total[:, own, columns], left, factor(1, other), scale)
            else:
                add_product(total[own], left, factor(1, run), scale)
        return total

    def is_for(self, elements: Mapping[str, Tensor | None]) -> bool:
        """Tell whether the product is that for some elements, given the very same ones."""
        return all(elements.get(name) is element for name, element in self._given.items())

    def changes_from(self, other: Product) -> list[Change] | None:
        """List what differs from the product for other orders at this use; None if other groups are unknown."""
        if self.averaged != other.averaged:
            return None
        if not self.work:  # both are 0
            return []
        return list(changes(self.use.block, other.orders, self.orders))

    def work_of(self, changed: Iterable[Change]) -> float:
        """Return the multiplications of `add_changes_to`."""
        return sum(self.work * len(places) / self.dims[at].size for at, places, _, _ in changed)

    def add_changes_to(
        self,
        total: Float[Tensor, "1 units units"],
        changed: Iterable[Change],
        sides: tuple[Tensors, Tensors],
        factors: Factors,
        scale: float,
    ) -> None:
        """Add the difference that changes of orders make to the product, from the places that changed alone."""
        for moving, places, before, after in changed:
            at = sides[0].cut(self.use.block, frozenset({moving}))
            cut, only = (sides[0].piece, self.use.block, at), None if at == moving else (moving, places)
            runs: Sequence[Places] = ranges(*cut) if only else split_places(*cut, places)

            def factor(side: int, run: Places) -> Tensor:
                orders = (after, before) if side else ({},)  # noqa: B023
                parts = [self._factor(sides, side, at, run, each, factors, only) for each in orders]  # noqa: B023
                return parts[0] - parts[1] if side else parts[0]

            self._sum(total, at, runs, factor, scale)

    def _factor(
        self,
        sides: tuple[Tensors, Tensors],
        side: int,
        at: int,
        run: Places,
        orders: Orders,
        factors: Factors,
        only: tuple[int, Tensor] | None = None,
    ) -> Float[Tensor, "parents n rest"]:
        """Read a part of A (0) or, in order, of B (1), arranged by unit; averaged dims have size 1."""
        use = self.use
        part = factors(ordered_part(sides[side], use.tensor, use.block, at, run, orders, only), side)
        if self.averaged:
            if inner := tuple(i for i in self.averaged if i != at):
                part = part.mean(inner, keepdim=True) if side else part.sum(inner, keepdim=True)
            if at in self.averaged:  # B is divided once all ranges are there
                part = part.sum(at, keepdim=True)
        if use.by_unit:
            part = part.permute(use.by_unit)
        *parents, size = part.shape[: len(use.chain)]
        return (
            part.reshape(prod(parents), size, -1) if self.within_parents else part.reshape(1, prod(parents) * size, -1)
        )


def add_product(total: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
    """Return ``total + scale * a @ b^T``, in place unless gradients flow, without a second matrix of that size."""
    if a.requires_grad or b.requires_grad or total.requires_grad:
        return total + scale * (a @ b.mT)
    if a.dtype == total.dtype:
        return total.baddbmm_(a, b.mT, alpha=scale)
    for start in range(0, a.shape[1], ROWS):
        total[:, start : start + ROWS].add_(multiply(a[:, start : start + ROWS], b), alpha=scale)
    return total


def multiply(a: Float[Tensor, "parents m rest"], b: Float[Tensor, "parents n rest"]) -> Float[Tensor, "parents m n"]:
    """Return ``a @ b^T``, without gradients.

    Large products of float32 on the CPU are those of oneDNN: as fast as those of MKL on processors of Intel, and twice
    as fast on those of AMD with AVX-512, which MKL does not use there.
    """
    is_plain = a.dtype == b.dtype == torch.float32 and a.device.type == "cpu" and len(a) == 1
    is_large = a.numel() * b.shape[1] >= LARGE
    if is_plain and is_large and torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        product: Tensor = torch.nn.functional.linear(a[0].to_mkldnn(), b[0]).to_dense()
        return product[None]
    return a @ b.mT


def unknown_dims(use: Use, elements: Mapping[str, Tensor | None], compared: frozenset[int]) -> frozenset[int]:
    """Return the dims off the chain of groups whose order (or whose parents' order) has to be known and is not."""
    if all(elements.get(name) is not None for name in use.others):
        return frozenset()
    dims = use.block.dims

    def is_unknown(at: int) -> bool:
        group = dims[at].group
        if group is None or at in compared:
            return False
        return elements.get(group) is None or any(map(is_unknown, dims[at].ancestors))

    return frozenset(at for at in use.rest if is_unknown(at))
