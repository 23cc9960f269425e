"""Reductions and normalisations: order-independent ones forget a dimension, ordered ones fix it."""

from __future__ import annotations

from collections.abc import Sequence

from alignkit.tracing.labels import combine
from alignkit.tracing.labels.picking import choose, units_of
from alignkit.tracing.labels.reshape import reshape
from alignkit.tracing.labels.tensor_labels import Choice, LabelBlock, Labels
from alignkit.tracing.recording.recorder import TensorRef
from alignkit.tracing.rules.table import Call, RuleSet

RULES = RuleSet()


@RULES.rule("mean", "sum", "amax", "amin", "var", "var_mean", "std", "std_mean", "prod", "any", "all",
            "linalg_vector_norm", "norm", "logsumexp", "nansum", "count_nonzero", "aminmax")  # fmt: skip
def order_independent(call: Call) -> Sequence[Labels]:
    """Reduce dimensions; the result does not depend on the order along them."""
    x = call.labels("self")
    gone = call.dims(call.arg("dim"), len(x.shape))
    return [combine.reduce(call.constraints, x, gone, bool(call.arg("keepdim", False)))] * len(call.outputs)


@RULES.rule("max", "min", "median", "nanmedian", "mode", "kthvalue", "argmax", "argmin")
def extreme(call: Call) -> Sequence[Labels]:
    """Compare two tensors elementwise, or reduce one; where the place of the value is read, positions are fixed."""
    if isinstance(call.arg("other"), TensorRef):
        return [call.unify(call.shape, call.operands())]
    c, x = call.constraints, call.labels("self")
    gone, keep_dim = call.dims(call.arg("dim"), len(x.shape)), bool(call.arg("keepdim"))
    gives_place = call.name.startswith("arg") or (call.is_used(1) and len(call.outputs) > 1)
    numbers = None
    if gives_place and call.name != "mode" and len(gone) == 1:
        numbers = choose(c, x, min(gone), call.outputs[-1].shape, keep_dim)
    if numbers is None and (call.name == "mode" or gives_place):  # which of several modes depends on the order
        x = call.fix_dims(x, gone)
    values = combine.reduce(c, x, gone, keep_dim)
    return [values] * len(call.outputs) if numbers is None else [*[values] * (len(call.outputs) - 1), numbers]


@RULES.rule("sort", "argsort", "topk")
def ordered(call: Call) -> Sequence[Labels]:
    """Sort a dimension: positions of the result are fixed, other dimensions pass through.

    Sorted values do not depend on the order that they had, and their places are numbers of the units that stand there.
    Numbers of units are another case: they come in the order of these.
    """
    c, (x, choice) = call.constraints, call.chosen("self")
    count = len(call.outputs)
    if choice is not None and choice.kind == "position" and len(x.shape) == 1 < x.shape[0] and not x.blocks:
        rows = c.stand_ins.sort(choice)
        sorted_rows = Labels.of(call.shape, (), [LabelBlock((0,), (), rows)])
        said = [
            Choice("position", choice.atoms, c.stand_ins.in_order(choice.made, rows)),
            Choice("order", rows, choice.made),
        ]
        return [sorted_rows.saying(each) for each in said[-count:]]
    c.fix_choice(choice)
    if not x.shape:
        return call.fixed_outputs()
    dim = x.dim(call.arg("dim", -1))
    gives_place = call.name == "argsort" or call.is_used(1)
    numbers = choose(c, x, dim, call.outputs[-1].shape) if gives_place else None
    if numbers is None:
        free = call.fix_dims(x, [dim]) if gives_place else x.with_blocks(combine.drop(c, x, {dim}))
        return [free.with_fixed([dim], call.shape)] * count
    return [numbers.saying(None), numbers][-count:]


@RULES.rule("cumsum", "cumprod", "logcumsumexp", "cummax", "cummin")
def accumulated(call: Call) -> Sequence[Labels]:
    """Accumulate along a dimension: positions are fixed, other dimensions pass through.

    Counts of units, added up, say where the rows of each unit end that are sorted by their numbers.
    """
    x, choice = call.chosen("self")
    if not x.shape:
        return call.fixed_outputs()
    if choice is not None and choice.kind == "count" and call.name == "cumsum":
        combine.drop(call.constraints, x, {0})
        return [Labels.of(call.shape).saying(Choice("end", choice.atoms, choice.made))]
    call.constraints.fix_choice(choice)
    dim = x.dim(call.arg("dim", -1))
    free = call.fix_dims(x, [dim])
    return [free.with_fixed([dim], ref.shape) for ref in call.outputs]


