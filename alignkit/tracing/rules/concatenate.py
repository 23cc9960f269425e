"""Joining tensors: concatenation and stacking."""

from __future__ import annotations

from alignkit.tracing.labels.combine import concatenate
from alignkit.tracing.labels.tensor_labels import Labels
from alignkit.tracing.recording.recorder import refs
from alignkit.tracing.rules.table import Call, RuleSet

RULES = RuleSet()


@RULES.rule("cat", "concat", "concatenate")
def cat(call: Call) -> Labels:
    """Lay tensors end to end. Empty one-dimensional operands are ignored, as torch does."""
    operands = [call.labels(ref) for ref in refs(call.arg("tensors")) if ref.shape != (0,)]
    if len(operands) == 1:
        return operands[0]
    return concatenate(call.constraints, operands, call.arg("dim", 0) % len(call.shape))


@RULES.rule("stack")
def stack(call: Call) -> Labels:
    """Lay tensors beside each other along a new dimension."""
    rank = len(call.shape)
    at = call.arg("dim", 0) % rank
    new_dim = {d: d if d < at else d + 1 for d in range(rank - 1)}
    operands = [call.labels(ref) for ref in refs(call.arg("tensors"))]
    operands = [x.move_dims((*x.shape[:at], 1, *x.shape[at:]), new_dim) for x in operands]
    return concatenate(call.constraints, operands, at)
