"""Hadamard matrices: orthogonal matrices whose entries all have the same size, so that they spread every outlier.

Sizes are 1, 2, those of Paley's two constructions (Paley, "On orthogonal matrices", 1933) over fields of a prime or its
square, and all products of these: 12, 20, 28, 36, 40, 52, 60, 100, 108, 140 and 180 among them.
"""

from __future__ import annotations

from functools import cache
from itertools import product
from math import isqrt, prod

import torch
from jaxtyping import Float
from torch import Tensor

from alignkit.errors import AlignmentError
from alignkit.graph.kinds import GroupKind


def hadamard(size: int) -> Float[Tensor, "n n"]:
    """Return a Hadamard matrix over the root of its size: entries ``size ** -0.5`` or minus it, float64.

    Raises:
        AlignmentError: None of the size is known here; the message names sizes near it.
    """
    factors = _factors(size)
    if factors is None:
        smaller = next(n for n in range(size - 1, 0, -1) if _factors(n) is not None)
        larger = next(n for n in range(size + 1, 4 * size + 4) if _factors(n) is not None)
        rule = "no Hadamard matrix has such a size" if size % 4 else "none is built in"
        raise AlignmentError(
            f"a Hadamard matrix of size {size}: {rule}. Sizes near it that work are {smaller} and {larger}; "
            "random rotations take any size."
        )
    matrix = torch.ones(1, 1, dtype=torch.float64)
    for factor in factors:
        matrix = torch.kron(matrix, _basic(factor))
    scaled: Tensor = matrix / size**0.5
    return scaled


def random_hadamard(
    kind: GroupKind, batch: tuple[int, ...], size: int, generator: torch.Generator
) -> Float[Tensor, "*batch n n"]:
    """Draw a Hadamard matrix whose rows and columns have random signs, for groups that rotate all their units.

    Where the vector of ones has to stay, a reflection follows that brings its image back to it. It changes entries by
    some multiples of ``1 / size``, so that they are nearly of one size.

    Raises:
        AlignmentError: None of the size is known.
    """
    count = prod(batch)
    rows, columns = (2.0 * torch.randint(2, (count, size), generator=generator).double() - 1 for _ in "ab")
    drawn = rows[:, :, None] * hadamard(size) * columns[:, None]
    if kind == "centred":
        ones = torch.full((size,), size**-0.5, dtype=torch.float64)
        for at, matrix in enumerate(drawn):
            normal = matrix @ ones - ones
            if (length := float(normal.norm())) > 1e-9:
                normal /= length
                drawn[at] = matrix - 2 * torch.outer(normal, normal @ matrix)
    return drawn.reshape(*batch, size, size)


@cache
def _factors(size: int) -> tuple[int, ...] | None:
    """Return sizes of basic matrices whose product is a size, none larger than needed; None where there are none."""
    if size == 1 or _is_basic(size):
        return () if size == 1 else (size,)
    if size % 4:
        return None
    for first in range(2, isqrt(size) + 1, 2):
        if size % first == 0 and _is_basic(first) and (rest := _factors(size // first)) is not None:
            return (first, *rest)
    return None


def _is_basic(size: int) -> bool:
    return size == 2 or (size % 4 == 0 and (_is_field(size - 1, 3) or _is_field(size // 2 - 1, 1)))


def _is_field(order: int, remainder: int) -> bool:
    """Whether there is a field of an order, of a prime or its square, that leaves a remainder when divided by 4."""
    return order % 4 == remainder and any(_is_prime(n) for n in {order, isqrt(order)} if n in (order, order / n))


def _is_prime(number: int) -> bool:
    return number > 1 and all(number % divisor for divisor in range(2, isqrt(number) + 1))


def _basic(size: int) -> Float[Tensor, "n n"]:
    """Return a matrix of size 2 or of Paley's first or second construction, with entries 1 and -1."""
    pair = torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64)
    if size == 2:
        return pair
    order = size - 1 if _is_field(size - 1, 3) else size // 2 - 1
    bordered = torch.ones(order + 1, order + 1, dtype=torch.float64)
    bordered[1:, 1:] = _residues(order)
    bordered[0, 0] = 0
    identity = torch.eye(order + 1, dtype=torch.float64)
    if order == size - 1:  # skew: the border changes its sign
        bordered[1:, 0] = -1
        return bordered + identity
    turned = torch.tensor([[1.0, -1.0], [-1.0, -1.0]], dtype=torch.float64)
    return torch.kron(bordered, pair) + torch.kron(identity, turned)


def _residues(order: int) -> Float[Tensor, "q q"]:
    """Return whether the differences of a field's elements are squares (1), zero (0) or neither (-1)."""
    prime = order if _is_prime(order) else isqrt(order)
    squares = {n * n % prime for n in range(1, prime)}
    character = torch.tensor([0.0, *(1.0 if n in squares else -1.0 for n in range(1, prime))], dtype=torch.float64)
    if prime == order:
        elements = torch.arange(prime)
        return character[(elements[:, None] - elements) % prime]
    # x + y r with r^2 no square: such a number is a square where its norm x^2 - y^2 r^2 is one in the prime field.
    other = next(n for n in range(2, prime) if n not in squares)
    pairs = torch.tensor([*product(range(prime), repeat=2)])
    x, y = (pairs[:, None] - pairs).unbind(-1)
    return character[(x * x - other * y * y) % prime]
