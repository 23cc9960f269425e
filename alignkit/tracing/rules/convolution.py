"""Convolutions of any dimension: plain, grouped, depthwise, transposed. Space is fixed."""

from __future__ import annotations

from alignkit.tracing.labels.combine import contract
from alignkit.tracing.labels.reshape import reshape
from alignkit.tracing.labels.tensor_labels import Labels
from alignkit.tracing.rules.table import Call, RuleSet

RULES = RuleSet()


@RULES.rule("convolution", "_convolution", "mkldnn_convolution", "convolution_overrideable", "cudnn_convolution")
def convolution(call: Call) -> Labels:
    """Multiply in coordinates [batch, groups, outputs of a group, inputs of a group], and sum over the last."""
    x, weight, groups = call.labels("input"), call.labels("weight"), call.arg("groups", 1)
    transposed = bool(call.arg("transposed", False))
    batch, channels, *space = x.shape
    per_group_in, per_group_out = channels // groups, call.shape[1] // groups
    signal = reshape(call.constraints, _drop_space(call, x), (batch, groups, 1, per_group_in))
    filters = _drop_space(call, weight)
    if transposed:
        filters = reshape(call.constraints, filters, (1, groups, per_group_in, per_group_out))
        filters = filters.move_dims((1, groups, per_group_out, per_group_in), {0: 0, 1: 1, 2: 3, 3: 2})
    else:
        filters = reshape(call.constraints, filters, (1, groups, per_group_out, per_group_in))
    shape = (batch, groups, per_group_out, per_group_in)
    result = contract(call.constraints, [filters, signal], {3}, shape)
    result = reshape(call.constraints, result, (batch, call.shape[1]))
    result = result.move_dims((batch, call.shape[1], *[1] * len(space)), {0: 0, 1: 1})
    bias = call.arg("bias")
    if bias is not None:
        offset = call.labels(bias)
        result = call.unify(result.shape, [result, offset.move_dims((1, offset.shape[0], *[1] * len(space)), {0: 1})])
    return Labels.of(call.shape, (*result.uniform[:2], *[False] * len(space)), result.blocks)


def _drop_space(call: Call, x: Labels) -> Labels:
    """Fix the dimensions of space and leave them out."""
    x = call.fix_dims(x, range(2, len(x.shape)))
    return Labels.of(x.shape[:2], x.uniform[:2], x.blocks)
