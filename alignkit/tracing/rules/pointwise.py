"""Elementwise ops: every operand has the labels of the result."""

from __future__ import annotations

from collections.abc import Sequence

from alignkit.tracing.labels.labels import Labels
from alignkit.tracing.rules.table import Call, rule

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


@rule(*_ELEMENTWISE.split())
def elementwise(call: Call) -> Sequence[Labels]:
    """Broadcast and align all operands."""
    layout = call.unify(call.shape, call.operands())
    return [layout] * len(call.outputs)


@rule("copy")
def copy(call: Call) -> Labels:
    """The target takes the source's values; what it held before does not matter."""
    return call.unify(call.shape, [Labels.constant(call.shape), call.layout("src")])


@rule("prelu", "_prelu_kernel")
def prelu(call: Call) -> Labels:
    """A weight with several elements belongs to dimension 1."""
    x, weight = call.layout("self"), call.layout("weight")
    rank = len(x.shape)
    if len(weight.shape) == 1 and weight.shape[0] > 1 and rank > 1:
        weight = weight.moved((1, weight.shape[0], *[1] * (rank - 2)), {0: 1})
    return call.unify(x.shape, [x, weight])


@rule(
    "zeros", "ones", "full", "empty", "zeros_like", "ones_like", "full_like", "empty_like", "new_zeros", "new_ones",
    "new_full", "new_empty", "scalar_tensor", "empty_strided", "new_empty_strided", "zero", "fill",
    "empty_permuted",
)  # fmt: skip
def uniform(call: Call) -> Sequence[Labels]:
    """One value everywhere; uninitialised memory is always written before it is read."""
    return [Labels.constant(ref.shape) for ref in call.outputs]


@rule(
    "arange", "linspace", "logspace", "randn", "rand", "randint", "eye", "tril_indices", "triu_indices", "randperm",
    "normal", "uniform", "bernoulli", "rand_like", "randn_like", "randint_like", "hann_window", "hamming_window",
    "multinomial", "exponential", "_efficientzerotensor",
)  # fmt: skip
def distinct(call: Call) -> Sequence[Labels]:
    """Values that differ from position to position, whatever the operands."""
    call.fix(*call.operands())
    return call.fixed_outputs()


@rule("tril", "triu")
def triangle(call: Call) -> Labels:
    """Positions along the last two dimensions matter."""
    x = call.layout("self")
    rank = len(x.shape)
    left = call.fix_dims(x, [rank - 2, rank - 1])
    return Labels.of(x.shape, [flag and d < rank - 2 for d, flag in enumerate(left.uniform)], left.blocks)


@rule("glu")
def glu(call: Call) -> Labels:
    """The two halves of a dimension meet elementwise."""
    import numpy as np

    from alignkit.tracing.labels.combine import restrict

    x = call.layout("self")
    dim = x.dim(call.arg("dim", -1))
    half = x.shape[dim] // 2
    halves = [restrict(call.constraints, x, dim, np.arange(k * half, (k + 1) * half)) for k in (0, 1)]
    return call.unify(call.shape, halves)
