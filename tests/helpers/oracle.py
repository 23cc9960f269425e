"""An oracle for traces: the order of the true symmetry group of a small network, by trying permutations.

A network is a recipe: a chain of operations on values with few units, each of which may read any earlier value. The
permutations of a value's units are the candidates. Operations without weights are run on permuted random data, to see
which permutation comes out, or that none does; those with weights are free exactly where their weights can follow.
The oracle knows nothing of labels, constraints or the notation: it shares no code and no idea with the tracer.

Symmetries that are no permutations of axes (two whole layers exchanged, signs, scales) do not count. Recipes are such
that no two halves of one value are combined symmetrically: exchanging them is a symmetry that the notation cannot
write.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from helpers.oracle_ops import OPS, TOKENS, Op, Perm, blocks_of

INPUTS = 2
SIDE = 3


Recipe = tuple[Op, ...]


class Network(nn.Module):
    """A recipe as a module; every value that nothing reads goes through a last linear layer, and those are added.

    Args:
        recipe: The operations.
        images: Whether values are [1, units, side, side], else [1, tokens, units].
    """

    def __init__(self, recipe: Recipe, images: bool = False) -> None:
        super().__init__()
        torch.manual_seed(len(recipe))
        widths = widths_of(recipe)
        self.recipe, self.images = recipe, images
        self.ops = nn.ModuleList(OPS[op.name].module(op, [widths[i] for i in op.reads], images) for op in recipe)
        self.leaves = leaves_of(recipe)
        area = SIDE * SIDE if images else 1
        self.heads = nn.ModuleList(nn.Linear(widths[i] * area, 2) for i in self.leaves)

    def example(self) -> Tensor:
        """Return an input."""
        return torch.linspace(-1, 1, INPUTS * SIDE**2).reshape(1, INPUTS, SIDE, SIDE) if self.images else tokens()

    def forward(self, x: Tensor) -> Tensor:
        """Run the operations in order."""
        values = [x]
        for op, module in zip(self.recipe, self.ops, strict=True):
            values.append(module(*(values[i] for i in op.reads)))
        ends = [values[i].flatten(1) if self.images else values[i] for i in self.leaves]
        return torch.stack([head(end) for head, end in zip(self.heads, ends, strict=True)]).sum(0)


def tokens() -> Tensor:
    """Return an input of a network on tokens."""
    return torch.linspace(-1, 1, INPUTS * TOKENS).reshape(1, TOKENS, INPUTS)


def widths_of(recipe: Recipe) -> list[int]:
    """Return the number of units of each value."""
    widths = [INPUTS]
    for op in recipe:
        widths.append(OPS[op.name].width(op, [widths[i] for i in op.reads]))
    return widths


def leaves_of(recipe: Recipe) -> list[int]:
    """Return the values that no operation reads."""
    read = {i for op in recipe for i in op.reads}
    return [i for i in range(1, len(recipe) + 1) if i not in read] or [0]


def elements(recipe: Recipe) -> Iterator[tuple[Perm, ...]]:
    """Yield every permutation of units that leaves the network's function as it is, by trying all: one a value."""
    widths = widths_of(recipe)

    def extended(elements: tuple[Perm, ...]) -> Iterator[tuple[Perm, ...]]:
        if len(elements) == len(widths):
            yield elements
            return
        op = recipe[len(elements) - 1]
        for out in OPS[op.name].outcomes(op, [widths[i] for i in op.reads], [elements[i] for i in op.reads]):
            yield from extended((*elements, out))

    return extended((tuple(range(INPUTS)),))


def order(recipe: Recipe) -> int:
    """Return how many permutations of units leave the network's function as it is."""
    return sum(1 for _ in elements(recipe))


def varies_by_row(recipe: Recipe) -> bool:
    """Return whether a grouped layer's columns move differently for rows that cannot be exchanged.

    The blocks that it reads then have units of different groups, which one word for its second axis cannot say.
    """
    for op in recipe:
        if op.name == "blocks" and not op.sizes[2]:
            found = [blocks_of(elements[op.reads[0]], op.sizes[0]) for elements in elements(recipe)]
            moved = [part for part in found if part is not None]
            fixed = all(outer == tuple(range(op.sizes[0])) for outer, _ in moved)
            if fixed and any(len(set(inner)) > 1 for _, inner in moved):
                return True
    return False


def tries(recipe: Recipe) -> int:
    """Return how many settings the oracle may have to look at."""
    return math.prod(OPS[op.name].tries(op) for op in recipe)
