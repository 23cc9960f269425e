"""Picking units by number, and finding their numbers: what a choice does to labels.

The example is a stack `up` [3, 6, 4] of three experts with 6 units each, and numbers `chosen` [8] of one expert for
each of 8 rows. `up[chosen]` is [8, 6, 4]: the experts are gone, and the units of a row are those of its expert.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from alignkit.tracing.labels.combine import drop, label_rows
from alignkit.tracing.labels.constraints import Constraints
from alignkit.tracing.labels.stand_ins import are_stand_ins
from alignkit.tracing.labels.tensor_labels import Choice, IntArray, LabelBlock, Labels


def units_along(labels: Labels, dim: int) -> IntArray | None:
    """Return the atoms of units that stand along a dimension, if nothing else tells which unit is where."""
    owner = labels.owner.get(dim)
    return owner.atoms if owner is not None and owner.span == (dim,) else None


def units_of(choice: Choice) -> Labels:
    """Return the labels of a vector with one element for each unit among which a choice picks."""
    return Labels.of(choice.atoms.shape, (), [LabelBlock((0,), (), choice.atoms)])


def choose(c: Constraints, labels: Labels, dim: int, shape: Sequence[int], keep_dim: bool = True) -> Labels | None:
    """Return the labels of numbers that say which units along a dimension are largest, first, and so on.

    None: the numbers are not those of units that move.
    """
    atoms = units_along(labels, dim)
    if atoms is None:
        return None
    others = labels.with_blocks(drop(c, labels, {dim}))
    if not keep_dim:
        thin = Labels.of([1 if d == dim else n for d, n in enumerate(labels.shape)], others.uniform, others.blocks)
        others = thin.permute([d for d in range(len(labels.shape)) if d != dim])
    numbers = others.with_fixed({dim}, shape) if keep_dim else others
    return numbers.saying(Choice("position", atoms, c.stand_ins.new_choices(tuple(shape))))


def can_pick(labels: Labels, dim: int, choice: Choice | None) -> bool:
    """Return whether a choice is one among the units along a dimension, or the dimension has none."""
    if choice is None or choice.kind != "position" or labels.shape[dim] != len(choice.atoms):
        return False
    return labels.uniform[dim] or units_along(labels, dim) is not None


def pick(c: Constraints, labels: Labels, dim: int, choice: Choice) -> Labels:
    """Return the labels of a tensor [*choices, ...] that holds for each choice the part along `dim` that it picks.

    The dimensions of the choices come first, without labels; the others follow in their order.
    """
    rank, count = len(labels.shape), choice.made.ndim
    new_dim = {d: count + i for i, d in enumerate(d for d in range(rank) if d != dim)}
    blocks = []
    atoms = units_along(labels, dim)
    if atoms is not None:
        c.merge(atoms, choice.atoms)
    for block in labels.blocks:
        if block.dims == (dim,):
            continue
        if dim in block.span and are_stand_ins(block.atoms):
            (block,) = label_rows(c, block, {dim})  # stand-ins of stand-ins would not say of what
        own = block.atoms
        dims, context = (tuple(new_dim[d] for d in old if d != dim) for old in (block.dims, block.context))
        if dim in block.context:
            own = c.stand_ins.pick(np.moveaxis(own, block.span.index(dim), 0), choice.made)
            context = (*range(count), *context)
        blocks.append(LabelBlock(dims, context, own))
    shape = [*choice.made.shape, *(n for d, n in enumerate(labels.shape) if d != dim)]
    uniform = [False] * count + [flag for d, flag in enumerate(labels.uniform) if d != dim]
    return Labels.of(shape, uniform, blocks)
