"""Reductions: order-independent ones forget a dimension, ordered ones fix it."""

from __future__ import annotations

from collections.abc import Sequence

from alignkit.tracing.labels import combine
from alignkit.tracing.labels.tensor_labels import Labels
from alignkit.tracing.rules.table import Call, RuleSet

RULES = RuleSet()


@RULES.rule(
    "mean", "sum", "amax", "amin", "var", "var_mean", "std", "std_mean", "prod", "any", "all", "linalg_vector_norm",
    "norm", "logsumexp", "nansum", "count_nonzero", "aminmax",
)  # fmt: skip
def order_independent(call: Call) -> Sequence[Labels]:
    """Reduce dimensions; the result does not depend on the order along them."""
    x = call.labels("self")
    gone = call.dims(call.arg("dim"), len(x.shape))
    keep = bool(call.arg("keepdim", False))
    return [combine.reduce(call.constraints, x, gone, keep)] * len(call.outputs)


@RULES.rule("max", "min", "median", "nanmedian", "mode", "kthvalue")
def extreme(call: Call) -> Sequence[Labels]:
    """Compare two tensors elementwise, or reduce one; its position is returned too, so positions are fixed."""
    if isinstance(call.arg("other"), type(call.outputs[0])):
        return [call.unify(call.shape, call.operands())]
    x = call.labels("self")
    dim = call.arg("dim")
    if dim is None:
        return [combine.reduce(call.constraints, x, set(range(len(x.shape))), False)]
    free = call.fix_dims(x, [x.dim(dim)])
    return [combine.reduce(call.constraints, free, {x.dim(dim)}, bool(call.arg("keepdim")))] * len(call.outputs)


@RULES.rule("argmax", "argmin")
def position_of_extreme(call: Call) -> Labels:
    """Return the position of an extreme: positions along the dimension are fixed."""
    x, dim = call.labels("self"), call.arg("dim")
    if dim is None:
        call.fix(x)
        return Labels.of(call.shape)
    return combine.reduce(call.constraints, call.fix_dims(x, [x.dim(dim)]), {x.dim(dim)}, bool(call.arg("keepdim")))


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
