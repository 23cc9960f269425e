"""Elements of one group: the neutral one, random ones, inverses and products.

An element of a group that rotates is a float64 matrix ``[*ancestors, n, n]``. Any other is int64 ``[*ancestors, n]``:
``j`` takes unit ``j`` as it is, ``~j`` (which is ``-j - 1``) takes it with its sign changed.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from alignkit.graph.elements.rotations import planes_of, random_rotation
from alignkit.graph.kinds import KINDS, PLANES, GroupKind


def identity_element(kind: GroupKind, shape: tuple[int, ...]) -> Tensor:
    """Return the element that changes nothing; ``shape`` is that of one number for each unit."""
    if KINDS[kind].rotates:
        return torch.eye(shape[-1], dtype=torch.float64).repeat(*shape[:-1], 1, 1)
    return torch.arange(shape[-1]).repeat(*shape[:-1], 1)


def random_element(kind: GroupKind, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Draw an element uniformly; ``shape`` is that of one number for each unit."""
    if KINDS[kind].rotates:
        return random_rotation(kind, shape[:-1], shape[-1], generator)
    order = torch.rand(shape, generator=generator, dtype=torch.float64).argsort(-1)
    if kind == "signed":
        order = order ^ -torch.randint(2, shape, generator=generator)
    return order


def shuffled_element(kind: GroupKind, element: Tensor, fraction: float, generator: torch.Generator) -> Tensor:
    """Move a fraction of the places of elements ``[*batch, n]`` or ``[*batch, n, n]`` at random.

    These are two places at least, or one plane.
    """
    size, rotates = element.shape[-1], KINDS[kind].rotates
    batch, paired = element.shape[: -2 if rotates else -1], kind in PLANES
    chosen = torch.rand(*batch, size // 2 if paired else size, generator=generator, dtype=torch.float64).argsort(-1)
    places = chosen[..., : max(1 if paired else 2, round(fraction * chosen.shape[-1]))]
    if paired:
        places = torch.cat([units[places] for units in planes_of(kind, size)], -1)
    move = random_element("planes" if paired else kind, tuple(places.shape), generator)
    if not rotates:
        return element.scatter(-1, places, compose_elements(move, element.gather(-1, places)))
    rows = places[..., None].expand(*places.shape, size)
    return element.scatter(-2, rows, compose_elements(move, element.gather(-2, rows)))


def flipped(element: Int[Tensor, "*batch n"]) -> Bool[Tensor, "*batch n"]:
    """Tell which units change their sign."""
    return element < 0


def order_of(element: Int[Tensor, "*batch n"]) -> Int[Tensor, "*batch n"]:
    """Return which unit comes to each place, whatever its sign."""
    return element ^ (element >> 63)


def as_matrix(element: Int[Tensor, "*batch n"]) -> Float[Tensor, "*batch n n"]:
    """Return the matrix that does what indices, with signs, do, in float32."""
    matrix = torch.zeros(*element.shape, element.shape[-1])
    return matrix.scatter_(-1, order_of(element)[..., None], 1.0 - 2.0 * flipped(element)[..., None])


def compose_elements(left: Tensor, right: Tensor) -> Tensor:
    """Return the element that does what ``right`` does and then what ``left`` does, for each of a batch."""
    if left.is_floating_point():
        return left @ right
    return right.gather(-1, order_of(left)) ^ (left >> 63)


def invert_element(element: Tensor) -> Tensor:
    """Return the element that undoes another, for each of a batch."""
    if element.is_floating_point():
        return element.mT
    places = torch.arange(element.shape[-1]).expand(element.shape)
    return torch.empty_like(element).scatter_(-1, order_of(element), places ^ (element >> 63))
