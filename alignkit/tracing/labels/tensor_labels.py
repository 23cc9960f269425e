"""Labels: what the tracer knows about the dimensions of one tensor.

An *atom* is an integer that stands for one thing that a symmetry may move: a unit, a head, a unit of one head. A
symmetry is a permutation of all atoms. `Labels` say how it moves one tensor. Each dimension is

- *labelled*: owned by one `LabelBlock`, whose atoms name the positions;
- *uniform*: the values are equal along it (an expanded or constant tensor), so that any permutation leaves it alone;
- *fixed*: neither, so positions may not move.

Example: the weight [3, 5] of a linear layer has the blocks

    LabelBlock(dims=(0,), context=(), atoms=[0 1 2])          three hidden units
    LabelBlock(dims=(1,), context=(), atoms=[3 4 5 6 7])      five inputs

and a tensor [2, 2] of two heads with two units each, where every head has units of its own,

    LabelBlock(dims=(0,), context=(), atoms=[8 9])            heads
    LabelBlock(dims=(1,), context=(0,), atoms=[[10 11],       units of head 8
                                               [12 13]])      units of head 9
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from hashlib import blake2b
from typing import Literal

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]


def digest(atoms: IntArray) -> bytes:
    """Return a key for the content of an array, whatever its shape."""
    return blake2b(np.ascontiguousarray(atoms).tobytes(), digest_size=16).digest()


@dataclass(frozen=True, eq=False)
class LabelBlock:
    """Atoms for the positions of some dimensions of a tensor.

    Attributes:
        dims: Dimensions that the block owns, ascending. Several when a view split an axis whose parts nobody told
            apart yet.
        context: Dimensions owned by other blocks on which the atoms depend, ascending: for units inside heads, the
            heads.
        atoms: One atom for each position of `span`, axes in the order of `span`.
    """

    dims: tuple[int, ...]
    context: tuple[int, ...]
    atoms: IntArray

    @cached_property
    def span(self) -> tuple[int, ...]:
        """Owned and context dimensions, ascending: the axes of `atoms`."""
        return tuple(sorted(self.dims + self.context))

    def axes(self, dims: Collection[int]) -> tuple[int, ...]:
        """Return the axes of `atoms` that belong to those of `dims` that the block spans."""
        return tuple(axis for axis, dim in enumerate(self.span) if dim in dims)

    def spread(self, dims: Sequence[int], shape: Sequence[int]) -> IntArray:
        """Return the atoms broadcast over all of `dims` (ascending, containing `span`) of a tensor of that shape."""
        return np.broadcast_to(self.align_to(dims), [shape[d] for d in dims])

    def align_to(self, dims: Sequence[int]) -> IntArray:
        """Return the atoms with an axis for each of `dims` (ascending, containing `span`), of size 1 if not in `span`.

        Example: atoms `[8 9]` of dimension 0 are `[[8] [9]]` over the dimensions 0 and 1.
        """
        sizes = dict(zip(self.span, self.atoms.shape, strict=True))
        return self.atoms.reshape([sizes.get(d, 1) for d in dims])

    def renumber(self, new_dims: Mapping[int, Sequence[int]], shape: Sequence[int]) -> LabelBlock:
        """Return the block in the dimensions of a reshaped tensor, where `new_dims[d]` hold what dimension d held."""
        dims, context = (tuple(sorted({new for d in old for new in new_dims[d]})) for old in (self.dims, self.context))
        return LabelBlock(dims, context, self.atoms.reshape([shape[d] for d in sorted(dims + context)]))

    def repeats_along(self, dims: Collection[int]) -> list[int]:
        """Return those of `dims` along which the atoms do not vary."""
        axes = ((d, self.span.index(d)) for d in dims)
        return [d for d, axis in axes if bool((self.atoms == self.atoms.take([0], axis)).all())]

    def without_axes(self, dims: Collection[int]) -> LabelBlock:
        """Return the block without `dims`, along which the atoms have size 1 or do not vary."""
        index = tuple(0 if d in dims else slice(None) for d in self.span)
        keep = tuple(d for d in self.dims if d not in dims)
        return LabelBlock(keep, tuple(d for d in self.context if d not in dims), self.atoms[index])


@dataclass(frozen=True, eq=False)
class Choice:
    """Numbers that say which units a run picked.

    Attributes:
        kind: What the numbers are, see `alignkit.tracing.labels.choices`.
        atoms: The units among which they pick, in order; of an order, the atoms of its rows.
        made: The choices, each an integer of its own: one for each element of the tensor, or those that were counted
            or sorted.
    """

    kind: Literal["position", "count", "end", "order"]
    atoms: IntArray
    made: IntArray


@dataclass(frozen=True, eq=False)
class Labels:
    """How a symmetry moves the elements of one tensor.

    Attributes:
        shape: Shape of the tensor.
        uniform: For each dimension, whether the values are equal along it.
        blocks: Labels. Each dimension is owned by at most one block.
        choice: What the elements say about units, if they are numbers of such. Labels that are made of these lose it.
    """

    shape: tuple[int, ...]
    uniform: tuple[bool, ...]
    blocks: tuple[LabelBlock, ...] = ()
    choice: Choice | None = None

    @classmethod
    def of(cls, shape: Sequence[int], uniform: Sequence[bool] = (), blocks: Sequence[LabelBlock] = ()) -> Labels:
        """Build labels. Dimensions of size 1 that no block owns are uniform; without `uniform`, no other is."""
        sizes = tuple(int(n) for n in shape)
        owned = {d for block in blocks for d in block.dims}
        flags = tuple(uniform) or (False,) * len(sizes)
        kept = tuple((flag or n == 1) and d not in owned for d, (flag, n) in enumerate(zip(flags, sizes, strict=True)))
        return cls(sizes, kept, tuple(blocks))

    @classmethod
    def constant(cls, shape: Sequence[int]) -> Labels:
        """Return the labels of a tensor that holds one value everywhere."""
        return cls.of(shape, [True] * len(shape))

    def saying(self, choice: Choice | None) -> Labels:
        """Return the labels of a tensor whose elements say this about units; None: that are like any others."""
        return replace(self, choice=choice)

    @cached_property
    def owner(self) -> Mapping[int, LabelBlock]:
        """The block that owns each labelled dimension."""
        return {d: block for block in self.blocks for d in block.dims}

    def is_fixed(self, dim: int) -> bool:
        """Return whether positions along `dim` may not move at all."""
        return not self.uniform[dim] and dim not in self.owner

    def dim(self, index: int) -> int:
        """Return `index` counted from the front."""
        return index % len(self.shape) if self.shape else 0

    def with_fixed(self, dims: Collection[int], shape: Sequence[int]) -> Labels:
        """Return the labels of a tensor of another shape, in which `dims` that no block owns are fixed."""
        return Labels.of(shape, [flag and d not in dims for d, flag in enumerate(self.uniform)], self.blocks)

    def with_blocks(self, blocks: Sequence[LabelBlock]) -> Labels:
        """Return the labels with other blocks; dimensions that lose their label become fixed."""
        return Labels.of(self.shape, self.uniform, blocks)

    def move_dims(self, shape: Sequence[int], new_dim: Mapping[int, int]) -> Labels:
        """Return the labels with dimension d at `new_dim[d]`: transpose, drop and add dimensions.

        Dimensions not in `new_dim` are dropped (no block may span them), new ones are uniform.
        """
        uniform = [True] * len(shape)
        for old, new in new_dim.items():
            uniform[new] = self.uniform[old]
        blocks = []
        for block in self.blocks:
            order = np.argsort([new_dim[d] for d in block.span])
            dims, context = (tuple(sorted(new_dim[d] for d in old)) for old in (block.dims, block.context))
            blocks.append(LabelBlock(dims, context, np.ascontiguousarray(block.atoms.transpose(order))))
        return Labels.of(shape, uniform, blocks)

    def permute(self, order: Sequence[int]) -> Labels:
        """Return the labels with dimensions in another order; those that it leaves out are dropped, see `move_dims`."""
        return self.move_dims([self.shape[d] for d in order], {d: i for i, d in enumerate(order)})

    def insert_dim(self, at: int, size: int = 1) -> Labels:
        """Return the labels with a new dimension, uniform, at position `at`."""
        shape = (*self.shape[:at], size, *self.shape[at:])
        return self.move_dims(shape, {d: d if d < at else d + 1 for d in range(len(self.shape))})

    def along(self, dim: int, rank: int) -> Labels:
        """Return the labels of a vector that lies along one of `rank` dimensions; the others have size 1."""
        return self.move_dims([self.shape[0] if d == dim else 1 for d in range(rank)], {0: dim})

    def pad_rank(self, rank: int) -> Labels:
        """Return the labels with size-1 dimensions in front, as broadcasting adds them."""
        extra = rank - len(self.shape)
        if extra <= 0:
            return self
        return self.move_dims((1,) * extra + self.shape, {d: d + extra for d in range(len(self.shape))})

    def index_select(self, dim: int, index: IntArray) -> Labels:
        """Return the labels of `tensor.index_select(dim, index)` for a constant index."""
        shape = (*self.shape[:dim], len(index), *self.shape[dim + 1 :])
        blocks = []
        for block in self.blocks:
            atoms = block.atoms.take(index, block.span.index(dim)) if dim in block.span else block.atoms
            blocks.append(LabelBlock(block.dims, block.context, np.ascontiguousarray(atoms)))
        return Labels.of(shape, self.uniform, blocks)

    def squeeze(self, dims: Collection[int] | None = None) -> Labels:
        """Return the labels with blocks that no longer mention dimensions of size 1: all, or those of `dims`."""
        ones = [d for d, n in enumerate(self.shape) if n == 1 and (dims is None or d in dims)]
        if not ones or not self.blocks:
            return self
        blocks = [block.without_axes(ones) if set(block.span) & set(ones) else block for block in self.blocks]
        return self.with_blocks([block for block in blocks if block.dims])

    def same_as(self, other: Labels) -> bool:
        """Return whether both labels move a tensor in the same way, atom for atom."""
        mine, theirs = (sorted((b.dims, b.context, digest(b.atoms)) for b in x.blocks) for x in (self, other))
        alike = self.shape == other.shape and self.uniform == other.uniform and self.choice is other.choice
        return alike and mine == theirs
