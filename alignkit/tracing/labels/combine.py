"""What ops do to labels, whatever the op: align tensors elementwise, drop dimensions, contract, concatenate.

The example of this file is `fc2.weight @ (fc1.weight @ x + fc1.bias)` with three hidden units and an input x [5, 1].
Atoms of the first labels:

    fc1.weight [3, 5]    rows 0 1 2      columns 3 4 5 6 7
    fc1.bias   [3, 1]    rows 8 9 10
    fc2.weight [2, 3]    rows 11 12      columns 13 14 15

`matmul(fc1.weight, x)` meets the columns with the fixed positions of x, so 3 to 7 are fixed, and sums over them; rows
0 1 2 are left. `unify` with the bias merges 8 9 10 with 0 1 2. `matmul(fc2.weight, h)` merges 13 14 15 with 0 1 2 and
sums over them; rows 11 12 are left.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from math import prod

import numpy as np

from alignkit.tracing.labels.constraints import Constraints
from alignkit.tracing.labels.tensor_labels import IntArray, LabelBlock, Labels

Dims = Collection[int]


def factor(c: Constraints, block: LabelBlock, first: Dims) -> tuple[LabelBlock, LabelBlock]:
    """Split a block that owns several dimensions: `first` get atoms of their own, the rest stays, inside of them.

    Example: a view has split four positions into two heads of two, so one block owns both dimensions, with atoms
    `[[0 1] [2 3]]`. With `first` = the heads, they get new atoms `[4 5]`, with 0 and 1 related to 4, 2 and 3 to 5; the
    units keep `[[0 1] [2 3]]`, in the context of the heads.
    """
    inner_dims = tuple(d for d in block.dims if d not in first)
    (outer,) = label_rows(c, block, inner_dims)
    return outer, LabelBlock(inner_dims, tuple(sorted(block.context + outer.dims)), block.atoms)


def label_rows(c: Constraints, block: LabelBlock, gone: Dims) -> list[LabelBlock]:
    """Return a block for the rows of a block that loses dimensions; none if it owned no other.

    Rows that a context only repeats, such as heads in each sample of a batch, are the same rows.
    """
    dims, context = (tuple(d for d in old if d not in gone) for old in (block.dims, block.context))
    if not dims:
        return []
    thin = block.without_axes(block.repeats_along(context))
    rows = LabelBlock(
        dims, tuple(d for d in context if d in thin.context), c.rows(thin.atoms, thin.axes(dims + context))
    )
    span = tuple(sorted(dims + context))
    atoms = np.broadcast_to(rows.align_to(span), [block.atoms.shape[axis] for axis in block.axes(span)])
    return [LabelBlock(dims, context, np.ascontiguousarray(atoms))]


def unify(c: Constraints, shape: Sequence[int], operands: Sequence[Labels]) -> Labels:
    """Align tensors that an elementwise op combines. All have the rank of `shape`; size-1 dimensions broadcast.

    A dimension that is fixed in one tensor gets fixed in all. Labels of the same dimensions move together; where the
    labels of one tensor tell more than those of another (units inside heads, and a weight for each unit), the finer
    ones stay and relate to the coarser ones. The first operand's atoms win, so that an in-place op keeps those of its
    target, unless they stand for a constant: a sum with one is none.
    """
    grown = [d for d, n in enumerate(shape) if n != 1]
    operands = sorted((x.squeeze(grown) for x in operands), key=lambda x: _has_constants(c, x))
    fixed = {d for x in operands for d in range(len(shape)) if x.shape[d] != 1 and x.is_fixed(d)}
    blocks = [block for x in operands for block in x.blocks]
    for block in blocks:
        for axis, dim in enumerate(block.span):
            if dim in fixed and dim in block.dims:
                c.fix_axis(block.atoms, axis)
    blocks = [block for block in blocks if not fixed.issuperset(block.span)]  # all of its atoms stay
    in_order = {d for block in blocks for d in block.dims if bool(c.stand_ins.rows_in_order(block.atoms).all())}
    settled = settle(c, shape, blocks, fixed | in_order)
    for block in settled:
        c.colour(block.atoms)
    return Labels.of(shape, [all(x.uniform[d] for x in operands) for d in range(len(shape))], settled)


def _has_constants(c: Constraints, labels: Labels) -> bool:
    return len(c.constants) > 0 and any(bool(np.isin(block.atoms, c.constants).any()) for block in labels.blocks)


def settle(c: Constraints, shape: Sequence[int], blocks: Iterable[LabelBlock], fixed: Dims = ()) -> list[LabelBlock]:
    """Reconcile blocks of several tensors until each dimension has one owner.

    Each block meets the settled ones in turn. Two that own the same dimensions become one. If one owns more
    dimensions and sees all that the other sees, it stays and the other's atoms follow. If both own some dimensions
    that the other does not, both are factored and their parts meet again. All blocks are in the dimensions of the
    result, of which those in `fixed` do not move.
    """
    settled: list[LabelBlock] = []
    queue = list(blocks)
    while queue:
        block = queue.pop(0)
        for index, other in enumerate(settled):
            shared = set(block.dims) & set(other.dims)
            if not shared:
                continue
            if set(block.dims) == set(other.dims):
                settled[index] = _merge_owners(c, shape, other, block, fixed)
            elif _tells_more(other, block):
                if other.span == block.span and _is_single(block):
                    c.merge(other.atoms, block.atoms)  # both name every position once: the same things
                else:
                    c.relate(other.atoms, block.align_to(other.span), other.axes(block.context))
            elif _tells_more(block, other):
                del settled[index]
                queue = [block, other, *queue]
            else:
                del settled[index]
                parts: list[LabelBlock] = []
                for owner, context in ((other, block.context), (block, other.context)):
                    # What the other's units depend on is around them: the heads of one that owns heads and units.
                    outer = set(owner.dims).intersection(context) or shared
                    parts += factor(c, owner, outer) if set(owner.dims) != outer else (owner,)
                queue = parts + queue
            break
        else:
            settled.append(block)
    return settled


def _tells_more(fine: LabelBlock, coarse: LabelBlock) -> bool:
    """Return whether one block labels each position of the other's dimensions, and more."""
    return set(coarse.dims) < set(fine.dims) and set(coarse.span) <= set(fine.span)


