"""Reshaping: the one op that joins and splits dimensions.

Splitting a dimension needs no decision: its block owns all the parts. Joining dimensions with different owners makes
*product atoms*, one for each combination, related to their parts; what they were joined from is remembered, so that
splitting them again gives the parts back.

The example of this file is a flatten of [3, 2], three channels `0 1 2` of two fixed pixels, into six columns, and the
way back. Joining gives the product atoms

    [[3 4]       3 and 4 relate to channel 0
     [5 6]       5 and 6 to channel 1
     [7 8]]      7 and 8 to channel 2

with the colours 0 and 1 for the two pixels. In row-major order, the columns 3 4 5 6 7 8 are one dimension. A view of
them as [3, 2] finds these six atoms among the known products and gives back `0 1 2` and the fixed pixels.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from alignkit.tracing.labels.combine import factor
from alignkit.tracing.labels.constraints import Constraints
from alignkit.tracing.labels.tensor_labels import LabelBlock, Labels, digest

Run = tuple[tuple[int, ...], tuple[int, ...]]
"""Old dimensions and the new ones that hold the same elements, both ascending."""


def reshape(c: Constraints, labels: Labels, shape: Sequence[int]) -> Labels:
    """Return the labels of `tensor.reshape(shape)`."""
    target = tuple(int(n) for n in shape)
    if target == labels.shape:
        return labels
    if 0 in target:
        return Labels.of(target)
    labels = labels.squeeze()
    runs = match_dims(labels.shape, target)
    for old, _ in runs:
        if len(old) > 1:
            labels = _join(c, labels, old)
    return _renumber(c, labels, target, runs)


def repeat_each(c: Constraints, labels: Labels, dim: int, times: int) -> Labels:
    """Return the labels of `tensor.repeat_interleave(times, dim)`: every unit owns a run of equal values."""
    shape = (*labels.shape[:dim], labels.shape[dim] * times, *labels.shape[dim + 1 :])
    return reshape(c, labels.insert_dim(dim + 1, times), shape)


def match_dims(old: tuple[int, ...], new: tuple[int, ...]) -> list[Run]:
    """Pair the smallest runs of dimensions with equal products, leaving out dimensions of size 1.

    Example: [3, 2, 5] and [6, 1, 5] give the runs (0, 1) -> (0,) and (2,) -> (2,).
    """
    left = [d for d, n in enumerate(old) if n != 1]
    right = [d for d, n in enumerate(new) if n != 1]
    runs = []
    while left or right:
        a, b = [left.pop(0)], [right.pop(0)]
        m, n = old[a[0]], new[b[0]]
        while m != n:
            if m < n:
                a.append(left.pop(0))
                m *= old[a[-1]]
            else:
                b.append(right.pop(0))
                n *= new[b[-1]]
        runs.append((tuple(a), tuple(b)))
    return runs


def _join(c: Constraints, labels: Labels, dims: tuple[int, ...]) -> Labels:
    """Give `dims`, which are about to become one dimension, one owner. Labels that depend on one then depend on all.

    A block that owns other dimensions, too, gives up those inside: query heads that are joined with positions lose
    their units, which stay in the context of the heads. Those around stay: heads of keys, in each of which query heads
    are joined with positions. Where positions differ along one dimension and are alike along another, as those of a
    mask in each sample and for all heads, the joined ones get atoms of their own.
    """
    joining = set(dims)
    blocks: list[LabelBlock] = []
    for block in labels.blocks:
        inner = _inner_dims(block, joining) if joining.intersection(block.dims) else ()
        blocks += factor(c, block, [d for d in block.dims if d not in inner]) if inner else (block,)
    parts = [block for block in blocks if joining.intersection(block.dims)]
    blocks = [block for block in blocks if not joining.intersection(block.dims)]
    mixed = len({labels.uniform[d] for d in dims}) > 1
    if parts or mixed:
        owned = tuple(sorted(joining.union(*(part.dims for part in parts))))
        blocks.append(parts[0] if parts and parts[0].dims == owned else _join_parts(c, labels, owned, parts))
    for index, block in enumerate(blocks):
        if set(block.context) & joining and not joining <= set(block.span):
            span = tuple(sorted(set(block.span) | joining))
            context = tuple(d for d in span if d not in block.dims)
            atoms = np.ascontiguousarray(block.spread(span, labels.shape))
            blocks[index] = LabelBlock(block.dims, context, atoms)
    return Labels.of(labels.shape, labels.uniform, blocks)


def _inner_dims(block: LabelBlock, joining: set[int]) -> list[int]:
    """Return the dimensions of a block inside of those that are joined: along them, neighbours have closer numbers."""
    distance = {d: abs(int(np.diff(block.atoms, axis=block.span.index(d)).flat[0])) for d in block.dims}
    innermost = min(distance[d] for d in block.dims if d in joining)
    return [d for d in block.dims if d not in joining and distance[d] < innermost]


def _join_parts(c: Constraints, labels: Labels, dims: tuple[int, ...], parts: list[LabelBlock]) -> LabelBlock:
    """Return a block that owns `dims`, whose atoms are products of those of the `parts`.

    Without parts, as for samples of a batch and heads that share a key, positions of equal values get atoms that may
    be exchanged, which are those of this tensor alone.

    Units whose heads are known already are such products themselves: joining heads `0 1` with their units
    `[[2 3] [4 5]]` needs no new atoms.
    """
    outside = tuple(sorted({d for part in parts for d in part.context} - set(dims)))
    if len(parts) == 2 and not outside and sorted(parts[0].dims + parts[1].dims) == list(dims):
        for outer, inner in (parts, parts[::-1]):
            if inner.context == outer.dims and not outer.context and c.has_rows(inner, outer):
                c.relate(inner.atoms, outer.align_to(inner.span))
                return LabelBlock(dims, (), inner.atoms)
    span = tuple(sorted(set(dims) | set(outside)))
    fixed = tuple(labels.is_fixed(d) for d in dims)
    sizes = tuple(labels.shape[d] for d in span)
    # The same parts joined twice, as by two layers that read one flattened map, share their products.
    key = (tuple((p.dims, p.context, digest(p.atoms)) for p in parts) or c.count, dims, sizes, fixed)
    if key not in c.joined:
        atoms = c.joined[key] = c.new_atoms(list(sizes))
        c.colour(atoms)
        for part in parts:
            c.relate(atoms, part.align_to(span), tuple(span.index(d) for d in part.context))
        for d, is_fixed in zip(dims, fixed, strict=True):
            if is_fixed:
                c.fix_axis(atoms, span.index(d))
        axis_of = {d: (axis,) for axis, d in enumerate(span)}
        over_axes = [part.renumber(axis_of, sizes) for part in parts]
        c.products[digest(atoms)] = Labels.of(sizes, [labels.uniform[d] for d in span], over_axes)
    return LabelBlock(dims, outside, c.joined[key])


def _renumber(c: Constraints, labels: Labels, shape: tuple[int, ...], runs: list[Run]) -> Labels:
    """Write the blocks in the new dimensions, and split joined dimensions where they were joined."""
    new_dims = {d: new for old, new in runs for d in old}
    uniform_dims = {d: all(labels.uniform[o] for o in old) for old, new in runs for d in new}
    uniform = [uniform_dims.get(d, False) for d in range(len(shape))]
    blocks: list[LabelBlock] = []
    for block in labels.blocks:
        moved = block.renumber(new_dims, shape)
        split = _split_product(c, moved, shape) if len(moved.dims) > 1 else None
        parts, flags = split or ([moved], {})
        for part in parts:
            # Context dimensions along which the atoms do not vary say nothing.
            alike = part.repeats_along(part.context)
            blocks.append(part.without_axes(alike) if alike else part)
        for d, flag in flags.items():
            uniform[d] = flag
    return Labels.of(shape, uniform, blocks)


def _split_product(
    c: Constraints, block: LabelBlock, shape: tuple[int, ...]
) -> tuple[list[LabelBlock], dict[int, bool]] | None:
    """Return the parts that product atoms were joined from, if the new dimensions separate them again.

    Also return, for each new dimension that no part owns, whether it is uniform.
    """
    product = c.products.get(digest(block.atoms))
    if product is None:
        return None
    # Give each axis of the product the run of new dimensions whose sizes multiply to its own.
    span = list(block.span)
    runs: list[list[int]] = []
    for size in product.shape:
        run: list[int] = []
        covered = 1
        while covered < size and span:
            run.append(span.pop(0))
            covered *= shape[run[-1]]
        if covered != size:
            return None
        runs.append(run)
    context_axes = [axis for axis, run in enumerate(runs) if set(run) <= set(block.context)]
    if any(set(run) & set(block.context) and axis not in context_axes for axis, run in enumerate(runs)):
        return None
    parts = [part.renumber(dict(enumerate(runs)), shape) for part in product.blocks]
    unowned = [axis for axis in range(len(runs)) if axis not in product.owner and axis not in context_axes]
    return parts, {d: product.uniform[axis] for axis in unowned for d in runs[axis]}
