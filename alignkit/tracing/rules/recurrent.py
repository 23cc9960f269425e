"""Fused recurrent cells.

Elsewhere torch runs recurrent layers as products, gates and elementwise ops, which have rules of their own.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from alignkit.tracing.labels.combine import restrict
from alignkit.tracing.labels.tensor_labels import Labels
from alignkit.tracing.recording.recorder import TensorRef
from alignkit.tracing.rules.table import Call, RuleSet

RULES = RuleSet()


def _gates(call: Call, names: Sequence[str], count: int) -> list[Labels]:
    """Cut the gates out of the last dimension of each named tensor."""
    pieces = []
    for name in names:
        ref = call.arg(name)
        if not isinstance(ref, TensorRef):
            continue
        x = call.labels(ref)
        dim = len(x.shape) - 1
        size = x.shape[dim] // count
        pieces += [restrict(call.constraints, x, dim, np.arange(k * size, (k + 1) * size)) for k in range(count)]
    return pieces


@RULES.rule("_thnn_fused_lstm_cell")
def lstm_cell(call: Call) -> Sequence[Labels]:
    """Update a cell state by four gates of the same units."""
    gates = _gates(call, ("input_gates", "hidden_gates", "input_bias", "hidden_bias"), 4)
    state = call.unify(call.shape, [call.labels("cx"), *gates])
    return [state, state, *call.fixed_outputs()[2:]]


@RULES.rule("_thnn_fused_gru_cell")
def gru_cell(call: Call) -> Sequence[Labels]:
    """Update a hidden state by three gates of the same units."""
    gates = _gates(call, ("input_gates", "hidden_gates", "input_bias", "hidden_bias"), 3)
    state = call.unify(call.shape, [call.labels("hx"), *gates])
    return [state, *call.fixed_outputs()[1:]]