def _is_single(block: LabelBlock) -> bool:
    """Return whether every atom of a block names one position."""
    return len(np.unique(block.atoms)) == block.atoms.size


def _refines(c: Constraints, fine: LabelBlock, coarse: LabelBlock) -> bool:
    """Return whether each unit of one block, named once in a row, stands for part of what one of the other stands for.

    Example: units of two heads `[[0 1] [2 3]]`, and `[[4 5] [4 5]]`, those of a key that the heads share. Rows may
    repeat, for the samples of a batch.
    """
    units, targets = np.broadcast_arrays(fine.atoms, coarse.atoms)
    pairs, own, shared = (len(np.unique(x)) for x in (units * c.count + targets, units, targets))
    if not pairs == own > shared:
        return False
    row_axes = fine.axes(fine.context)
    in_rows = np.moveaxis(fine.atoms, row_axes, range(len(row_axes)))
    in_rows = np.sort(in_rows.reshape(prod(in_rows.shape[: len(row_axes)]), -1))
    return bool((in_rows[:, 1:] != in_rows[:, :-1]).all())


def _merge_owners(c: Constraints, shape: Sequence[int], a: LabelBlock, b: LabelBlock, fixed: Dims) -> LabelBlock:
    """Reconcile two blocks that own the same dimensions; return the one that stays.

    Example: units of two heads have atoms `[[0 1] [2 3]]`, in the context of the heads. With `[[4 5] [6 7]]` of the
    same context they merge position by position. With `[[4 5] [4 5]]`, the units of one key head repeated for two
    query heads, they stay apart, and 0 and 2 relate to 4. With `[4 5]` of no context (a weight for each unit, shared
    by the heads) 0 and 2 relate to 4 as well.
    """
    if a.context == b.context:
        for fine, coarse in ((a, b), (b, a)) if a.context else ():
            if _refines(c, fine, coarse):
                # Rows that share their units, as query heads share those of keys, stay rows of their own.
                c.relate(fine.atoms, coarse.atoms, fine.axes(fine.context))
                return fine
        c.merge(a.atoms, b.atoms)
        return a
    span = tuple(sorted(set(a.span) | set(b.span)))
    if set(a.context) ^ set(b.context) <= set(fixed):
        # Rows that stay where they are, as positions of a sequence do, need no units of their own; nor do sorted ones.
        c.merge(a.align_to(span), b.align_to(span))
        return min(a, b, key=lambda block: len(block.context))
    for fine, coarse in ((a, b), (b, a)):
        if set(coarse.context) < set(fine.context):
            c.relate(fine.atoms, coarse.align_to(fine.span), fine.axes(coarse.context))
            return fine
    # Neither sees all that the other sees: new atoms, one for each position of both, relate to both.
    atoms = c.new_atoms([shape[d] for d in span])
    for part in (a, b):
        c.relate(atoms, part.align_to(span), tuple(span.index(d) for d in part.context))
    return LabelBlock(a.dims, tuple(d for d in span if d not in a.dims), atoms)


