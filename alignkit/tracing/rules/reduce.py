"""Reductions: order-independent ones forget a dimension, ordered ones fix it."""

from __future__ import annotations

from collections.abc import Sequence

from alignkit.tracing.labels import combine
from alignkit.tracing.labels.labels import Labels
from alignkit.tracing.rules.table import Call, rule


@rule(
    "mean", "sum", "amax", "amin", "var", "var_mean", "std", "std_mean", "prod", "any", "all", "linalg_vector_norm",
    "norm", "logsumexp", "nansum", "count_nonzero", "aminmax",
)  # fmt: skip
def order_independent(call: Call) -> Sequence[Labels]:
    """The result does not depend on the order along the reduced dimensions."""
    x = call.layout("self")
    gone = call.dims(call.arg("dim"), len(x.shape))
    keep = bool(call.arg("keepdim", False))
    return [combine.reduce(call.constraints, x, gone, keep)] * len(call.outputs)


@rule("max", "min", "median", "nanmedian", "mode", "kthvalue")
def extreme(call: Call) -> Sequence[Labels]:
    """Elementwise with two tensors, a reduction with one; a place that is returned is a fixed position."""
    if isinstance(call.arg("other"), type(call.outputs[0])):
        return [call.unify(call.shape, call.operands())]
    x = call.layout("self")
    dim = call.arg("dim")
    if dim is None:
        return [combine.reduce(call.constraints, x, set(range(len(x.shape))), False)]
    left = call.fix_dims(x, [x.dim(dim)])
    return [combine.reduce(call.constraints, left, {x.dim(dim)}, bool(call.arg("keepdim")))] * len(call.outputs)


@rule("argmax", "argmin")
def place_of_extreme(call: Call) -> Labels:
    """The place of an extreme: positions along the dimension are fixed."""
    x, dim = call.layout("self"), call.arg("dim")
    if dim is None:
        call.fix(x)
        return Labels.of(call.shape)
    return combine.reduce(call.constraints, call.fix_dims(x, [x.dim(dim)]), {x.dim(dim)}, bool(call.arg("keepdim")))


@rule("cumsum", "cumprod", "logcumsumexp", "sort", "argsort", "topk", "cummax", "cummin")
def ordered(call: Call) -> Sequence[Labels]:
    """Positions along the dimension are fixed; the others keep their labels."""
    x = call.layout("self")
    if not x.shape:
        return call.fixed_outputs()
    dim = x.dim(call.arg("dim", -1))
    left = call.fix_dims(x, [dim])
    return [
        Labels.of(ref.shape, [flag and d != dim for d, flag in enumerate(left.uniform)], left.blocks)
        for ref in call.outputs
    ]


@rule("_softmax", "_log_softmax", "softmax", "log_softmax", "_safe_softmax")
def softmax(call: Call) -> Labels:
    """Normalise along a dimension: equivariant."""
    x = call.layout("self")
    combine.drop(call.constraints, x, {x.dim(call.arg("dim"))})
    return x
