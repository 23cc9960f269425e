"""Parts of networks: a few places of a block of a tensor, in the order that an alignment says.

Every sum of the objective runs over blocks (`alignkit.graph.layout.Block`), a part at a time. A part holds some places
of one dim, and all places of the others; so sums need little memory, and a sum over what has changed is cheap.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import prod
from typing import Protocol, TypeAlias, runtime_checkable

import torch
from torch import Tensor

from alignkit.checkpoints.dtypes import as_bits
from alignkit.graph.elements.action import act_on_dims, change_signs
from alignkit.graph.elements.element import flipped, order_of
from alignkit.graph.layout import Block
from alignkit.graph.nodes import TensorNode
from alignkit.graph.owned import ReadOnly

Orders: TypeAlias = Mapping[int, Tensor]
"""Indices, as in `Alignment`, or a matrix, as in `SoftAlignment`, for each dim of a block that moves."""
Places: TypeAlias = slice | Tensor
"""Places of one dim: from one to the one before another, or int64 indices."""
Change: TypeAlias = tuple[int, Tensor, Orders, Orders]
"""A dim, the places of it that change, and the orders before and after."""

PIECE = 1 << 26
"""Bytes of a part that is multiplied, in float64, about, where nothing else is asked for."""
SMALL_PIECE = 1 << 20
"""Bytes of a part that is only summed: it stays in the caches of the processor."""


@runtime_checkable
class Tensors(Protocol):
    """What gives the tensors of one network."""

    @property
    def piece(self) -> int:
        """Bytes of a part in float64, about."""

    in_memory: bool
    """Whether the tensors are in memory; there is then room for similarities, too."""

    def dtype(self, name: str) -> torch.dtype:
        """Return the dtype of a tensor."""

    def cut(self, block: Block, among: frozenset[int]) -> int:
        """Return the dim along which a block is best cut; one of ``among`` where that is as good as others."""

    def part(self, name: str, block: Block, at: int, places: Places) -> Tensor:
        """Return some places of dim ``at`` of a block; the dim has no parent."""

    def release(self) -> None:
        """Give the memory of parts that are done with back, where memory is short."""


class TensorsInMemory(ReadOnly[Tensor]):
    """Tensors on one device, as they were given wherever they are there already; None leaves them where they are."""

    def __init__(self, tensors: Mapping[str, Tensor], device: torch.device | str | None, piece: int = PIECE) -> None:
        super().__init__({name: tensor.detach().to(device).resolve_neg() for name, tensor in tensors.items()})
        self.piece, self.in_memory = piece, True

    def release(self) -> None:
        """Do nothing: parts are few."""

    def dtype(self, name: str) -> torch.dtype:
        """Return the dtype of a tensor."""
        return self[name].dtype

    def cut(self, block: Block, among: frozenset[int]) -> int:
        """Return the longest dim of ``among`` without a parent; the first dim if there is none."""
        sizes = {at: block.dims[at].size for at in among if not block.dims[at].ancestors}
        return max(sizes, key=sizes.__getitem__, default=0)

    def part(self, name: str, block: Block, at: int, places: Places) -> Tensor:
        """Return some places of a dim of a block; a view where places follow each other."""
        view = block.view(self[name])
        if isinstance(places, slice):
            return view[(slice(None),) * at + (places,)] if view.ndim else view
        return _selected(view, at, places)


def as_tensors(network: Mapping[str, Tensor], device: torch.device | str | None = "cpu") -> Tensors:
    """Return what gives the parts of a network: itself where it stays on disk, else its tensors.

    They are brought to a device; None leaves them where they are.
    """
    return network if isinstance(network, Tensors) else TensorsInMemory(network, device)


def ordered_part(
    tensors: Tensors,
    name: str,
    block: Block,
    at: int,
    places: Places,
    orders: Orders | None = None,
    only: tuple[int, Tensor] | None = None,
) -> Tensor:
    """Return the units at some places of dim ``at`` once a block is in the given orders.

    Example: ``places`` 0 and 1 of a dim whose order is ``[2, 0, 1]`` hold what stands at 2 and 0. Units nested in the
    dim follow, by the rows of their own order that belong to these places. A dim with a matrix has to be whole.
    ``only`` names another dim, and the places of it that are wanted.
    """
    inner = {i: order for i, order in (orders or {}).items() if i != at or order.is_floating_point()}
    own = None if at in inner else (orders or {}).get(at)
    if inner:
        inner = _orders_at(block, {at: places, **({} if only is None else {only[0]: only[1]})}, inner)
    if own is None:
        part = tensors.part(name, block, at, places)
    elif block.dims[at].kind == "signed":
        own = own[places]
        part = tensors.part(name, block, at, order_of(own))
        part = change_signs(part, flipped(own).to(part.device).reshape(-1, *[1] * (part.ndim - at - 1)))
    else:
        part = tensors.part(name, block, at, own[places])
    if only is not None and only[0] not in inner:
        part = _selected(part, *only)
    is_soft = any(order.is_floating_point() for order in inner.values())
    return act_on_dims(block.dims, part.double() if is_soft else part, inner) if inner else part


def _selected(part: Tensor, at: int, places: Tensor) -> Tensor:
    """Return some places of a dim, of any dtype."""
    bits = as_bits(part)
    chosen = bits.index_select(at, places.to(part.device))
    return chosen if bits is part else chosen.view(part.dtype)


def _orders_at(block: Block, where: Mapping[int, Places], orders: Orders) -> dict[int, Tensor]:
    """Return orders of dims as they are at some places of some dims."""
    chosen = {}
    for i, order in orders.items():
        chain = (*block.dims[i].ancestors, i)
        if not order.is_floating_point() and not where.keys().isdisjoint(chain):
            order = order.reshape([block.dims[k].size for k in chain])
            for axis, k in enumerate(chain):
                order = order[(slice(None),) * axis + (where[k],)] if k in where else order
        chosen[i] = order
    return chosen


Network: TypeAlias = tuple[Tensors, Mapping[str, Tensor | None]]
"""A network, and the order in which its units are looked at; a group without an element stays as it is."""


def common_parts(node: TensorNode, networks: Sequence[Network]) -> Iterator[list[Tensor]]:
    """Yield one tensor of several networks part by part, each network in the order of its elements.

    ``[(a, {}), (b, alignment.elements)]`` yields parts of A beside the same parts of aligned B.
    """
    return (parts for block in node.blocks for _, _, parts in parts_of_block(node.name, block, networks))


def parts_of_block(name: str, block: Block, networks: Sequence[Network]) -> Iterator[tuple[int, slice, list[Tensor]]]:
    """Yield one block of a tensor of several networks part by part, each with its dim and its places there."""
    every = [orders_of(block, elements) for _, elements in networks]
    first = networks[0][0]
    at, piece = 0, min(SMALL_PIECE, first.piece)
    if 8 * prod(dim.size for dim in block.dims) > piece:
        at = first.cut(block, frozenset(range(len(block.dims))))
    for run in ranges(piece, block, at, {i: order for orders in every for i, order in orders.items()}):
        sides = zip(networks, every, strict=True)
        yield at, run, [ordered_part(tensors, name, block, at, run, orders) for (tensors, _), orders in sides]


def ranges(piece: int, block: Block, at: int, orders: Orders | None = None) -> list[slice]:
    """Cut a dim of a block into ranges whose parts have about ``piece`` bytes in float64; matrices need it whole."""
    if not block.dims or any(order.is_floating_point() for order in (orders or {}).values()):
        return [slice(None)]
    size, step = block.dims[at].size, _length(piece, block, at)
    return [slice(start, min(start + step, size)) for start in range(0, size, step)]


def split_places(piece: int, block: Block, at: int, places: Tensor) -> tuple[Tensor, ...]:
    """Cut places of a dim of a block into runs whose parts have about ``piece`` bytes in float64."""
    length = _length(piece, block, at)
    return (places,) if len(places) <= length else torch.split(places, length)


def _length(piece: int, block: Block, at: int) -> int:
    """Return the places of a dim whose parts have about ``piece`` bytes in float64, one at least."""
    width = 8 * prod(dim.size for i, dim in enumerate(block.dims) if i != at)
    return max(1, piece // max(1, width))


def orders_of(block: Block, elements: Mapping[str, Tensor | None], still: frozenset[int] = frozenset()) -> Orders:
    """Return the order of each dim that a group with a known element moves, but for those that stay ``still``."""
    moving = ((at, group) for at, group in block.moving if at not in still)
    return {at: element for at, group in moving if (element := elements.get(group)) is not None}


def changes(block: Block, before: Orders, after: Orders) -> Iterator[Change]:
    """Yield how one set of orders becomes another, one dim without a parent after the other.

    What is nested in a dim changes with it. Example: of a block ``heads d[heads] model`` with two heads, ``d`` changes
    in head 1 and ``model`` swaps its first two units: the changes are place 1 of ``heads``, then places 0 and 1 of
    ``model``. So ``<A, after # B> - <A, before # B>`` is a sum over the changed places alone. Orders are indices; both
    have the same dims.
    """
    current = dict(before)
    for at, dim in enumerate(block.dims):
        own = [i for i in after if i == at or at in block.dims[i].ancestors]
        differing = [i for i in own if before[i] is not after[i]]
        if dim.ancestors or not differing:
            continue
        moved = [(before[i] != after[i]).reshape(dim.size, -1) for i in differing]
        together = torch.cat(moved, 1) if len(moved) > 1 else moved[0]
        places = together.any(1).nonzero().squeeze(1)
        following = {**current, **{i: after[i] for i in own}}
        if len(places):
            yield at, places, current, following
        current = following