@RULES.rule("histc", "bincount")
def count(call: Call) -> Labels:
    """Count numbers: of units, if there is one bin for each."""
    c, (x, choice) = call.constraints, call.chosen("self")
    size = call.shape[0]
    bins_fit = call.name == "bincount" or (call.arg("min"), call.arg("max")) == (0, size - 1)
    is_weighted = call.name == "bincount" and call.arg("weights") is not None
    if choice is None or choice.kind != "position" or not bins_fit or is_weighted or size != len(choice.atoms):
        c.fix_choice(choice)
        return call.fix(x, *call.labels_of_tensors("weights"))
    combine.drop(c, x, set(range(len(x.shape))))
    c.colour(choice.atoms)
    return units_of(choice).saying(Choice("count", choice.atoms, choice.made))


@RULES.rule("renorm")
def renorm(call: Call) -> Labels:
    """Shorten the vector at each position of one dimension."""
    x = call.labels("self")
    combine.drop(call.constraints, x, set(range(len(x.shape))) - {x.dim(call.arg("dim"))})
    return x


@RULES.rule("embedding_renorm")
def embedding_renorm(call: Call) -> Labels:
    """Shorten some rows of a table; which row is which matters."""
    call.fix(call.labels("indices"))
    x = call.fix_dims(call.labels("self"), [0], call.shape)
    combine.drop(call.constraints, x, {1})
    return x


@RULES.rule("_softmax", "_log_softmax", "softmax", "log_softmax", "_safe_softmax")
def softmax(call: Call) -> Labels:
    """Normalise along a dimension: equivariant."""
    x = call.labels("self")
    combine.drop(call.constraints, x, {x.dim(call.arg("dim"))})
    return x


@RULES.rule("native_batch_norm", "_native_batch_norm_legit_no_training", "_native_batch_norm_legit", "cudnn_batch_norm",
            "miopen_batch_norm", "_batch_norm_impl_index", "_batch_norm_no_update",
            "_batch_norm_with_update")  # fmt: skip
def batch_norm(call: Call) -> Sequence[Labels]:
    """Normalise each channel. Batch statistics sum over the other dimensions."""
    labels = _scale_channels(call, "weight", "bias", "running_mean", "running_var")
    combine.drop(call.constraints, labels, set(range(len(labels.shape))) - {1})
    return call.first_output(labels)


@RULES.rule("native_group_norm")
def group_norm(call: Call) -> Sequence[Labels]:
    """Normalise over groups of channels and all other dimensions but the first."""
    labels, groups = _scale_channels(call, "weight", "bias"), call.arg("group")
    batch, channels, *space = labels.shape
    apart = reshape(call.constraints, labels, (batch, groups, channels // groups, *space))
    combine.drop(call.constraints, apart, set(range(2, len(apart.shape))))
    return call.first_output(labels)


def _scale_channels(call: Call, *names: str) -> Labels:
    """Align the input with one-dimensional tensors that belong to its dimension 1."""
    x = call.labels("input")
    return call.unify(x.shape, [x, *[tensor.along(1, len(x.shape)) for tensor in call.labels_of_tensors(*names)]])


@RULES.rule("native_layer_norm", "_fused_rms_norm", "rms_norm")
def layer_norm(call: Call) -> Sequence[Labels]:
    """Normalise over the last dimensions."""
    x = call.labels("input")
    rank, count = len(x.shape), len(call.arg("normalized_shape"))
    labels = call.unify(x.shape, [x, *call.labels_of_tensors("weight", "bias")])
    lengths = combine.reduce(call.constraints, labels, set(range(rank - count, rank)), keep_dims=True)
    return [labels, *[lengths if call.is_used(i) else call.fixed_outputs()[i] for i in range(1, len(call.outputs))]]


@RULES.rule("native_layer_norm_backward", "_softmax_backward_data", "_log_softmax_backward_data")
def norm_backward(call: Call) -> Sequence[Labels]:
    """Differentiate a norm over some dimensions by its input: equivariant, as the norm is."""
    rank = len(call.shape)
    labels = call.unify(call.shape, [x.pad_rank(rank) for x in call.operands()])
    last = call.arg("normalized_shape")
    gone = {labels.dim(call.arg("dim"))} if last is None else set(range(rank - len(last), rank))
    combine.drop(call.constraints, labels, gone)
    return call.first_output(labels)


@RULES.rule("_weight_norm_interface", "_weight_norm")
def weight_norm(call: Call) -> Sequence[Labels]:
    """Scale a direction by a length for each position along one dimension."""
    v, g = call.labels("v"), call.labels("g")
    dim, rank = v.dim(call.arg("dim", 0)), len(v.shape)
    labels = call.unify(v.shape, [v, g.along(dim, rank) if len(g.shape) == 1 < rank else g])
    combine.drop(call.constraints, labels, set(range(rank)) - {dim})
    return call.first_output(labels)