def drop(c: Constraints, labels: Labels, gone: Dims) -> list[LabelBlock]:
    """Return the blocks that are left when an op reduces over dimensions in an order-independent way.

    Blocks keep the numbering of the dimensions. What a lost dimension owned stays a set that symmetries keep; labels
    of other dimensions that depended on a lost one are replaced by labels of their rows: a sum over the heads of units
    `[[0 1] [2 3]]` has new atoms `[4 5]`, with 0 and 2 related to 4, 1 and 3 to 5.
    """
    remaining: list[LabelBlock] = []
    for block in labels.blocks:
        touched = set(block.span) & set(gone)
        if touched:
            c.colour(block.atoms)
            c.summed.append(block.atoms)
        remaining += label_rows(c, block, gone) if touched else [block]
    return remaining


def reduce(c: Constraints, labels: Labels, gone: Dims, keep_dims: bool) -> Labels:
    """Return the labels after an order-independent reduction (sum, mean, max, norm) over dimensions."""
    blocks = drop(c, labels, gone)
    reduced = Labels.of([1 if d in gone else n for d, n in enumerate(labels.shape)], labels.uniform, blocks)
    return reduced if keep_dims else reduced.permute([d for d in range(len(labels.shape)) if d not in gone])


def matmul(c: Constraints, a: Labels, b: Labels) -> Labels:
    """Return the labels of `a @ b` for [..., m, k] and [..., k, n] of equal rank, summed over k in [..., m, k, n]."""
    rank = len(a.shape)
    left, right = a.insert_dim(rank), b.insert_dim(rank - 2)
    shape = [max(m, n) if min(m, n) else 0 for m, n in zip(left.shape, right.shape, strict=True)]
    return reduce(c, unify(c, shape, [left, right]), {rank - 1}, keep_dims=False)


