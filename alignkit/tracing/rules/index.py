"""Look-ups by computed positions: what is indexed is fixed, the other dimensions pass through. Positions themselves."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from alignkit.tracing.labels.reshape import reshape
from alignkit.tracing.labels.tensor_labels import Labels
from alignkit.tracing.recording.recorder import TensorRef
from alignkit.tracing.rules.table import Call, RuleSet

RULES = RuleSet()


@RULES.rule("embedding")
def embedding(call: Call) -> Labels:
    """Look up rows of a table: which row is which matters, the columns pass through."""
    table, indices = call.labels("weight"), call.labels("indices")
    rank = len(indices.shape)
    row = call.fix_dims(table, [0]).permute((1,))
    call.fix(indices)
    return row.along(rank, rank + 1).with_fixed(range(rank), call.shape)


@RULES.rule("_embedding_bag", "_embedding_bag_forward_only")
def embedding_bag(call: Call) -> Sequence[Labels]:
    """Sum, average or maximise rows of a table: which row is which matters, the columns pass through."""
    call.fix(*call.labels_of_tensors("indices", "offsets", "per_sample_weights"))
    row = call.fix_dims(call.labels("weight"), [0]).permute((1,))
    return call.first_output(row.along(1, 2).with_fixed([0], call.shape))


@RULES.rule("_pack_padded_sequence")
def pack(call: Call) -> Sequence[Labels]:
    """Lay sequences of a batch into one, step by step; positions in it are fixed, units pass through."""
    x = call.fix_dims(call.labels("input"), [0, 1])
    call.fix(call.labels("lengths"))
    rows = x.permute(range(1, len(x.shape))).with_fixed([0], call.shape)
    return [rows, *call.fixed_outputs()[1:]]


@RULES.rule("index_select", "gather", "take_along_dim")
def pick(call: Call) -> Labels:
    """Pick positions along one dimension."""
    x, indices = call.labels("self"), call.labels("index")
    dim = x.dim(call.arg("dim"))
    if call.name == "index_select":
        call.fix(indices)
        values = call.arg("index").values
        if values is not None:
            return call.pick(x, dim, values.ravel())
        return call.fix_dims(x, [dim], call.shape)
    free = call.fix_dims(x, [dim])
    if any(m != n for d, (m, n) in enumerate(zip(x.shape, call.shape, strict=True)) if d != dim):
        return call.fix(free, indices)
    thin = [1 if d == dim else n for d, n in enumerate(call.shape)]
    operands = [Labels.of(thin, y.uniform, y.blocks) for y in (free, call.fix_dims(indices, [dim]))]
    return call.unify(thin, operands).with_fixed([dim], call.shape)


@RULES.rule("index")
def index(call: Call) -> Labels:
    """Index dimensions by integer tensors or one mask: these dimensions are fixed. Several masks fix everything."""
    x = call.labels("self")
    indices = list(call.arg("indices"))
    dims = [d for d, i in enumerate(indices) if i is not None]
    tensors = [i for i in indices if isinstance(i, TensorRef)]
    call.fix(*[call.labels(i) for i in tensors])
    rank = max(len(i.shape) for i in tensors)
    if any(i.dtype in (torch.bool, torch.uint8) for i in tensors):
        if len(tensors) > 1:
            return call.fix(x)
        dims, rank = [dims[0] + d for d in range(rank)], 1
    elif len(tensors) == 1 and tensors[0].values is not None:
        # The indices cannot move, so their values are those of every symmetric copy of the model.
        picked = call.pick(x, dims[0], tensors[0].values.ravel())
        return reshape(call.constraints, picked, call.shape)
    # The dimensions of the indices take the position of adjacent `dims`; if others lie between, they go in front.
    adjacent = dims == list(range(dims[0], dims[0] + len(dims)))
    new_dim: dict[int, int] = {}
    for d in range(len(x.shape)):
        if d not in dims:
            new_dim[d] = len(new_dim) + (0 if adjacent and d < dims[0] else rank)
    inserted = set(range(len(call.shape))) - set(new_dim.values())
    return call.fix_dims(x, dims).move_dims(call.shape, new_dim).with_fixed(inserted, call.shape)


@RULES.rule("nonzero", "unique", "_unique2", "unique_consecutive", "bincount", "histc", "bucketize", "searchsorted",
            "masked_select", "one_hot", "arange", "linspace", "logspace", "randn", "rand", "randint", "eye",
            "tril_indices", "triu_indices", "randperm", "normal", "uniform", "bernoulli", "rand_like", "randn_like",
            "randint_like", "hann_window", "hamming_window", "multinomial", "exponential",
            "_efficientzerotensor")  # fmt: skip
def distinct(call: Call) -> Sequence[Labels]:
    """Return values that tell positions apart, whatever the operands: places, counts, ranges, random numbers."""
    call.fix(*call.operands())
    return call.fixed_outputs()
