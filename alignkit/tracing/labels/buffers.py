"""Buffers: those that move with units, as weights do, and those that hold one value everywhere.

A buffer that a checkpoint keeps and that ops use as a whole can move with the units of its uses: moving averages,
vectors of spectral norms, pruning masks. Tables of positions, of which a run takes a part, are made by the code of a
model, which may make longer ones. So are tables in order, such as frequencies and slopes. They stay.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from alignkit.tracing.labels.constraints import Constraints
from alignkit.tracing.labels.tensor_labels import Labels
from alignkit.tracing.recording.recorder import TensorRef
from alignkit.tracing.recording.run import RecordedRun

_RUNNING_STATISTICS = ("running_mean", "running_var")
"""Buffers of norms, which move in every case: a run in training mode would write them."""
_TAKES_PARTS = {"index", "index_select", "gather", "take_along_dim", "take", "embedding", "masked_select"}
_MIN_TABLE = 4
"""Smallest number of values whose order says that they are a table: one in 12 of other vectors of 4 is in order, of 8
one in 20 000."""


def movable_buffers(model: nn.Module, run: RecordedRun) -> list[str]:
    """Return the names of buffers that move with units."""
    saved = model.state_dict(keep_vars=True)
    names: dict[int, set[tuple[int, ...]]] = {}
    for ref in run.state.values():
        names.setdefault(ref.storage, set()).add(ref.key)
    stays = {storage for storage, keys in names.items() if len(keys) > 1} | _used_otherwise(run)
    movable = []
    for name, buffer in model.named_buffers():
        ref = run.state[name]
        is_state = name in saved and name not in run.replaced and ref.storage not in stays and _has_values(buffer)
        if name.rpartition(".")[2] in _RUNNING_STATISTICS or (is_state and buffer.is_floating_point()):
            movable.append(name)
    return movable


def _used_otherwise(run: RecordedRun) -> set[int]:
    """Return the storages that ops write, take a part of, or never compute with."""
    sizes = {ref.storage: math.prod(ref.shape) for ref in run.state.values()}
    otherwise = set(sizes) - {ref.storage for step in run.steps for ref in step.inputs}
    for step in run.steps:
        otherwise.update(ref.storage for ref in step.written)
        if step.op.split("::")[1] in _TAKES_PARTS:
            otherwise.update(ref.storage for ref in step.inputs[:1])
        otherwise.update(ref.storage for ref in step.outputs if math.prod(ref.shape) < sizes.get(ref.storage, 0))
    return otherwise


def _has_values(buffer: Tensor) -> bool:
    return buffer.device.type != "meta" and buffer.layout == torch.strided and buffer.numel() > 1


def fix_tables(c: Constraints, model: nn.Module, labels: Mapping[str, Labels]) -> None:
    """Fix the positions along each axis of a buffer along which its values only rise, or only fall."""
    for name, buffer in model.named_buffers():
        if name not in labels or not _has_values(buffer) or name.rpartition(".")[2] in _RUNNING_STATISTICS:
            continue
        c.blame("buffer in order", name.rpartition(".")[0])
        for dim, owner in labels[name].owner.items():
            steps = buffer.detach().diff(dim=dim)
            if buffer.shape[dim] >= _MIN_TABLE and bool((steps > 0).all() or (steps < 0).all()):
                c.fix_axis(owner.atoms, owner.span.index(dim))


def constant_buffers(model: nn.Module, run: RecordedRun) -> dict[str, TensorRef]:
    """Return by name the buffers of one known value everywhere, which neither a state dict nor the run can change."""
    saved = set(model.state_dict(keep_vars=True))
    changeable = {ref.storage for step in run.steps for ref in step.written}
    changeable |= {ref.storage for name, ref in run.state.items() if name in saved or name in run.replaced}
    constant: dict[str, TensorRef] = {}
    for name, buffer in model.named_buffers(remove_duplicate=False):
        if name not in run.state or run.state[name].storage in changeable:
            continue
        if _has_values(buffer) and bool((buffer == buffer.flatten()[0]).all()):
            constant[name] = run.state[name]
    return constant
