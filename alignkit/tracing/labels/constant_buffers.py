"""Buffers that are constants of the model: the same value everywhere, in every copy of the model."""

from __future__ import annotations

import torch
from torch import nn

from alignkit.tracing.recording.recorder import TensorRef
from alignkit.tracing.recording.run import RecordedRun


def constant_buffers(model: nn.Module, run: RecordedRun) -> list[TensorRef]:
    """Return the buffers that hold one value everywhere and that neither a state dict nor the run can change.

    Those on the meta device have no values and are not among them.

    Args:
        model: The model, with its own tensors.
        run: A run of it.
    """
    saved = set(model.state_dict(keep_vars=True))
    changeable = {ref.storage for step in run.steps for ref in step.written}
    changeable |= {ref.storage for name, ref in run.state.items() if name in saved or name in run.replaced}
    return [
        run.state[name]
        for name, buffer in model.named_buffers(remove_duplicate=False)
        if name in run.state and run.state[name].storage not in changeable and _has_one_value(buffer)
    ]


def _has_one_value(tensor: torch.Tensor) -> bool:
    """Return whether the elements of a tensor are known and equal."""
    if tensor.device.type == "meta" or tensor.layout != torch.strided or tensor.numel() < 2:
        return False
    return bool((tensor == tensor.flatten()[0]).all())
