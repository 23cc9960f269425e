"""Scaled dot-product attention, in all the forms that torch picks from."""

from __future__ import annotations

from collections.abc import Sequence

from alignkit.tracing.labels import combine
from alignkit.tracing.labels.reshape import reshape
from alignkit.tracing.labels.tensor_labels import Labels
from alignkit.tracing.recording.recorder import TensorRef
from alignkit.tracing.rules.table import Call, RuleSet

RULES = RuleSet()


@RULES.rule(
    "_scaled_dot_product_flash_attention_for_cpu", "_scaled_dot_product_attention_math",
    "scaled_dot_product_attention", "_scaled_dot_product_flash_attention",
    "_scaled_dot_product_efficient_attention", "_scaled_dot_product_cudnn_attention",
    "_scaled_dot_product_fused_attention_overrideable", "_scaled_dot_product_attention_math_for_mps",
)  # fmt: skip
def attention(call: Call) -> Sequence[Labels]:
    """Compute softmax(q k^T + mask) v. Units of q and k meet, units of v pass through, heads are a batch dimension."""
    c = call.constraints
    q, k, v = (call.labels(name) for name in ("query", "key", "value"))
    rank = len(q.shape)
    if rank > 2 and q.shape[-3] != k.shape[-3] > 1:
        k, v = _for_each_query_head(call, k, q.shape[-3]), _for_each_query_head(call, v, q.shape[-3])
    flipped = {**{d: d for d in range(rank - 2)}, rank - 2: rank - 1, rank - 1: rank - 2}
    keys = k.move_dims((*k.shape[:-2], k.shape[-1], k.shape[-2]), flipped)
    scores = combine.matmul(c, q, keys)
    mask = call.arg("attn_mask") if call.arg("attn_mask") is not None else call.arg("attn_bias")
    if isinstance(mask, TensorRef):
        scores = call.unify(scores.shape, [scores, call.labels(mask)])
    if call.arg("is_causal"):
        positions = [rank - 2, rank - 1]
        scores = call.fix_dims(scores, positions).with_fixed(positions, scores.shape)
    combine.drop(c, scores, {rank - 1})
    return [combine.matmul(c, scores, v), *call.fixed_outputs()[1:]]


def _for_each_query_head(call: Call, x: Labels, heads: int) -> Labels:
    """Repeat key or value heads for their query heads (grouped-query attention)."""
    at = len(x.shape) - 3
    times = heads // x.shape[at]
    shape = (*x.shape[: at + 1], times, *x.shape[at + 1 :])
    new_dim = {d: d if d <= at else d + 1 for d in range(len(x.shape))}
    return reshape(call.constraints, x.move_dims(shape, new_dim), (*x.shape[:at], heads, *x.shape[at + 1 :]))
