"""Fused recurrent cells.

Elsewhere torch runs recurrent layers as products, gates and elementwise ops, which have rules of their own.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from alignkit.tracing.labels.combine import restrict
from alignkit.tracing.labels.labels import Labels
from alignkit.tracing.recording.recorder import TensorRef
from alignkit.tracing.rules.table import Call, rule


def _gates(call: Call, names: Sequence[str], count: int) -> list[Labels]:
    """Cut the gates out of each given tensor's last dimension."""
    pieces = []
    for name in names:
        ref = call.arg(name)
        if not isinstance(ref, TensorRef):
            continue
        x = call.layout(ref)
        dim = len(x.shape) - 1
        size = x.shape[dim] // count
        pieces += [restrict(call.constraints, x, dim, np.arange(k * size, (k + 1) * size)) for k in range(count)]
    return pieces


@rule("_thnn_fused_lstm_cell")
def lstm_cell(call: Call) -> Sequence[Labels]:
    """Four gates and a cell state of the same units."""
    gates = _gates(call, ("input_gates", "hidden_gates", "input_bias", "hidden_bias"), 4)
    state = call.unify(call.shape, [call.layout("cx"), *gates])
    return [state, state, *call.fixed_outputs()[2:]]


@rule("_thnn_fused_gru_cell")
def gru_cell(call: Call) -> Sequence[Labels]:
    """Three gates and a hidden state of the same units."""
    gates = _gates(call, ("input_gates", "hidden_gates", "input_bias", "hidden_bias"), 3)
    state = call.unify(call.shape, [call.layout("hx"), *gates])
    return [state, *call.fixed_outputs()[1:]]
