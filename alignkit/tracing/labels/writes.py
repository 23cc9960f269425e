"""Writes into a part of a storage: what they do to the labels of other tensors that share it.

A *box* says which part of one tensor another one is: for each dimension of the first a range of positions, and the
dimension of the second that runs through it. It follows from sizes, strides and offsets alone.

The example is a tensor [4, 6] with strides (6, 1). Its columns 2 to 4, transposed, have the offset 2, sizes [3, 4] and
strides (1, 6): their box is `((range(0, 4), 1), (range(2, 5), 0))`.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise

import numpy as np

from alignkit.tracing.labels.combine import concatenate, restrict
from alignkit.tracing.labels.constraints import Constraints
from alignkit.tracing.labels.tensor_labels import Labels

Key = tuple[int, ...]
"""Element size, offset, sizes and strides of a tensor behind the number of its storage, see `TensorRef`."""
Box = tuple[tuple[range, int | None], ...]


def box_of(whole: Key, part: Key) -> Box | None:
    """Return the box of one tensor in another; None if it does not lie in it, or is another shape of it."""
    if min(len(whole), len(part)) < 3 or whole[1] != part[1]:
        return None
    (sizes, strides), (part_sizes, part_strides) = _sizes_and_strides(whole), _sizes_and_strides(part)
    if 0 in (*sizes, *part_sizes):
        return None
    order = sorted((d for d, n in enumerate(sizes) if n > 1), key=lambda d: -strides[d])
    if any(strides[a] < strides[b] * sizes[b] for a, b in pairwise(order)):
        return None  # dimensions overlap
    if order and strides[order[-1]] < 1:
        return None
    rest = part[2] - whole[2]
    ranges: dict[int, tuple[range, int | None]] = dict.fromkeys(range(len(sizes)), (range(1), None))
    for d in order:
        start, rest = divmod(rest, strides[d])
        ranges[d] = range(start, start + 1), None
    for j, (count, stride) in enumerate(zip(part_sizes, part_strides, strict=True)):
        if count == 1:
            continue
        dims = [d for d in order if strides[d] <= stride and ranges[d][1] is None]
        if not dims or stride % strides[dims[0]]:
            return None
        d = dims[0]
        step, start = stride // strides[d], ranges[d][0].start
        ranges[d] = range(start, start + (count - 1) * step + 1, step), j
    inside = all(ranges[d][0].start >= 0 and ranges[d][0][-1] < sizes[d] for d in order)
    return tuple(ranges[d] for d in range(len(sizes))) if inside and not rest else None


def _sizes_and_strides(key: Key) -> tuple[Key, Key]:
    rank = (len(key) - 3) // 2
    return key[3 : 3 + rank], key[3 + rank :]


def are_apart(a: Box, b: Box) -> bool:
    """Return whether two boxes of one tensor have no element in common."""
    return any(not set(x).intersection(y) for (x, _), (y, _) in zip(a, b, strict=True))


def share_elements(a: Key, b: Key, wholes: Iterable[Key]) -> bool:
    """Return whether two tensors of a storage may have an element in common.

    They have none where both lie apart in one of ``wholes``, tensors of the same storage.
    """
    boxes = ((box_of(whole, a), box_of(whole, b)) for whole in wholes)
    return not any(one is not None and two is not None and are_apart(one, two) for one, two in boxes)


def take_box(c: Constraints, whole: Labels, box: Box, rank: int) -> Labels:
    """Return the labels of a part of a tensor, which has `rank` dimensions."""
    for d, (positions, _) in enumerate(box):
        if len(positions) < whole.shape[d]:
            whole = restrict(c, whole, d, np.array(positions))
    new_dim = {d: j for d, (_, j) in enumerate(box) if j is not None}
    shape = [1] * rank
    for d, j in new_dim.items():
        shape[j] = whole.shape[d]
    return whole.squeeze([d for d in range(len(box)) if d not in new_dim]).move_dims(shape, new_dim)


def put_box(c: Constraints, whole: Labels, box: Box, part: Labels) -> Labels:
    """Return the labels of a tensor into which another one was written."""
    dim_of = {j: d for d, (_, j) in enumerate(box) if j is not None}
    part = part.squeeze([j for j in range(len(part.shape)) if j not in dim_of])
    part = part.move_dims([len(positions) for positions, _ in box], dim_of)
    return _put(c, whole, box, part, 0)


def _put(c: Constraints, whole: Labels, box: Box, part: Labels, dim: int) -> Labels:
    """Write a part along the dimensions from `dim` on; along those before, the tensor has no positions beside it."""
    if dim == len(box):
        return part
    positions = np.array(box[dim][0])
    others = np.setdiff1d(np.arange(whole.shape[dim]), positions)
    if not len(others):
        return _put(c, whole, box, part, dim + 1)
    beside = _put(c, restrict(c, whole, dim, positions), box, part, dim + 1)
    joined = concatenate(c, [restrict(c, whole, dim, others), beside], dim)
    return joined.index_select(dim, np.argsort(np.concatenate([others, positions])))
