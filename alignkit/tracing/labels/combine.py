"""What ops do to layouts, whatever the op.

Align several tensors elementwise, drop dimensions, contract, concatenate.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

import numpy as np

from alignkit.tracing.labels.constraints import Constraints
from alignkit.tracing.labels.labels import IntArray, LabelBlock, Labels


def factor(c: Constraints, block: LabelBlock, first: Collection[int]) -> tuple[LabelBlock, LabelBlock]:
    """Split a block that owns several dimensions: `first` get atoms of their own, the rest stays, inside of them."""
    keep = tuple(d for d in block.dims if d in first)
    rest = tuple(d for d in block.dims if d not in first)
    outer = LabelBlock(keep, block.context, c.rows(block.atoms, block.axes(keep + block.context)))
    return outer, LabelBlock(rest, tuple(sorted(block.context + keep)), block.atoms)


def unify(c: Constraints, shape: Sequence[int], layouts: Sequence[Labels]) -> Labels:
    """Align tensors that an elementwise op combines. All have the rank of `shape`; size-1 dimensions broadcast.

    A dimension that is fixed in one tensor gets fixed in all. Labels of the same dimensions move together; where the
    labels of one tensor tell more than those of another (units inside heads, and a weight for each unit), the finer
    ones stay and relate to the coarser ones. The first layout's atoms win, so that an in-place op keeps those of its
    target.

    Args:
        c: Receives the constraints.
        shape: Shape of the result.
        layouts: Layouts of the operands.

    Returns:
        The layout of the result.
    """
    rank = len(shape)
    grown = [d for d, n in enumerate(shape) if n != 1]
    spread = [layout.squeezed(grown) for layout in layouts]
    fixed = {d for x in spread for d in range(rank) if x.shape[d] != 1 and x.is_fixed(d)}
    uniform = [all(x.uniform[d] for x in spread) for d in range(rank)]
    blocks = [block for x in spread for block in x.blocks]
    for block in blocks:
        for axis, dim in enumerate(block.span):
            if dim in fixed and dim in block.dims:
                c.fix_axis(block.atoms, axis)
    kept = settle(c, shape, blocks, fixed)
    for block in kept:
        c.colour(block.atoms)
    return Labels.of(shape, uniform, kept)


def settle(
    c: Constraints, shape: Sequence[int], blocks: Iterable[LabelBlock], fixed: Collection[int] = ()
) -> list[LabelBlock]:
    """Reconcile blocks of several tensors until each dimension has one owner.

    Positions along `fixed` dimensions do not move.
    """
    kept: list[LabelBlock] = []
    queue = list(blocks)
    while queue:
        block = queue.pop(0)
        for index, other in enumerate(kept):
            if not set(block.dims) & set(other.dims):
                continue
            if set(block.dims) == set(other.dims):
                kept[index] = _same_dims(c, shape, other, block, fixed)
            elif _tells_more(other, block):
                _follow(c, other, block)
            elif _tells_more(block, other):
                del kept[index]
                queue = [block, other, *queue]
            else:
                del kept[index]
                queue = _refined(c, other, block) + queue
            break
        else:
            kept.append(block)
    return kept


def _tells_more(fine: LabelBlock, coarse: LabelBlock) -> bool:
    """Return whether one block labels each position of the other's dimensions, and more."""
    return set(coarse.dims) < set(fine.dims) and set(coarse.span) <= set(fine.span)


def _follow(c: Constraints, fine: LabelBlock, coarse: LabelBlock) -> None:
    """Make a block agree with one that tells more. Where both name every position once, they name the same things."""
    if fine.span == coarse.span and _is_single(coarse):
        c.merge(fine.atoms, coarse.atoms)
    else:
        c.relate(fine.atoms, coarse.over(fine.span), fine.axes(coarse.context))


