"""Writes at computed positions: what is indexed is fixed, in target and source; the other dimensions pass through."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch

from alignkit.tracing.labels.tensor_labels import Labels
from alignkit.tracing.recording.recorder import TensorRef
from alignkit.tracing.rules.table import Call, RuleSet

RULES = RuleSet()


@RULES.rule("index_add", "index_copy", "index_fill", "index_reduce")
def index_write(call: Call) -> Labels:
    """Write slices of a source, or a value, to the positions of an index along one dimension."""
    target = call.labels("self")
    call.fix(call.labels("index"))
    return _meet(call, {target.dim(call.arg("dim"))}, [target, *call.labels_of_tensors("source", "value")])


@RULES.rule("scatter", "scatter_add", "scatter_reduce")
def scatter(call: Call) -> Labels:
    """Write each element of a source to the position that an index of the same shape gives along one dimension."""
    target = call.labels("self")
    dim = target.dim(call.arg("dim"))
    sources = call.labels_of_tensors("index", "src", "value")
    # An index of fewer positions than the target leaves the last ones alone.
    whole = [n for d, n in enumerate(call.shape) if d != dim]
    if any([n for d, n in enumerate(x.shape) if d != dim] != whole for x in sources if x.shape):
        return call.fix(target, *sources)
    return _meet(call, {dim}, [target, *sources])


@RULES.rule("index_put", "_index_put_impl", "_unsafe_index_put")
def index_put(call: Call) -> Labels:
    """Write values to positions of adjacent dimensions, given by integers or by one mask."""
    target, values = call.labels("self"), call.labels("values")
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
    return _meet(call, spots, [target, rows])


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
    return _meet(call, range(rank - rows), [target, mask, source])


def _meet(call: Call, spots: Collection[int], operands: Sequence[Labels]) -> Labels:
    """Align tensors along all dimensions but `spots`, whose positions are fixed."""

    def thin(shape: Sequence[int]) -> list[int]:
        return [1 if d in spots else n for d, n in enumerate(shape)]

    free = [call.fix_dims(x.pad_rank(len(call.shape)), spots) for x in operands]
    aligned = call.unify(thin(call.shape), [Labels.of(thin(x.shape), x.uniform, x.blocks) for x in free])
    return aligned.with_fixed(spots, call.shape)
