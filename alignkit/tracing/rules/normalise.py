"""Normalisations: statistics over some dimensions, weights along others."""

from __future__ import annotations

from collections.abc import Sequence

from alignkit.tracing.labels import combine
from alignkit.tracing.labels.reshape import reshape
from alignkit.tracing.labels.tensor_labels import Labels
from alignkit.tracing.recording.recorder import TensorRef
from alignkit.tracing.rules.table import Call, RuleSet

RULES = RuleSet()


def _channelwise(call: Call, x: Labels, names: Sequence[str]) -> list[Labels]:
    """Return the labels of one-dimensional tensors that belong to dimension 1."""
    rank = len(x.shape)
    refs = [call.arg(name) for name in names]
    tensors = [call.labels(ref) for ref in refs if isinstance(ref, TensorRef)]
    return [t.move_dims((1, t.shape[0], *[1] * (rank - 2)), {0: 1}) for t in tensors]


@RULES.rule(
    "native_batch_norm", "_native_batch_norm_legit_no_training", "_native_batch_norm_legit", "cudnn_batch_norm",
    "miopen_batch_norm", "_batch_norm_impl_index", "_batch_norm_no_update", "_batch_norm_with_update",
)  # fmt: skip
def batch_norm(call: Call) -> Sequence[Labels]:
    """Normalise each channel. Batch statistics sum over the other dimensions."""
    x = call.labels("input")
    labels = call.unify(x.shape, [x, *_channelwise(call, x, ("weight", "bias", "running_mean", "running_var"))])
    combine.drop(call.constraints, labels, set(range(len(x.shape))) - {1})
    return [labels, *call.fixed_outputs()[1:]]


@RULES.rule("native_layer_norm", "_fused_rms_norm", "rms_norm")
def layer_norm(call: Call) -> Sequence[Labels]:
    """Normalise over the last dimensions."""
    x = call.labels("input")
    rank, count = len(x.shape), len(call.arg("normalized_shape"))
    weights = [call.arg(name) for name in ("weight", "bias")]
    labels = call.unify(x.shape, [x, *[call.labels(ref) for ref in weights if isinstance(ref, TensorRef)]])
    combine.drop(call.constraints, labels, set(range(rank - count, rank)))
    return [labels, *call.fixed_outputs()[1:]]


@RULES.rule("native_group_norm")
def group_norm(call: Call) -> Sequence[Labels]:
    """Normalise over groups of channels and all other dimensions but the first."""
    x, groups = call.labels("input"), call.arg("group")
    labels = call.unify(x.shape, [x, *_channelwise(call, x, ("weight", "bias"))])
    batch, channels, *space = x.shape
    apart = reshape(call.constraints, labels, (batch, groups, channels // groups, *space))
    combine.drop(call.constraints, apart, set(range(2, len(apart.shape))))
    return [labels, *call.fixed_outputs()[1:]]


@RULES.rule("_weight_norm_interface", "_weight_norm")
def weight_norm(call: Call) -> Sequence[Labels]:
    """Scale a direction by a length for each position along one dimension."""
    v, g = call.labels("v"), call.labels("g")
    dim = v.dim(call.arg("dim", 0))
    if len(g.shape) == 1 and len(v.shape) > 1:
        g = g.move_dims([g.shape[0] if d == dim else 1 for d in range(len(v.shape))], {0: dim})
    labels = call.unify(v.shape, [v, g])
    combine.drop(call.constraints, labels, set(range(len(v.shape))) - {dim})
    return [labels, *call.fixed_outputs()[1:]]
