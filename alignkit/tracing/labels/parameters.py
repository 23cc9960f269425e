"""First labels: which axes of which parameters may move, before anything is known."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from alignkit.tracing.labels.constraints import Constraints
from alignkit.tracing.labels.labels import LabelBlock, Labels
from alignkit.tracing.recording.recorder import OpRecord, TensorRef

_CONVOLUTIONS = {"convolution", "_convolution", "mkldnn_convolution", "convolution_overrideable", "cudnn_convolution"}
_PASSES_ON = {
    "add",
    "sub",
    "mul",
    "div",
    "native_batch_norm",
    "clone",
    "_to_copy",
    "detach",
    "alias",
    "view",
    "reshape",
    "_unsafe_view",
}
_TABLE_OPS = {"t", "mm", "addmm", "linear", "embedding", "matmul", "addmv", "mv"}
_WIDEST = 1 << 22
"""Labels that depend on another axis are given to tensors of at most this many elements."""


@dataclass(frozen=True)
class ParameterUse:
    """How a run uses a parameter.

    Number of groups if as a convolution's weight (else 0), and whether as a plain matrix.
    """

    groups: int = 0
    matrix: bool = False


def uses(steps: Iterable[OpRecord], tensors: Mapping[str, TensorRef]) -> dict[int, ParameterUse]:
    """Return how each tensor (by storage) is used, directly or after ops that keep its shape."""
    origin: dict[int, tuple[int, tuple[int, ...]]] = {}
    for ref in tensors.values():
        origin[ref.key] = (ref.storage, ref.shape)
    found: dict[int, ParameterUse] = {}
    for step in steps:
        name = step.op.split("::")[1].rstrip("_")
        inputs = step.inputs
        known = [origin[ref.key] for ref in inputs if ref.key in origin]
        if name in _CONVOLUTIONS and len(inputs) > 1 and inputs[1].key in origin:
            storage, shape = origin[inputs[1].key]
            if shape == inputs[1].shape:
                found[storage] = ParameterUse(
                    groups=int(step.args[8] if name != "mkldnn_convolution" else step.args[6])
                )
        elif name in _TABLE_OPS:
            for storage, _ in known:
                found.setdefault(storage, ParameterUse(matrix=True))
        if known and (name in _PASSES_ON or "batch_norm" in name or "weight_norm" in name):
            largest = max(known, key=lambda item: int(np.prod(item[1])))
            for ref in step.outputs[:1]:
                origin.setdefault(ref.key, largest)
    return found


def first_labels(c: Constraints, shape: tuple[int, ...], use: ParameterUse, *, contextual: bool) -> Labels:
    """Return a layout in which every axis moves by itself, or inside the units of an earlier axis.

    Args:
        c: Gives the atoms.
        shape: Shape of the parameter.
        use: How the run uses it.
        contextual: Whether axes may move differently for each unit of the first axis, as units of stacked experts do.
    """
    if use.groups:
        return _filters(c, shape, use.groups, contextual=contextual)
    first = next((d for d, n in enumerate(shape) if n > 1), len(shape))
    nested = contextual and not (use.matrix and len(shape) == 2) and int(np.prod(shape)) <= _WIDEST * 16
    blocks: list[LabelBlock] = []
    for d, n in enumerate(shape):
        if n <= 1:
            continue
        if d == first or not nested or shape[first] * n > _WIDEST:
            blocks.append(LabelBlock((d,), (), _axis(c, n)))
        else:
            atoms = c.fresh([shape[first], n])
            c.colour(atoms)
            c.adopt_rows(atoms, (0,), blocks[0].atoms)
            blocks.append(LabelBlock((d,), (first,), atoms))
    return Labels.of(shape, (), blocks)


def _axis(c: Constraints, n: int) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    atoms = c.fresh([n])
    c.colour(atoms)
    return atoms


def _filters(c: Constraints, shape: tuple[int, ...], groups: int, *, contextual: bool) -> Labels:
    """Label the channel axes of a convolution's weight.

    Inside a group of a grouped one, channels move by themselves.
    """
    outer = LabelBlock((0,), (), _axis(c, shape[0])) if shape[0] > 1 else None
    if shape[1] <= 1 or groups == 1 or outer is None or not contextual:
        inner = LabelBlock((1,), (), _axis(c, shape[1])) if shape[1] > 1 else None
        return Labels.of(shape, (), [block for block in (outer, inner) if block is not None])
    each = c.fresh([groups, shape[1]])
    c.colour(each)
    rows = c.rows(outer.atoms.reshape(groups, -1), (0,))
    c.adopt_rows(each, (0,), rows)
    return Labels.of(shape, (), [outer, LabelBlock((1,), (0,), np.repeat(each, shape[0] // groups, axis=0))])
