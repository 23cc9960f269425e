"""Normalisations: statistics over some dimensions, weights along others."""

from __future__ import annotations

from collections.abc import Sequence

from alignkit.tracing.labels import combine
from alignkit.tracing.labels.labels import Labels
from alignkit.tracing.labels.reshape import reshape
from alignkit.tracing.recording.recorder import TensorRef
from alignkit.tracing.rules.table import Call, rule


def _channelwise(call: Call, x: Labels, names: Sequence[str]) -> list[Labels]:
    """Return the layouts of one-dimensional tensors that belong to dimension 1."""
    rank = len(x.shape)
    given = [call.arg(name) for name in names]
    tensors = [call.layout(ref) for ref in given if isinstance(ref, TensorRef)]
    return [t.moved((1, t.shape[0], *[1] * (rank - 2)), {0: 1}) for t in tensors]


@rule(
    "native_batch_norm", "_native_batch_norm_legit_no_training", "_native_batch_norm_legit", "cudnn_batch_norm",
    "miopen_batch_norm", "_batch_norm_impl_index", "_batch_norm_no_update", "_batch_norm_with_update",
)  # fmt: skip
def batch_norm(call: Call) -> Sequence[Labels]:
    """Statistics and weights of each channel. Batch statistics sum over the other dimensions."""
    x = call.layout("input")
    layout = call.unify(x.shape, [x, *_channelwise(call, x, ("weight", "bias", "running_mean", "running_var"))])
    combine.drop(call.constraints, layout, set(range(len(x.shape))) - {1})
    return [layout, *call.fixed_outputs()[1:]]


@rule("native_layer_norm", "_fused_rms_norm", "rms_norm")
def layer_norm(call: Call) -> Sequence[Labels]:
    """Statistics over the last dimensions."""
    x = call.layout("input")
    rank, count = len(x.shape), len(call.arg("normalized_shape"))
    weights = [call.arg(name) for name in ("weight", "bias")]
    layout = call.unify(x.shape, [x, *[call.layout(ref) for ref in weights if isinstance(ref, TensorRef)]])
    combine.drop(call.constraints, layout, set(range(rank - count, rank)))
    return [layout, *call.fixed_outputs()[1:]]


@rule("native_group_norm")
def group_norm(call: Call) -> Sequence[Labels]:
    """Statistics over groups of channels and all other dimensions but the first."""
    x, groups = call.layout("input"), call.arg("group")
    layout = call.unify(x.shape, [x, *_channelwise(call, x, ("weight", "bias"))])
    batch, channels, *space = x.shape
    apart = reshape(call.constraints, layout, (batch, groups, channels // groups, *space))
    combine.drop(call.constraints, apart, set(range(2, len(apart.shape))))
    return [layout, *call.fixed_outputs()[1:]]


@rule("_weight_norm_interface", "_weight_norm")
def weight_norm(call: Call) -> Sequence[Labels]:
    """A direction scaled by a length for each position along one dimension."""
    v, g = call.layout("v"), call.layout("g")
    dim = v.dim(call.arg("dim", 0))
    if len(g.shape) == 1 and len(v.shape) > 1:
        g = g.moved([g.shape[0] if d == dim else 1 for d in range(len(v.shape))], {0: dim})
    layout = call.unify(v.shape, [v, g])
    combine.drop(call.constraints, layout, set(range(len(v.shape))) - {dim})
    return [layout, *call.fixed_outputs()[1:]]
