"""Elementwise ops, and the fused cells made of them: every operand has the labels of the result."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from alignkit.tracing.labels.combine import restrict
from alignkit.tracing.labels.picking import units_of
from alignkit.tracing.labels.tensor_labels import Labels
from alignkit.tracing.rules.table import Call, RuleSet

RULES = RuleSet()

_ELEMENTWISE = """
    add sub mul div rsub pow maximum minimum where fmin fmax relu sigmoid tanh exp log sqrt rsqrt neg abs silu gelu
    hardswish hardsigmoid hardtanh clamp clamp_min clamp_max leaky_relu elu mish softplus softsign erf erfc sin cos
    tan asin acos atan atan2 sinh cosh reciprocal sign sgn square cube masked_fill _to_copy clone detach alias
    lift_fresh lift contiguous lt gt le ge logical_and logical_or logical_not logical_xor bitwise_and
    bitwise_or bitwise_not bitwise_xor floor ceil round trunc frac log1p expm1 log2 log10 exp2 addcmul addcdiv lerp
    native_dropout dropout threshold remainder fmod floor_divide isnan isinf isfinite isposinf isneginf nan_to_num
    celu selu log_sigmoid_forward log_sigmoid hardshrink softshrink logit clip rrelu rrelu_with_noise relu6
    squareplus hypot xlogy copysign polar _conj conj real imag angle special_expit digamma lgamma __and__ __or__
    __xor__ __iand__ __ior__ true_divide multiply subtract divide to type_as erfinv heaviside positive deg2rad
    sigmoid_backward tanh_backward threshold_backward gelu_backward silu_backward softplus_backward elu_backward
    leaky_relu_backward hardtanh_backward mish_backward hardswish_backward hardsigmoid_backward softshrink_backward
    hardshrink_backward log_sigmoid_backward complex resolve_conj resolve_neg _neg_view
    _unsafe_masked_fill bitwise_left_shift bitwise_right_shift logaddexp special_erfcx
    native_alpha_dropout
"""


@RULES.rule(*_ELEMENTWISE.split())
def elementwise(call: Call) -> Sequence[Labels]:
    """Broadcast and align all operands."""
    return [call.unify(call.shape, call.operands())] * len(call.outputs)


@RULES.rule("eq", "ne")
def equal(call: Call) -> Labels:
    """Compare elements. Numbers of units, compared with each number in turn, say which units they are."""
    refs = call.step.inputs
    for number, turn in (refs, refs[::-1]) if len(refs) == 2 else ():
        rank = len(call.shape)
        sizes = [1] * (rank - len(turn.shape)) + list(turn.shape)
        dims = [d for d, n in enumerate(sizes) if n > 1]
        labels, choice = call.chosen(number)
        if choice is None or choice.kind != "position" or turn.values is None or len(dims) != 1:
            continue
        each = labels.pad_rank(rank)
        if each.shape[dims[0]] == 1 and np.array_equal(turn.values.ravel(), np.arange(len(choice.atoms))):
            call.fix(call.labels(turn))
            return call.unify(call.shape, [each, units_of(choice).along(dims[0], rank)])
    return call.unify(call.shape, call.operands())


@RULES.rule("copy")
def copy(call: Call) -> Labels:
    """Copy the source's values; what the target held before does not matter."""
    return call.unify(call.shape, [Labels.constant(call.shape), call.labels("src")])


@RULES.rule("prelu", "_prelu_kernel")
def prelu(call: Call) -> Labels:
    """Scale negative values; a weight with several elements belongs to dimension 1."""
    x, weight = call.labels("self"), call.labels("weight")
    if len(weight.shape) == 1 and weight.shape[0] > 1 and len(x.shape) > 1:
        weight = weight.along(1, len(x.shape))
    return call.unify(x.shape, [x, weight])


@RULES.rule("fake_quantize_per_tensor_affine", "fake_quantize_per_tensor_affine_cachemask",
            "_fake_quantize_per_tensor_affine_cachemask_tensor_qparams", "_fake_quantize_learnable_per_tensor_affine",
            "fake_quantize_per_channel_affine", "fake_quantize_per_channel_affine_cachemask",
            "_fake_quantize_learnable_per_channel_affine")  # fmt: skip
def fake_quantize(call: Call) -> Sequence[Labels]:
    """Round each value to a grid: one for all, or one for each position along an axis."""
    x, rank = call.labels("self"), len(call.shape)
    grids = call.labels_of_tensors("scale", "zero_point", "fake_quant_enabled")
    axis = call.arg("axis", 0)
    grids = [grid.along(axis % rank, rank) if grid.shape and rank else grid for grid in grids]
    return [call.unify(call.shape, [x, *[grid.pad_rank(rank) for grid in grids]])] * len(call.outputs)


@RULES.rule("zeros", "ones", "full", "empty", "zeros_like", "ones_like", "full_like", "empty_like", "new_zeros",
            "new_ones", "new_full", "new_empty", "scalar_tensor", "empty_strided", "new_empty_strided", "zero", "fill",
            "empty_permuted")  # fmt: skip
def uniform(call: Call) -> Sequence[Labels]:
    """Fill with one value; uninitialised memory is always written before it is read."""
    return [Labels.constant(ref.shape) for ref in call.outputs]


@RULES.rule("tril", "triu")
def triangle(call: Call) -> Labels:
    """Set a triangle to zero: positions along the last two dimensions matter."""
    x = call.labels("self")
    return call.fix_dims(x, [len(x.shape) - 2, len(x.shape) - 1], x.shape)


@RULES.rule("glu")
def glu(call: Call) -> Labels:
    """Gate one half of a dimension by the other, elementwise."""
    x = call.labels("self")
    return call.unify(call.shape, _cut(call, x, x.dim(call.arg("dim", -1)), 2))


@RULES.rule("_thnn_fused_lstm_cell", "_thnn_fused_gru_cell")
def fused_cell(call: Call) -> Sequence[Labels]:
    """Update a state by four (LSTM) or three (GRU) gates of the same units.

    Elsewhere torch runs recurrent layers as products, gates and elementwise ops, which have rules of their own.
    """
    state, gates, states = ("cx", 4, 2) if call.name == "_thnn_fused_lstm_cell" else ("hx", 3, 1)
    operands = [call.labels(state)]
    for x in call.labels_of_tensors("input_gates", "hidden_gates", "input_bias", "hidden_bias"):
        operands += _cut(call, x, len(x.shape) - 1, gates)
    return [*[call.unify(call.shape, operands)] * states, *call.fixed_outputs()[states:]]


def _cut(call: Call, x: Labels, dim: int, count: int) -> list[Labels]:
    """Cut a dimension into equal parts."""
    size = x.shape[dim] // count
    return [restrict(call.constraints, x, dim, np.arange(k * size, (k + 1) * size)) for k in range(count)]
