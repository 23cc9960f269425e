"""Reductions and normalisations: order-independent ones forget a dimension, ordered ones fix it."""

from __future__ import annotations

from collections.abc import Sequence

from alignkit.tracing.labels import combine
from alignkit.tracing.labels.reshape import reshape
from alignkit.tracing.labels.tensor_labels import Labels
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
    """Compare two tensors elementwise, or reduce one; where its position is returned, positions are fixed."""
    if isinstance(call.arg("other"), TensorRef):
        return [call.unify(call.shape, call.operands())]
    x = call.labels("self")
    gone = call.dims(call.arg("dim"), len(x.shape))
    if call.arg("dim") is not None:
        x = call.fix_dims(x, gone)
    elif call.name.startswith("arg"):
        call.fix(x)
    return [combine.reduce(call.constraints, x, gone, bool(call.arg("keepdim")))] * len(call.outputs)


@RULES.rule("cumsum", "cumprod", "logcumsumexp", "sort", "argsort", "topk", "cummax", "cummin")
def ordered(call: Call) -> Sequence[Labels]:
    """Sort or accumulate along a dimension: its positions are fixed, the others pass through."""
    x = call.labels("self")
    if not x.shape:
        return call.fixed_outputs()
    dim = x.dim(call.arg("dim", -1))
    free = call.fix_dims(x, [dim])
    return [free.with_fixed([dim], ref.shape) for ref in call.outputs]


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
    return [labels, *call.fixed_outputs()[1:]]


@RULES.rule("native_group_norm")
def group_norm(call: Call) -> Sequence[Labels]:
    """Normalise over groups of channels and all other dimensions but the first."""
    labels, groups = _scale_channels(call, "weight", "bias"), call.arg("group")
    batch, channels, *space = labels.shape
    apart = reshape(call.constraints, labels, (batch, groups, channels // groups, *space))
    combine.drop(call.constraints, apart, set(range(2, len(apart.shape))))
    return [labels, *call.fixed_outputs()[1:]]


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
    combine.drop(call.constraints, labels, set(range(rank - count, rank)))
    return [labels, *call.fixed_outputs()[1:]]


@RULES.rule("_weight_norm_interface", "_weight_norm")
def weight_norm(call: Call) -> Sequence[Labels]:
    """Scale a direction by a length for each position along one dimension."""
    v, g = call.labels("v"), call.labels("g")
    dim, rank = v.dim(call.arg("dim", 0)), len(v.shape)
    labels = call.unify(v.shape, [v, g.along(dim, rank) if len(g.shape) == 1 < rank else g])
    combine.drop(call.constraints, labels, set(range(rank)) - {dim})
    return [labels, *call.fixed_outputs()[1:]]
