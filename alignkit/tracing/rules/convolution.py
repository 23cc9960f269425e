"""Convolutions of any dimension: plain, grouped, depthwise, transposed. Space is fixed."""

from __future__ import annotations

from alignkit.tracing.labels.combine import contract
from alignkit.tracing.labels.labels import Labels
from alignkit.tracing.labels.reshape import reshape
from alignkit.tracing.rules.table import Call, rule


@rule("convolution", "_convolution", "mkldnn_convolution", "convolution_overrideable", "cudnn_convolution")
def convolution(call: Call) -> Labels:
    """Seen as [batch, groups, out of a group, in of a group], a product that sums over the last."""
    x, weight, groups = call.layout("input"), call.layout("weight"), call.arg("groups", 1)
    transposed = bool(call.arg("transposed", False))
    batch, channels, *space = x.shape
    per_group_in, per_group_out = channels // groups, call.shape[1] // groups
    signal = _flat(call, x)
    signal = reshape(call.constraints, signal, (batch, groups, 1, per_group_in))
    filters = _flat(call, weight)
    if transposed:
        filters = reshape(call.constraints, filters, (1, groups, per_group_in, per_group_out))
        filters = filters.moved((1, groups, per_group_out, per_group_in), {0: 0, 1: 1, 2: 3, 3: 2})
    else:
        filters = reshape(call.constraints, filters, (1, groups, per_group_out, per_group_in))
    shape = (batch, groups, per_group_out, per_group_in)
    result = contract(call.constraints, [filters, signal], {3}, shape)
    result = reshape(call.constraints, result, (batch, call.shape[1]))
    place = {0: 0, 1: 1}
    thin = result.moved((batch, call.shape[1], *[1] * len(space)), place)
    bias = call.arg("bias")
    if bias is not None:
        offset = call.layout(bias)
        thin = call.unify(thin.shape, [thin, offset.moved((1, offset.shape[0], *[1] * len(space)), {0: 1})])
    return Labels.of(call.shape, (*thin.uniform[:2], *[False] * len(space)), thin.blocks)


def _flat(call: Call, x: Labels) -> Labels:
    """Fix the dimensions of space and leave them out."""
    left = call.fix_dims(x, range(2, len(x.shape)))
    blocks = [b for b in left.blocks if not set(b.span) - {0, 1}]
    return Labels.of(x.shape[:2], left.uniform[:2], blocks)