def concatenate(c: Constraints, operands: Sequence[Labels], dim: int) -> Labels:
    """Return the labels of tensors of one rank laid end to end along `dim`.

    Along the other dimensions the tensors are aligned elementwise. Along `dim` the atoms are laid end to end too:
    `0 1 2` and `3 4` give `0 1 2 3 4`. An operand without labels there gets atoms that are alike if it is uniform,
    else fixed. One without positions there adds nothing.
    """
    operands = [x for x in operands if x.shape[dim]] or operands[:1]
    if len(operands) == 1:
        return operands[0]
    parts = [_isolate(c, x, dim) for x in operands]
    shape = tuple(sum(x.shape[dim] for x in operands) if d == dim else n for d, n in enumerate(operands[0].shape))
    thin = tuple(1 if d == dim else n for d, n in enumerate(shape))
    aligned = unify(c, thin, [Labels.of(thin, x.uniform, [b for b in x.blocks if dim not in b.span]) for x in parts])
    uniform = [d != dim and f for d, f in enumerate(aligned.uniform)]
    owners = [x.owner.get(dim) for x in parts]
    with_units = [
        owner is not None or (x.uniform[dim] and x.shape[dim] > 1) for x, owner in zip(parts, owners, strict=True)
    ]
    if not any(with_units):
        return Labels.of(shape, uniform, aligned.blocks)
    span = tuple(sorted({dim} | {d for owner in owners if owner is not None for d in owner.context}))
    pieces: list[IntArray] = []
    for x, owner in zip(parts, owners, strict=True):
        if owner is None:
            owner = LabelBlock((dim,), (), c.new_atoms([x.shape[dim]]))
            if x.uniform[dim] and x.shape[dim] > 1:
                c.colour(owner.atoms)
                c.constants = np.concatenate([c.constants, owner.atoms])
            else:
                c.fix(owner.atoms)
        pieces.append(owner.spread(span, x.shape))
    block = LabelBlock((dim,), tuple(d for d in span if d != dim), np.concatenate(pieces, span.index(dim)))
    for parent in aligned.blocks:
        # Where each atom stands in one row only, the rows are those of the context.
        if parent.dims == block.context and not parent.context:
            rows = np.moveaxis(block.atoms, span.index(dim), -1).reshape(-1, shape[dim])
            row_of = np.repeat(np.arange(len(rows)), rows.shape[1])
            pairs = np.unique(np.stack([rows.ravel(), row_of]), axis=1)
            if len(np.unique(pairs[0])) == pairs.shape[1]:
                c.adopt_rows(block.atoms, block.axes(block.context), parent.atoms)
    c.colour(block.atoms)
    return Labels.of(shape, uniform, [*aligned.blocks, block])


def stack(c: Constraints, operands: Sequence[Labels], dim: int) -> Labels:
    """Return the labels of tensors laid beside each other along a new dimension, in which positions stay.

    Tensors that have other units each, as the final states of several layers do, keep them: with units `0 1` and `2 3`
    the labels are `[[0 1] [2 3]]`, in the context of the new dimension.
    """
    apart = [x.insert_dim(dim) for x in operands]
    if len(apart) == 1 or any(len(block.span) > 1 for x in apart for block in x.blocks):
        return concatenate(c, apart, dim)
    shape = tuple(len(apart) if d == dim else n for d, n in enumerate(apart[0].shape))
    blocks: list[LabelBlock] = []
    for d in range(len(shape)):
        owners = [x.owner[d] for x in apart if d in x.owner]
        if len(owners) not in (0, len(apart)):
            return concatenate(c, apart, dim)
        if owners:
            atoms = np.stack([owner.atoms for owner in owners])
            for row in atoms:
                c.colour(row)
            alike = bool((atoms == atoms[0]).all())
            span = (d,) if alike else (dim, d)
            atoms = atoms[0] if alike else atoms if dim < d else np.ascontiguousarray(atoms.T)
            blocks.append(LabelBlock((d,), tuple(other for other in span if other != d), atoms))
    return Labels.of(shape, [d != dim and all(x.uniform[d] for x in apart) for d in range(len(shape))], blocks)


def _isolate(c: Constraints, labels: Labels, dim: int) -> Labels:
    """Factor the block that owns `dim` together with others, so that it is owned alone and nothing depends on it."""
    blocks: list[LabelBlock] = []
    for block in labels.blocks:
        if dim in block.dims and len(block.dims) > 1:
            blocks += factor(c, block, set(block.dims) - {dim})
        elif dim in block.context:
            blocks += label_rows(c, block, {dim})
        else:
            blocks.append(block)
    return Labels.of(labels.shape, labels.uniform, blocks)


def restrict(c: Constraints, labels: Labels, dim: int, index: IntArray) -> Labels:
    """Return the labels of positions `index` along `dim`; which units are among them becomes a kept property."""
    result = labels.index_select(dim, index)
    for block in result.blocks:
        if dim in block.span:
            c.colour(block.atoms)
    return result