def _same_dims(
    c: Constraints, shape: Sequence[int], a: LabelBlock, b: LabelBlock, fixed: Collection[int]
) -> LabelBlock:
    """Reconcile two blocks that own the same dimensions."""
    if a.context == b.context:
        for fine, coarse in ((a, b), (b, a)) if a.context else ():
            if _is_single(fine) and not _is_single(coarse):
                # Rows that share their units, as query heads share those of keys, stay rows of their own.
                c.relate(fine.atoms, coarse.atoms, fine.axes(fine.context))
                return fine
        c.merge(a.atoms, b.atoms)
        return a
    for coarse, fine in ((a, b), (b, a)):
        # Rows that stay where they are, as positions of a sequence do, need no units of their own.
        if set(coarse.context) < set(fine.context) and set(fine.context) - set(coarse.context) <= set(fixed):
            c.merge(fine.atoms, coarse.over(fine.span))
            return coarse
    if set(b.context) < set(a.context):
        c.relate(a.atoms, b.over(a.span), a.axes(b.context))
        return a
    if set(a.context) < set(b.context):
        c.relate(b.atoms, a.over(b.span), b.axes(a.context))
        return b
    span = tuple(sorted(set(a.span) | set(b.span)))
    atoms = c.fresh([shape[d] for d in span])
    for part in (a, b):
        c.relate(atoms, part.over(span), tuple(span.index(d) for d in part.context))
    return LabelBlock(a.dims, tuple(d for d in span if d not in a.dims), atoms)


def _is_single(block: LabelBlock) -> bool:
    """Return whether every atom of a block names one position."""
    return len(np.unique(block.atoms)) == block.atoms.size


def _refined(c: Constraints, a: LabelBlock, b: LabelBlock) -> list[LabelBlock]:
    """Factor two blocks that share some of their dimensions, so that their parts own the same or different ones."""
    shared = set(a.dims) & set(b.dims)
    parts: list[LabelBlock] = []
    for block in (a, b):
        parts += factor(c, block, shared) if set(block.dims) != shared else (block,)
    return parts


def drop(c: Constraints, layout: Labels, gone: Collection[int]) -> list[LabelBlock]:
    """Return the blocks that are left when an op reduces over dimensions in an order-independent way.

    Blocks keep the numbering of the dimensions. What a lost dimension owned stays a set that symmetries keep; labels
    of other dimensions that depended on a lost one are replaced by labels of their rows.
    """
    left = []
    for block in layout.blocks:
        if not set(block.span) & set(gone):
            left.append(block)
            continue
        c.colour(block.atoms)
        dims = tuple(d for d in block.dims if d not in gone)
        if dims:
            context = tuple(d for d in block.context if d not in gone)
            left.append(LabelBlock(dims, context, c.rows(block.atoms, block.axes(dims + context))))
    return left


def reduce(c: Constraints, layout: Labels, gone: Collection[int], keep_dims: bool) -> Labels:
    """Return the layout after an order-independent reduction (sum, mean, max, norm) over dimensions."""
    blocks = drop(c, layout, gone)
    if keep_dims:
        shape = [1 if d in gone else n for d, n in enumerate(layout.shape)]
        return Labels.of(shape, [d in gone or flag for d, flag in enumerate(layout.uniform)], blocks)
    flags = [d in gone or flag for d, flag in enumerate(layout.uniform)]
    left = [d for d in range(len(layout.shape)) if d not in gone]
    reduced = Labels.of(layout.shape, flags, blocks)
    return reduced.moved([layout.shape[d] for d in left], {d: i for i, d in enumerate(left)})


def contract(c: Constraints, operands: Sequence[Labels], gone: Collection[int], shape: Sequence[int]) -> Labels:
    """Return the layout of a product of tensors in common coordinates, summed over `gone`.

    Args:
        c: Receives the constraints.
        operands: Layouts of one rank; size-1 dimensions broadcast.
        gone: Dimensions that are summed over.
        shape: Sizes of all common coordinates, the summed ones too.
    """
    return reduce(c, unify(c, shape, operands), gone, keep_dims=False)


def matmul(c: Constraints, a: Labels, b: Labels) -> Labels:
    """Return the layout of `a @ b` for [..., m, k] and [..., k, n] of equal rank."""
    rank = len(a.shape)
    rows, inner, columns = rank - 2, rank - 1, rank
    batch = {d: d for d in range(rank - 2)}
    left = a.moved((*a.shape, 1), {**batch, rank - 2: rows, rank - 1: inner})
    right = b.moved((*b.shape[:-2], 1, *b.shape[-2:]), {**batch, rank - 2: inner, rank - 1: columns})
    shape = [max(m, n) if min(m, n) else 0 for m, n in zip(left.shape, right.shape, strict=True)]
    return contract(c, [left, right], {inner}, shape)


