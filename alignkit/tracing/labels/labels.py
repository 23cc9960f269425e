"""Labels of tensor elements: what the tracer knows about the axes of one tensor.

An *atom* is an integer that stands for one thing that a symmetry may move: a unit, a head, a (head, unit) pair. A
symmetry is a permutation of all atoms. A `Labels` says how it moves one tensor: each dimension is

- *labelled*: owned by one `LabelBlock`, whose atoms name the positions;
- *uniform*: the values are equal along it (an expanded or constant tensor), so that any permutation leaves it alone;
- *fixed*: neither, so positions may not move.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b

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
        own = [shape[d] if d in self.span else 1 for d in dims]
        return np.broadcast_to(self.atoms.reshape(own), [shape[d] for d in dims])

    def over(self, dims: Sequence[int]) -> IntArray:
        """Return the atoms with a size-1 axis for each of `dims` (ascending, containing `span`) not spanned."""
        sizes = dict(zip(self.span, self.atoms.shape, strict=True))
        return self.atoms.reshape([sizes.get(d, 1) for d in dims])

    def shifted(self, by: int) -> LabelBlock:
        """Return the block with every dimension renumbered by a shift."""
        return LabelBlock(tuple(d + by for d in self.dims), tuple(d + by for d in self.context), self.atoms)

    def without_axes(self, dims: Collection[int]) -> LabelBlock:
        """Return the block without `dims`, along which the atoms have size 1 or do not vary."""
        index = tuple(0 if d in dims else slice(None) for d in self.span)
        keep = tuple(d for d in self.dims if d not in dims)
        return LabelBlock(keep, tuple(d for d in self.context if d not in dims), self.atoms[index])


@dataclass(frozen=True, eq=False)
class Labels:
    """How a symmetry moves the elements of one tensor.

    Attributes:
        shape: Shape of the tensor.
        uniform: For each dimension, whether the values are equal along it.
        blocks: Labels. Each dimension is owned by at most one block.
    """

    shape: tuple[int, ...]
    uniform: tuple[bool, ...]
    blocks: tuple[LabelBlock, ...] = ()

    @classmethod
    def of(cls, shape: Sequence[int], uniform: Sequence[bool] = (), blocks: Sequence[LabelBlock] = ()) -> Labels:
        """Build a layout; dimensions of size 1 that no block owns are uniform, a missing `uniform` means none is."""
        sizes = tuple(int(n) for n in shape)
        owned = {d for block in blocks for d in block.dims}
        flags = tuple(uniform) or (False,) * len(sizes)
        kept = tuple((flag or n == 1) and d not in owned for d, (flag, n) in enumerate(zip(flags, sizes, strict=True)))
        return cls(sizes, kept, tuple(blocks))

    @classmethod
    def constant(cls, shape: Sequence[int]) -> Labels:
        """Return the layout of a tensor that holds one value everywhere."""
        return cls.of(shape, [True] * len(shape))

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

    def with_blocks(self, blocks: Sequence[LabelBlock]) -> Labels:
        """Return the layout with other blocks; dimensions that lose their label become fixed."""
        return Labels.of(self.shape, self.uniform, blocks)

    def moved(self, shape: Sequence[int], place: Mapping[int, int]) -> Labels:
        """Return the layout with dimension d at `place[d]`.

        Dimensions not in `place` are dropped, new ones are uniform.
        """
        uniform = [True] * len(shape)
        for old, new in place.items():
            uniform[new] = self.uniform[old]
        blocks = []
        for block in self.blocks:
            targets = [place[d] for d in block.span]
            atoms = np.ascontiguousarray(block.atoms.transpose(np.argsort(targets)))
            dims = tuple(sorted(place[d] for d in block.dims))
            blocks.append(LabelBlock(dims, tuple(sorted(place[d] for d in block.context)), atoms))
        return Labels.of(shape, uniform, blocks)

    def left_padded(self, rank: int) -> Labels:
        """Return the layout with size-1 dimensions in front, as broadcasting adds them."""
        extra = rank - len(self.shape)
        if extra <= 0:
            return self
        return self.moved((1,) * extra + self.shape, {d: d + extra for d in range(len(self.shape))})

    def taken(self, dim: int, index: IntArray) -> Labels:
        """Return the layout of `tensor.index_select(dim, index)` for a constant index."""
        shape = (*self.shape[:dim], len(index), *self.shape[dim + 1 :])
        blocks = [
            LabelBlock(b.dims, b.context, np.ascontiguousarray(b.atoms.take(index, b.span.index(dim))))
            if dim in b.span
            else b
            for b in self.blocks
        ]
        return Labels.of(shape, self.uniform, blocks)

    def squeezed(self, dims: Sequence[int] | None = None) -> Labels:
        """Return the layout with blocks that no longer mention dimensions of size 1: `dims`, or all of them."""
        ones = [d for d, n in enumerate(self.shape) if n == 1 and (dims is None or d in dims)]
        if not ones or not self.blocks:
            return self
        blocks = [block.without_axes(ones) if set(block.span) & set(ones) else block for block in self.blocks]
        return self.with_blocks([block for block in blocks if block.dims])

    def same_as(self, other: Labels) -> bool:
        """Return whether both layouts move a tensor in the same way, atom for atom."""
        if self.shape != other.shape or self.uniform != other.uniform or len(self.blocks) != len(other.blocks):
            return False
        mine, theirs = (sorted(x.blocks, key=lambda b: b.dims) for x in (self, other))
        return all(
            a.dims == b.dims and a.context == b.context and (a.atoms is b.atoms or np.array_equal(a.atoms, b.atoms))
            for a, b in zip(mine, theirs, strict=True)
        )
