"""Reshaping: the one op that joins and splits axes.

Splitting an axis needs no decision: its block owns all the parts. Joining axes with different owners makes *product
atoms*, one for each combination, related to their parts; what they were joined from is remembered, so that splitting
them again gives the parts back.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from alignkit.tracing.labels.combine import factor
from alignkit.tracing.labels.constraints import Constraints
from alignkit.tracing.labels.labels import IntArray, LabelBlock, Labels, digest

Group = tuple[tuple[int, ...], tuple[int, ...]]


def reshape(c: Constraints, layout: Labels, shape: Sequence[int]) -> Labels:
    """Return the layout of `tensor.reshape(shape)`."""
    target = tuple(int(n) for n in shape)
    if target == layout.shape:
        return layout
    if 0 in target:
        return Labels.of(target)
    layout = layout.squeezed()
    groups = match(layout.shape, target)
    for old, _ in groups:
        if len(old) > 1:
            layout = _joined(c, layout, old)
    return _renumbered(c, layout, target, groups)


def match(old: tuple[int, ...], new: tuple[int, ...]) -> list[Group]:
    """Pair the smallest runs of dimensions with equal products, leaving out dimensions of size 1."""
    left = [d for d, n in enumerate(old) if n != 1]
    right = [d for d, n in enumerate(new) if n != 1]
    groups = []
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
        groups.append((tuple(a), tuple(b)))
    return groups


def _joined(c: Constraints, layout: Labels, dims: tuple[int, ...]) -> Labels:
    """Give `dims`, which are about to become one axis, one owner.

    Labels that depend on one of them then depend on all.
    """
    inside = set(dims)
    blocks: list[LabelBlock] = []
    for block in layout.blocks:
        shared = set(block.dims) & inside
        blocks += factor(c, block, shared) if shared and shared != set(block.dims) else (block,)
    parts = [block for block in blocks if set(block.dims) <= inside]
    if parts:
        blocks = [block for block in blocks if not set(block.dims) <= inside]
        blocks.append(parts[0] if parts[0].dims == dims else _product(c, layout, dims, parts))
    blocks = [_depending_on(block, inside, layout.shape) for block in blocks]
    return Labels.of(layout.shape, layout.uniform, blocks)


def _depending_on(block: LabelBlock, dims: set[int], shape: tuple[int, ...]) -> LabelBlock:
    """Make a block whose context has some of `dims` depend on all of them."""
    if not set(block.context) & dims or dims <= set(block.span):
        return block
    span = tuple(sorted(set(block.span) | dims))
    context = tuple(d for d in span if d not in block.dims)
    return LabelBlock(block.dims, context, np.ascontiguousarray(block.spread(span, shape)))


def _product(c: Constraints, layout: Labels, dims: tuple[int, ...], parts: list[LabelBlock]) -> LabelBlock:
    """Return a block that owns `dims`.

    Product atoms, or the inner part's own where they already belong to the outer part.
    """
    outside = tuple(sorted({d for part in parts for d in part.context} - set(dims)))
    if len(parts) == 2 and not outside and sorted(parts[0].dims + parts[1].dims) == list(dims):
        for outer, inner in (parts, parts[::-1]):
            if inner.context == outer.dims and not outer.context and c.has_rows(inner, outer):
                c.relate(inner.atoms, outer.over(inner.span))
                return LabelBlock(dims, (), inner.atoms)
    span = tuple(sorted(set(dims) | set(outside)))
    fixed = tuple(layout.is_fixed(d) for d in dims)
    sizes = tuple(layout.shape[d] for d in span)
    key = (tuple((p.dims, p.context, digest(p.atoms)) for p in parts), dims, sizes, fixed)
    if key not in c.joined:
        atoms = c.joined[key] = c.fresh(list(sizes))
        c.colour(atoms)
        for part in parts:
            c.relate(atoms, part.over(span), tuple(span.index(d) for d in part.context))
        for d, is_fixed in zip(dims, fixed, strict=True):
            if is_fixed:
                c.fix_axis(atoms, span.index(d))
        c.products[digest(atoms)] = (sizes, _record(layout, span, parts))
    return LabelBlock(dims, outside, c.joined[key])


def _record(layout: Labels, span: tuple[int, ...], parts: list[LabelBlock]) -> Labels:
    """Return the parts as a layout over the axes of the product's atoms."""
    place = {d: axis for axis, d in enumerate(span)}
    blocks = [LabelBlock(tuple(place[d] for d in p.dims), tuple(place[d] for d in p.context), p.atoms) for p in parts]
    return Labels.of([layout.shape[d] for d in span], [layout.uniform[d] for d in span], blocks)


def _renumbered(c: Constraints, layout: Labels, shape: tuple[int, ...], groups: list[Group]) -> Labels:
    """Write the blocks in the new dimensions, and split joined axes where they were joined."""
    to_new = {d: new for old, new in groups for d in old}
    uniform = [False] * len(shape)
    for old, new in groups:
        for d in new:
            uniform[d] = all(layout.uniform[o] for o in old)
    blocks: list[LabelBlock] = []
    for block in layout.blocks:
        dims = tuple(sorted({d for o in block.dims for d in to_new[o]}))
        context = tuple(sorted({d for o in block.context for d in to_new[o]}))
        moved = LabelBlock(dims, context, block.atoms.reshape([shape[d] for d in sorted(dims + context)]))
        split = _split_again(c, moved, shape) if len(dims) > 1 else None
        if split is None:
            blocks.append(_without_constant_context(moved))
            continue
        for part, flags in split:
            blocks += part
            for d, flag in flags.items():
                uniform[d] = flag
    return Labels.of(shape, [flag or n == 1 for flag, n in zip(uniform, shape, strict=True)], blocks)


def _split_again(
    c: Constraints, block: LabelBlock, shape: tuple[int, ...]
) -> list[tuple[list[LabelBlock], dict[int, bool]]] | None:
    """Return the parts that product atoms were joined from, if the new dimensions separate them again."""
    record = c.products.get(digest(block.atoms))
    if record is None:
        return None
    sizes, parts = record
    span = list(block.span)
    runs: list[list[int]] = []
    for size in sizes:
        run, product = [], 1
        while product < size and span:
            run.append(span.pop(0))
            product *= shape[run[-1]]
        if product != size:
            return None
        runs.append(run)
    context_axes = [axis for axis, run in enumerate(runs) if set(run) <= set(block.context)]
    if any(set(run) & set(block.context) and axis not in context_axes for axis, run in enumerate(runs)):
        return None
    result = []
    for part in parts.blocks:
        dims = tuple(d for axis in part.dims for d in runs[axis])
        context = tuple(d for axis in part.context for d in runs[axis])
        atoms = part.atoms.reshape([shape[d] for d in sorted(dims + context)])
        result.append(_without_constant_context(LabelBlock(dims, context, atoms)))
    flags = {
        d: parts.uniform[axis]
        for axis, run in enumerate(runs)
        if axis not in parts.owner and axis not in context_axes
        for d in run
    }
    return [(result, flags)]


def _without_constant_context(block: LabelBlock) -> LabelBlock:
    """Drop context dimensions along which the atoms do not vary."""
    constant = [d for d in block.context if _is_constant(block.atoms, block.span.index(d))]
    return block.without_axes(constant) if constant else block


def _is_constant(atoms: IntArray, axis: int) -> bool:
    return bool((atoms == atoms.take([0], axis)).all())