def concatenate(c: Constraints, layouts: Sequence[Labels], dim: int) -> Labels:
    """Return the layout of tensors of one rank laid end to end along `dim`."""
    parts = [_apart(c, layout, dim) for layout in layouts]
    length = sum(x.shape[dim] for x in layouts)
    shape = tuple(length if d == dim else n for d, n in enumerate(layouts[0].shape))
    thin = tuple(1 if d == dim else n for d, n in enumerate(shape))
    others = [
        Labels.of(thin, [d == dim or f for d, f in enumerate(x.uniform)], [b for b in x.blocks if dim not in b.span])
        for x in parts
    ]
    rest = unify(c, thin, others)
    owners = [x.owner.get(dim) for x in parts]
    if all(owner is None for owner in owners):
        return Labels.of(shape, [d != dim and f for d, f in enumerate(rest.uniform)], rest.blocks)
    span = tuple(sorted({dim} | {d for owner in owners if owner is not None for d in owner.context}))
    pieces = [_piece(c, x, owner, span, dim) for x, owner in zip(parts, owners, strict=True)]
    block = LabelBlock((dim,), tuple(d for d in span if d != dim), np.concatenate(pieces, span.index(dim)))
    _adopt(c, rest, block)
    c.colour(block.atoms)
    return Labels.of(shape, [d != dim and f for d, f in enumerate(rest.uniform)], [*rest.blocks, block])


def _apart(c: Constraints, layout: Labels, dim: int) -> Labels:
    """Factor the block that owns `dim` together with others, so that it is owned alone and nothing depends on it."""
    blocks: list[LabelBlock] = []
    for block in layout.blocks:
        if dim in block.dims and len(block.dims) > 1:
            blocks += factor(c, block, set(block.dims) - {dim})
        elif dim in block.context:
            keep = tuple(d for d in block.span if d != dim)
            blocks.append(
                LabelBlock(
                    block.dims, tuple(d for d in block.context if d != dim), c.rows(block.atoms, block.axes(keep))
                )
            )
        else:
            blocks.append(block)
    return Labels.of(layout.shape, layout.uniform, blocks)


def _piece(c: Constraints, layout: Labels, owner: LabelBlock | None, span: tuple[int, ...], dim: int) -> IntArray:
    """Return the atoms of one operand of a concatenation; an unlabelled one gets atoms that are alike or fixed."""
    if owner is not None:
        return owner.spread(span, layout.shape)
    atoms = c.fresh([layout.shape[dim]])
    if layout.uniform[dim] and layout.shape[dim] > 1:
        c.colour(atoms)
    else:
        c.fix(atoms)
    return np.broadcast_to(atoms.reshape([-1 if d == dim else 1 for d in span]), [layout.shape[d] for d in span])


def _adopt(c: Constraints, rest: Labels, block: LabelBlock) -> None:
    """Tell that the atoms of `block` belong to those of its context, where each atom occurs in one row only."""
    for parent in rest.blocks:
        if parent.dims != block.context or parent.context:
            continue
        flat = np.moveaxis(block.atoms, block.axes(block.dims)[0], -1).reshape(
            -1, block.atoms.shape[block.axes(block.dims)[0]]
        )
        owners = np.repeat(np.arange(len(flat)), flat.shape[1])
        pairs = np.unique(np.stack([flat.ravel(), owners]), axis=1)
        if len(np.unique(pairs[0])) == pairs.shape[1]:
            c.adopt_rows(block.atoms, block.axes(block.context), parent.atoms)


def restrict(c: Constraints, layout: Labels, dim: int, index: IntArray) -> Labels:
    """Return the layout of positions `index` along `dim`; which units are among them becomes a kept property."""
    result = layout.taken(dim, index)
    for block in result.blocks:
        if dim in block.span:
            c.colour(block.atoms)
    return result
