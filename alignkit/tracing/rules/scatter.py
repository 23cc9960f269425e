"""Writes at computed positions: what is indexed is fixed, in target and source; the other dimensions pass through.

Where the positions are numbers of units, these move in the result.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
import torch

from alignkit.tracing.labels.combine import reduce
from alignkit.tracing.labels.picking import can_pick, units_of
from alignkit.tracing.labels.tensor_labels import Choice, Labels
from alignkit.tracing.recording.recorder import TensorRef
from alignkit.tracing.rules.table import Call, RuleSet

RULES = RuleSet()


@RULES.rule("index_add", "index_copy", "index_fill", "index_reduce")
def index_write(call: Call) -> Labels:
    """Write slices of a source, or a value, to the positions of an index along one dimension."""
    c, target, (index, choice) = call.constraints, call.labels("self"), call.chosen("index")
    dim, sources = target.dim(call.arg("dim")), call.labels_of_tensors("source", "value")
    if call.name == "index_add" and len(index.shape) == 1:  # a sum, in any order of the index
        source = call.unify(sources[0].shape, [sources[0], index.along(dim, len(sources[0].shape))])
        source = reduce(c, source, {dim}, keep_dims=True)
        if choice is not None and can_pick(target, dim, choice):
            return call.unify(call.shape, [target, source, units_of(choice).along(dim, len(call.shape))])
        sources = [source]
    else:
        call.fix(index)
    c.fix_choice(choice)
    return _meet(call, {dim}, [target, *sources]).with_fixed({dim}, call.shape)


@RULES.rule("scatter", "scatter_add", "scatter_reduce")
def scatter(call: Call) -> Labels:
    """Write each element of a source to the position that an index of the same shape gives along one dimension."""
    c, target, (index, choice) = call.constraints, call.labels("self"), call.chosen("index")
    dim = target.dim(call.arg("dim"))
    sources = [index, *call.labels_of_tensors("src", "value")]
    # An index of fewer positions than the target leaves the last ones alone.
    whole = [n for d, n in enumerate(call.shape) if d != dim]
    fits = all([n for d, n in enumerate(x.shape) if d != dim] == whole for x in sources if x.shape)
    is_along = all(x.shape[dim] == index.shape[dim] for x in sources if x.shape)
    if fits and is_along and choice is not None and can_pick(target, dim, choice):
        written = _meet(call, {dim}, sources)
        return call.unify(call.shape, [target, written, units_of(choice).along(dim, len(call.shape))])
    c.fix_choice(choice)
    operands = [target, *sources]
    return _meet(call, {dim}, operands).with_fixed({dim}, call.shape) if fits else call.fix(*operands)


@RULES.rule("index_put", "_index_put_impl", "_unsafe_index_put")
def index_put(call: Call) -> Labels:
    """Write values to positions of adjacent dimensions, given by integers or by one mask."""
    target, values = call.labels("self"), call.labels("values")
    inverse = _inverse_order(call)
    if inverse is not None:
        return inverse
    indices: Sequence[TensorRef | None] = call.arg("indices")
    at = [d for d, index in enumerate(indices) if index is not None]
    tensors = [index for index in indices if index is not None]
    labels = [call.labels(index) for index in tensors]
    masks = [index for index in tensors if index.dtype in (torch.bool, torch.uint8)]
    if len(masks) == len(tensors) == 1 and values.shape in ((), (1,)):  # `where`
        (mask,) = labels
        for _ in range(len(target.shape) - at[0] - len(mask.shape)):
            mask = mask.insert_dim(len(mask.shape))
        return call.unify(call.shape, [x.pad_rank(len(target.shape)) for x in (target, mask, values)])
    call.fix(*labels)
    if (masks and len(tensors) > 1) or at != list(range(at[0], at[0] + len(at))):
        return call.fix(target, values)
    spots = range(at[0], at[0] + (len(masks[0].shape) if masks else len(at)))
    chosen = range(at[0], at[0] + (1 if masks else max(len(index.shape) for index in tensors)))
    # The values have the dimensions `chosen` of what is written in place of the `spots`.
    rank = len(target.shape) - len(spots) + len(chosen)
    rows = call.fix_dims(values.pad_rank(rank), chosen).permute([d for d in range(rank) if d not in chosen])
    for _ in spots:
        rows = rows.insert_dim(at[0])
    return _meet(call, spots, [target, rows]).with_fixed(spots, call.shape)


def _inverse_order(call: Call) -> Labels | None:
    """Return the labels of `empty[order] = arange`: for each choice the row that it has, once they are sorted."""
    indices: Sequence[TensorRef | None] = call.arg("indices")
    values: TensorRef = call.arg("values")
    if len(indices) != 1 or indices[0] is None or values.values is None or values.shape != indices[0].shape:
        return None
    _, choice = call.chosen(indices[0])
    in_turn = np.array_equal(values.values, np.arange(values.values.size)) and not call.arg("accumulate", False)
    if choice is None or choice.kind != "order" or not in_turn or call.shape != choice.atoms.shape:
        return None
    made = call.constraints.stand_ins.new_choices(call.shape)
    return Labels.of(call.shape).saying(Choice("position", choice.atoms, made))


@RULES.rule("masked_scatter")
def masked_scatter(call: Call) -> Labels:
    """Write the elements of a source, in their order, where a mask says so.

    Last dimensions along which the mask is equal pass through: they take whole rows of the source.
    """
    target, mask, source = (call.labels(name) for name in ("self", "mask", "source"))
    rank, mask = len(call.shape), mask.pad_rank(len(call.shape))
    rows = 0
    while rows < len(source.shape) and mask.uniform[-1 - rows] and source.shape[-1 - rows] == call.shape[-1 - rows]:
        rows += 1
        if rows == rank:
            break
    first = len(source.shape) - rows
    source = call.fix_dims(source, range(first)).permute(range(first, len(source.shape)))
    spots = range(rank - rows)
    return _meet(call, spots, [target, mask, source]).with_fixed(spots, call.shape)


def _meet(call: Call, spots: Collection[int], operands: Sequence[Labels]) -> Labels:
    """Align tensors along all dimensions but `spots`, whose positions are fixed and which have size 1 in the result."""

    def thin(shape: Sequence[int]) -> list[int]:
        return [1 if d in spots else n for d, n in enumerate(shape)]

    free = [call.fix_dims(x.pad_rank(len(call.shape)), spots) for x in operands]
    return call.unify(thin(call.shape), [Labels.of(thin(x.shape), x.uniform, x.blocks) for x in free])
