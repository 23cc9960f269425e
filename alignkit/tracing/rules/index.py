"""Look-ups by computed positions: what is indexed is fixed, the other dimensions pass through."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from alignkit.tracing.labels.combine import restrict
from alignkit.tracing.labels.labels import LabelBlock, Labels
from alignkit.tracing.labels.reshape import reshape
from alignkit.tracing.recording.recorder import TensorRef
from alignkit.tracing.rules.table import Call, rule


@rule("embedding")
def embedding(call: Call) -> Labels:
    """Rows of a table: which row is which matters, the columns pass through."""
    table, indices = call.layout("weight"), call.layout("indices")
    rank = len(indices.shape)
    left = call.fix_dims(table, [0])
    carried = Labels.of((1, table.shape[1]), (True, left.uniform[1]), left.blocks)
    columns = carried.moved((*[1] * rank, table.shape[1]), {1: rank})
    call.fix(indices)
    return Labels.of(call.shape, [*[False] * rank, columns.uniform[rank]], columns.blocks)


@rule("index_select", "gather", "take_along_dim")
def pick(call: Call) -> Labels:
    """Pick positions along one dimension."""
    x, dim = call.layout("self"), call.arg("dim")
    indices = call.layout("index")
    dim = x.dim(dim)
    if call.name == "index_select" and call.arg("index").values is not None:
        call.fix(indices)
        return restrict(call.constraints, x, dim, call.arg("index").values.ravel())
    left = call.fix_dims(x, [dim])
    if call.name == "index_select":
        call.fix(indices)
        return Labels.of(call.shape, [flag and d != dim for d, flag in enumerate(left.uniform)], left.blocks)
    if any(m != n for d, (m, n) in enumerate(zip(x.shape, call.shape, strict=True)) if d != dim):
        call.fix(left, indices)
        return Labels.of(call.shape)
    index_left = call.fix_dims(indices, [dim])
    thin = [1 if d == dim else n for d, n in enumerate(call.shape)]
    both = call.unify(thin, [Labels.of(thin, y.uniform, y.blocks) for y in (left, index_left)])
    return Labels.of(call.shape, [flag and d != dim for d, flag in enumerate(both.uniform)], both.blocks)


@rule("index")
def index(call: Call) -> Labels:
    """Index dimensions by integer tensors: these dimensions are fixed. Masks fix everything."""
    x = call.layout("self")
    given = list(call.arg("indices"))
    dims = [d for d, i in enumerate(given) if i is not None]
    tensors = [i for i in given if isinstance(i, TensorRef)]
    call.fix(*[call.layout(i) for i in tensors])
    if any(i.dtype in (torch.bool, torch.uint8) for i in tensors):
        call.fix(x)
        return Labels.of(call.shape)
    if len(tensors) == 1 and tensors[0].values is not None:
        # The indices cannot move, so their values are those of every symmetric copy of the model.
        picked = restrict(call.constraints, x, dims[0], tensors[0].values.ravel())
        return reshape(call.constraints, picked, call.shape)
    left = call.fix_dims(x, dims)
    index_rank = max(i.rank for i in tensors)
    start = dims[0] if dims == list(range(dims[0], dims[0] + len(dims))) else 0
    others = [d for d in range(len(x.shape)) if d not in dims]
    front = [d for d in others if d < start] if start else []
    place = {d: i for i, d in enumerate(front)}
    place.update({d: len(front) + index_rank + i for i, d in enumerate(d for d in others if d not in front)})
    blocks = [
        LabelBlock(tuple(place[d] for d in b.dims), tuple(place[d] for d in b.context), b.atoms) for b in left.blocks
    ]
    uniform = [False] * len(call.shape)
    for d, new in place.items():
        uniform[new] = left.uniform[d]
    return Labels.of(call.shape, uniform, blocks)


@rule(
    "nonzero",
    "unique",
    "_unique2",
    "unique_consecutive",
    "bincount",
    "histc",
    "bucketize",
    "searchsorted",
    "masked_select",
    "one_hot",
)
def positions(call: Call) -> Sequence[Labels]:
    """Positions or counts that depend on every value's place."""
    call.fix(*call.operands())
    return call.fixed_outputs()
