"""Joining tensors: concatenation and stacking."""

from __future__ import annotations

from alignkit.tracing.labels.combine import concatenate
from alignkit.tracing.labels.labels import Labels
from alignkit.tracing.rules.table import Call, refs, rule


@rule("cat", "concat", "concatenate")
def cat(call: Call) -> Labels:
    """Lay tensors end to end. Empty one-dimensional operands are ignored, as torch does."""
    parts = [ref for ref in refs(call.arg("tensors")) if ref.shape != (0,)]
    layouts = [call.layout(ref) for ref in parts]
    return (
        layouts[0]
        if len(layouts) == 1
        else concatenate(call.constraints, layouts, call.arg("dim", 0) % len(call.shape))
    )


@rule("stack")
def stack(call: Call) -> Labels:
    """Lay tensors beside each other along a new dimension."""
    rank = len(call.shape)
    at = call.arg("dim", 0) % rank
    layouts = []
    for ref in refs(call.arg("tensors")):
        x = call.layout(ref)
        layouts.append(x.moved((*x.shape[:at], 1, *x.shape[at:]), {d: d if d < at else d + 1 for d in range(rank - 1)}))
    return concatenate(call.constraints, layouts, at)
