"""Ops that rename, join, split, repeat or pick positions without touching values."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from alignkit.tracing.labels.combine import concatenate, stack
from alignkit.tracing.labels.picking import can_pick, pick, units_along
from alignkit.tracing.labels.reshape import repeat_each, reshape
from alignkit.tracing.labels.tensor_labels import Choice, LabelBlock, Labels
from alignkit.tracing.recording.recorder import TensorRef
from alignkit.tracing.rules.table import Call, RuleSet

RULES = RuleSet()


@RULES.rule("view", "_unsafe_view", "reshape", "_reshape_alias", "flatten", "unflatten")
def view(call: Call) -> Labels:
    """Join and split dimensions. `view.dtype` of equal element size leaves the shape alone."""
    return reshape(call.constraints, call.labels("self"), call.shape)


@RULES.rule("view_as_complex")
def view_as_complex(call: Call) -> Labels:
    """Make complex numbers of the two positions of the last dimension, which are told apart."""
    x = call.labels("self")
    return call.fix_dims(x, [len(x.shape) - 1]).permute(range(len(x.shape) - 1))


@RULES.rule("view_as_real")
def view_as_real(call: Call) -> Labels:
    """Lay the real and the imaginary part beside each other, along a new last dimension."""
    rank = len(call.shape) - 1
    return call.labels("self").insert_dim(rank, 2).with_fixed([rank], call.shape)


@RULES.rule("t", "t_copy", "numpy_T", "transpose", "transpose_copy", "swapaxes", "mT", "permute", "permute_copy")
def permute(call: Call) -> Labels:
    """Reorder dimensions."""
    x = call.labels("self")
    order = list(range(len(x.shape)))
    if call.name in ("permute", "permute_copy"):
        order = [x.dim(d) for d in call.arg("dims")]
    elif call.name in ("t", "t_copy", "numpy_T"):
        order.reverse()
    else:
        i, j = (-2, -1) if call.name == "mT" else (x.dim(call.arg("dim0")), x.dim(call.arg("dim1")))
        order[i], order[j] = order[j], order[i]
    return x.permute(order)


@RULES.rule("unsqueeze")
def unsqueeze(call: Call) -> Labels:
    """Insert a dimension of size 1."""
    return call.labels("self").insert_dim(call.arg("dim") % len(call.shape))


@RULES.rule("squeeze")
def squeeze(call: Call) -> Labels:
    """Remove dimensions of size 1."""
    x = call.labels("self")
    gone = {d for d in call.dims(call.arg("dim"), len(x.shape)) if x.shape[d] == 1}
    return x.squeeze(gone).permute([d for d in range(len(x.shape)) if d not in gone])


@RULES.rule("expand", "expand_as", "broadcast_to", "expand_copy")
def expand(call: Call) -> Labels:
    """Repeat dimensions of size 1: the result is uniform along them."""
    x = call.labels("self").pad_rank(len(call.shape))
    grown = [d for d, n in enumerate(call.shape) if n != x.shape[d]]
    return Labels.of(call.shape, [d in grown or flag for d, flag in enumerate(x.uniform)], x.squeeze(grown).blocks)


@RULES.rule("repeat", "tile")
def repeat(call: Call) -> Labels:
    """Lay copies end to end."""
    x = call.labels("self").pad_rank(len(call.shape))
    times = [n // max(m, 1) for n, m in zip(call.shape, x.shape, strict=True)]
    blocks = [LabelBlock(b.dims, b.context, np.tile(b.atoms, [times[d] for d in b.span])) for b in x.blocks]
    return Labels.of(call.shape, x.uniform, blocks)


@RULES.rule("repeat_interleave")
def repeat_interleave(call: Call) -> Labels:
    """Repeat each position: every unit owns a run of equal values."""
    x, times, dim = call.labels("self"), call.arg("repeats"), call.arg("dim")
    if not isinstance(times, int) or dim is None:
        return call.fix(x)
    return repeat_each(call.constraints, x, x.dim(dim), times)


@RULES.rule("select", "unbind")
def select(call: Call) -> Sequence[Labels]:
    """Pick one position, or each in turn: it must stay, even if no dimension of its block is left."""
    x = call.labels("self")
    dim = x.dim(call.arg("dim", 0))
    others = [d for d in range(len(x.shape)) if d != dim]
    if call.step.position is not None:
        return [_select_by_value(call, x, dim, *call.step.position)]
    if call.name == "select":
        picked = [call.pick(x, dim, np.array([call.arg("index") % x.shape[dim]]))]
    else:
        picked = call.cut(x, dim, [np.array([position]) for position in range(x.shape[dim])])
    return [one_position.squeeze([dim]).permute(others) for one_position in picked]


def _select_by_value(call: Call, x: Labels, dim: int, index: TensorRef, content: int) -> Labels:
    """Pick the position that stands in a tensor of no dimensions, the number of a unit or any other."""
    c, (_, choice) = call.constraints, call.chosen(index)
    if choice is None or not can_pick(x, dim, choice):
        c.fix_choice(choice)
        units = units_along(x, dim)
        if units is None:
            return call.fix_dims(x, [dim]).permute([d for d in range(len(x.shape)) if d != dim])
        c.fix(units)
        choice = Choice("position", units, c.stand_ins.read(content))
    return pick(c, x, dim, choice)


@RULES.rule("slice", "slice_copy", "narrow")
def slice_(call: Call) -> Labels:
    """Pick a range of positions, given by its ends, or by its start and length."""
    x = call.labels("self")
    dim = x.dim(call.arg("dim", 0))
    start, end, size = call.arg("start"), call.arg("end"), x.shape[dim]
    if call.name == "narrow":
        start %= max(size, 1)
        end = start + call.arg("length")
    index = np.arange(size)[start : end : call.arg("step", 1)]
    return x if len(index) == size else call.pick(x, dim, index)


@RULES.rule("split", "split_with_sizes", "chunk", "unsafe_split", "unsafe_chunk", "tensor_split",
            "unsafe_split_with_sizes", "split_copy")  # fmt: skip
def split(call: Call) -> Sequence[Labels]:
    """Cut into pieces; the sizes are those of the outputs."""
    x = call.labels("self")
    dim = x.dim(call.arg("dim", 0))
    ends = np.cumsum([ref.shape[dim] for ref in call.outputs])
    pieces = [np.arange(end - ref.shape[dim], end) for end, ref in zip(ends, call.outputs, strict=True)]
    return call.cut(x, dim, pieces)


@RULES.rule("flip")
def flip(call: Call) -> Labels:
    """Reverse dimensions."""
    x = call.labels("self")
    for dim in call.arg("dims"):
        x = x.index_select(x.dim(dim), np.arange(x.shape[dim])[::-1])
    return x


@RULES.rule("roll")
def roll(call: Call) -> Labels:
    """Move positions around a circle."""
    x, dims = call.labels("self"), call.arg("dims")
    if not dims:
        return call.fix(x)
    for shift, dim in zip(call.arg("shifts"), dims, strict=True):
        size = x.shape[dim]
        x = x.index_select(x.dim(dim), (np.arange(size) - shift) % size)
    return x


@RULES.rule("as_strided")
def as_strided(call: Call) -> Labels:
    """Reinterpret the storage: known only where all elements stay (kernels rewrite strides of size-1 dimensions)."""
    x = call.labels("self")
    return x if call.step.inputs[0].key == call.outputs[0].key else call.fix(x)


@RULES.rule("diagonal")
def diagonal(call: Call) -> Labels:
    """Take a whole diagonal, whose rows and columns move together; it becomes the last dimension."""
    x = call.labels("self")
    first, second = x.dim(call.arg("dim1", 0)), x.dim(call.arg("dim2", 1))
    if call.arg("offset", 0) or x.shape[first] != x.shape[second]:
        return call.fix(x)
    order = list(range(len(x.shape)))
    order[first], order[second] = second, first
    both = call.unify(x.shape, [x, x.permute(order)])
    if any({first, second} & set(b.span) and len(b.span) > 1 for b in both.blocks):
        return call.fix(both)
    blocks = [b for b in both.blocks if second not in b.dims]
    thin = Labels.of([1 if d == second else n for d, n in enumerate(x.shape)], both.uniform, blocks)
    return thin.permute([*(d for d in range(len(x.shape)) if d not in (first, second)), first])


@RULES.rule("cat", "concat", "concatenate")
def cat(call: Call) -> Labels:
    """Lay tensors end to end. Empty one-dimensional operands are ignored, as torch does."""
    operands = [call.labels(ref) for ref in call.step.inputs if ref.shape != (0,)]
    dim = call.arg("dim", 0) % len(call.shape)
    return concatenate(call.constraints, operands, dim)


@RULES.rule("stack")
def stack_(call: Call) -> Labels:
    """Lay tensors beside each other along a new dimension."""
    return stack(call.constraints, call.operands(), call.arg("dim", 0) % len(call.shape))
