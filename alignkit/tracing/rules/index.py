"""Look-ups by computed positions, and positions themselves.

What is indexed is fixed, unless the positions are numbers of the units that stand there. The other dimensions pass
through.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from alignkit.tracing.labels.combine import drop
from alignkit.tracing.labels.picking import can_pick, pick, units_along
from alignkit.tracing.labels.reshape import reshape
from alignkit.tracing.labels.tensor_labels import Choice, Labels
from alignkit.tracing.recording.recorder import TensorRef
from alignkit.tracing.rules.table import Call, RuleSet

RULES = RuleSet()


@RULES.rule("embedding")
def embedding(call: Call) -> Labels:
    """Look up rows of a table."""
    return _look_up(call, "weight", 0, call.arg("indices"))


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


@RULES.rule("index_select")
def index_select(call: Call) -> Labels:
    """Pick positions along one dimension."""
    indices: TensorRef = call.arg("index")
    dim = call.arg("dim") % len(call.arg("self").shape)
    if indices.values is None:
        return _look_up(call, "self", dim, indices)
    call.fix(call.labels(indices))
    return call.pick(call.labels("self"), dim, indices.values.ravel())


@RULES.rule("gather", "take_along_dim")
def gather(call: Call) -> Labels:
    """Pick a position along one dimension for each element of an index."""
    x, (indices, choice) = call.labels("self"), call.chosen("index")
    dim = x.dim(call.arg("dim"))
    if any(m != n for d, (m, n) in enumerate(zip(x.shape, call.shape, strict=True)) if d != dim):
        call.constraints.fix_choice(choice)
        return call.fix(x, indices)
    free = _meet_units(call, x, dim, choice)
    thin = [1 if d == dim else n for d, n in enumerate(call.shape)]
    operands = [Labels.of(thin, y.uniform, y.blocks) for y in (free, call.fix_dims(indices, [dim]))]
    return call.unify(thin, operands).with_fixed([dim], call.shape)


@RULES.rule("index")
def index(call: Call) -> Labels:
    """Index dimensions by integer tensors or one mask. Several masks fix everything."""
    indices = list(call.arg("indices"))
    dims = [d for d, i in enumerate(indices) if i is not None]
    tensors = [i for i in indices if isinstance(i, TensorRef)]
    masks = any(i.dtype in (torch.bool, torch.uint8) for i in tensors)
    if len(tensors) == 1 and not masks and tensors[0].values is None:
        return _look_up(call, "self", dims[0], tensors[0])
    x = call.labels("self")
    rank = max(len(i.shape) for i in tensors)
    if masks:
        call.fix(*[call.labels(i) for i in tensors])
        if len(tensors) > 1:
            return call.fix(x)
        dims, rank = [dims[0] + d for d in range(rank)], 1
    elif len(tensors) == 1 and tensors[0].values is not None:
        call.fix(call.labels(tensors[0]))
        # The indices cannot move, so their values are those of every symmetric copy of the model.
        picked = call.pick(x, dims[0], tensors[0].values.ravel())
        return reshape(call.constraints, picked, call.shape)
    else:
        for dim, tensor in zip(dims, tensors, strict=True):
            labels, choice = call.chosen(tensor)
            call.fix(labels)
            x = _meet_units(call, x, dim, choice)
    # The dimensions of the indices take the position of adjacent `dims`; if others lie between, they go in front.
    adjacent = dims == list(range(dims[0], dims[0] + len(dims)))
    new_dim: dict[int, int] = {}
    for d in range(len(x.shape)):
        if d not in dims:
            new_dim[d] = len(new_dim) + (0 if adjacent and d < dims[0] else rank)
    inserted = set(range(len(call.shape))) - set(new_dim.values())
    return call.fix_dims(x, dims).move_dims(call.shape, new_dim).with_fixed(inserted, call.shape)


def _look_up(call: Call, argument: str, dim: int, indices: TensorRef) -> Labels:
    """Pick positions along one dimension by the numbers in a tensor, whose dimensions take its place.

    Where the numbers are those of units along it, the result has the units of those that are picked. Else which
    position is which matters. Other dimensions pass through, those of the numbers too.
    """
    c = call.constraints
    (x, said), (numbers, choice) = call.chosen(argument), call.chosen(indices)
    count = len(numbers.shape)
    if choice is not None and can_pick(x, dim, choice):
        picked = pick(c, x, dim, choice)
    else:
        c.fix_choice(choice)
        others = [d for d in range(len(x.shape)) if d != dim]
        shape = (*numbers.shape, *(x.shape[d] for d in others))
        free = call.fix_dims(x, [dim]).move_dims(shape, {d: count + i for i, d in enumerate(others)})
        picked = free.with_fixed(range(count), shape)
    picked = Labels.of(picked.shape, picked.uniform, [*picked.blocks, *numbers.blocks])
    result = picked.permute([*range(count, count + dim), *range(count), *range(count + dim, len(picked.shape))])
    if said is None or said.kind != "position":
        c.fix_choice(said)
        return result
    made = c.stand_ins.new_choices(call.shape)
    if choice is not None and choice.kind == "order" and said.made.shape == choice.made.shape:
        made = c.stand_ins.in_order(said.made, choice.atoms)
    return result.saying(Choice("position", said.atoms, made))


def _meet_units(call: Call, x: Labels, dim: int, choice: Choice | None) -> Labels:
    """Return labels without those along a dimension of which a choice says the units, or whose positions are fixed."""
    alone = all(block.dims == (dim,) or dim not in block.span for block in x.blocks)
    if choice is None or not alone or not can_pick(x, dim, choice):
        call.constraints.fix_choice(choice)
        return call.fix_dims(x, [dim])
    units = units_along(x, dim)
    if units is not None:
        call.constraints.merge(units, choice.atoms)
    return x.with_blocks(drop(call.constraints, x, {dim}))


@RULES.rule("nonzero", "unique", "_unique2", "unique_consecutive", "bucketize", "searchsorted",
            "masked_select", "one_hot", "arange", "linspace", "logspace", "randn", "rand", "randint", "eye",
            "tril_indices", "triu_indices", "randperm", "normal", "uniform", "bernoulli", "rand_like", "randn_like",
            "randint_like", "hann_window", "hamming_window", "multinomial", "exponential",
            "_efficientzerotensor")  # fmt: skip
def distinct(call: Call) -> Sequence[Labels]:
    """Return values that tell positions apart, whatever the operands: places, counts, ranges, random numbers."""
    call.fix(*call.operands())
    return call.fixed_outputs()
