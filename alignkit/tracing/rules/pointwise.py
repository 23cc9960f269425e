"""Elementwise ops: every operand has the labels of the result."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from alignkit.tracing.labels.combine import restrict
from alignkit.tracing.labels.tensor_labels import Labels
from alignkit.tracing.rules.table import Call, RuleSet

RULES = RuleSet()

_ELEMENTWISE = """
    add sub mul div rsub pow maximum minimum where fmin fmax relu sigmoid tanh exp log sqrt rsqrt neg abs silu gelu
    hardswish hardsigmoid hardtanh clamp clamp_min clamp_max leaky_relu elu mish softplus softsign erf erfc sin cos
    tan asin acos atan atan2 sinh cosh reciprocal sign sgn square cube masked_fill _to_copy clone detach alias
    lift_fresh lift contiguous eq ne lt gt le ge logical_and logical_or logical_not logical_xor bitwise_and
    bitwise_or bitwise_not bitwise_xor floor ceil round trunc frac log1p expm1 log2 log10 exp2 addcmul addcdiv lerp
    native_dropout dropout threshold remainder fmod floor_divide isnan isinf isfinite isposinf isneginf nan_to_num
    celu selu log_sigmoid_forward log_sigmoid hardshrink softshrink logit clip rrelu rrelu_with_noise relu6
    squareplus hypot xlogy copysign polar _conj conj real imag angle special_expit digamma lgamma __and__ __or__
    __xor__ __iand__ __ior__ true_divide multiply subtract divide to type_as erfinv heaviside positive deg2rad
    sigmoid_backward _unsafe_masked_fill bitwise_left_shift bitwise_right_shift logaddexp special_erfcx
    native_alpha_dropout
"""


@RULES.rule(*_ELEMENTWISE.split())
def elementwise(call: Call) -> Sequence[Labels]:
    """Broadcast and align all operands."""
    return [call.unify(call.shape, call.operands())] * len(call.outputs)


@RULES.rule("copy")
def copy(call: Call) -> Labels:
    """Copy the source's values; what the target held before does not matter."""
    return call.unify(call.shape, [Labels.constant(call.shape), call.labels("src")])


@RULES.rule("prelu", "_prelu_kernel")
def prelu(call: Call) -> Labels:
    """Scale negative values; a weight with several elements belongs to dimension 1."""
    x, weight = call.labels("self"), call.labels("weight")
    rank = len(x.shape)
    if len(weight.shape) == 1 and weight.shape[0] > 1 and rank > 1:
        weight = weight.move_dims((1, weight.shape[0], *[1] * (rank - 2)), {0: 1})
    return call.unify(x.shape, [x, weight])


@RULES.rule(
    "zeros", "ones", "full", "empty", "zeros_like", "ones_like", "full_like", "empty_like", "new_zeros", "new_ones",
    "new_full", "new_empty", "scalar_tensor", "empty_strided", "new_empty_strided", "zero", "fill",
    "empty_permuted",
)  # fmt: skip
def uniform(call: Call) -> Sequence[Labels]:
    """Fill with one value; uninitialised memory is always written before it is read."""
    return [Labels.constant(ref.shape) for ref in call.outputs]


@RULES.rule(
    "arange", "linspace", "logspace", "randn", "rand", "randint", "eye", "tril_indices", "triu_indices", "randperm",
    "normal", "uniform", "bernoulli", "rand_like", "randn_like", "randint_like", "hann_window", "hamming_window",
    "multinomial", "exponential", "_efficientzerotensor",
)  # fmt: skip
def distinct(call: Call) -> Sequence[Labels]:
    """Fill with values that differ from position to position, whatever the operands."""
    call.fix(*call.operands())
    return call.fixed_outputs()


@RULES.rule("tril", "triu")
def triangle(call: Call) -> Labels:
    """Set a triangle to zero: positions along the last two dimensions matter."""
    x = call.labels("self")
    dims = [len(x.shape) - 2, len(x.shape) - 1]
    return call.fix_dims(x, dims).with_fixed(dims, x.shape)


@RULES.rule("glu")
def glu(call: Call) -> Labels:
    """Gate one half of a dimension by the other, elementwise."""
    x = call.labels("self")
    dim = x.dim(call.arg("dim", -1))
    half = x.shape[dim] // 2
    halves = [restrict(call.constraints, x, dim, np.arange(k * half, (k + 1) * half)) for k in (0, 1)]
    return call.unify(call.shape, halves)
