"""Pooling, padding and resampling: trailing dimensions are space, the others pass through."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from alignkit.tracing.labels.labels import IntArray, LabelBlock, Labels
from alignkit.tracing.labels.reshape import reshape
from alignkit.tracing.rules.table import Call, rule


@rule(
    "max_pool1d", "max_pool1d_with_indices", "max_pool2d", "max_pool2d_with_indices", "max_pool3d",
    "max_pool3d_with_indices", "mkldnn_max_pool2d", "avg_pool1d", "avg_pool2d", "avg_pool3d", "adaptive_avg_pool1d",
    "adaptive_avg_pool2d", "adaptive_avg_pool3d", "_adaptive_avg_pool2d", "_adaptive_avg_pool3d",
    "adaptive_max_pool1d", "adaptive_max_pool2d", "adaptive_max_pool3d", "reflection_pad1d", "reflection_pad2d",
    "reflection_pad3d", "replication_pad1d", "replication_pad2d", "replication_pad3d", "upsample_linear1d",
    "upsample_nearest1d", "_upsample_nearest_exact1d", "upsample_bilinear2d", "upsample_bicubic2d",
    "upsample_nearest2d", "_upsample_nearest_exact2d", "_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa",
    "upsample_trilinear3d", "upsample_nearest3d", "_upsample_nearest_exact3d",
)  # fmt: skip
def space(call: Call) -> Sequence[Labels]:
    """Positions in space are fixed; batch and channels pass through."""
    x = call.layout(call.step.inputs[0])
    digits = [ch for ch in call.name if ch in "123"]
    count = int(digits[0]) if digits else 2
    rank = len(x.shape)
    left = call.fix_dims(x, range(rank - count, rank))
    uniform = [flag and d < rank - count for d, flag in enumerate(left.uniform)]
    return [Labels.of(ref.shape, uniform, left.blocks) for ref in call.outputs]


@rule("constant_pad_nd")
def constant_pad(call: Call) -> Labels:
    """Pad with one value.

    What is new along a labelled dimension is fixed, and alike for uniform ones only if nothing is there.
    """
    x, pad = call.layout("self"), call.arg("pad")
    rank = len(x.shape)
    widths = {rank - 1 - i: (pad[2 * i], pad[2 * i + 1]) for i in range(len(pad) // 2) if pad[2 * i] or pad[2 * i + 1]}
    blocks = []
    for block in x.blocks:
        if not set(block.span) & set(widths):
            blocks.append(block)
        elif set(block.context) & set(widths) or min(min(w) for w in widths.values()) < 0:
            call.constraints.fix(block.atoms)
        else:
            blocks.append(LabelBlock(block.dims, block.context, _padded(call, block, widths)))
    return Labels.of(call.shape, [flag and d not in widths for d, flag in enumerate(x.uniform)], blocks)


def _padded(call: Call, block: LabelBlock, widths: dict[int, tuple[int, int]]) -> IntArray:
    """Return the atoms with new ones around them: along a single axis alike on each side, otherwise fixed."""
    c = call.constraints
    pads = [widths.get(d, (0, 0)) for d in block.span]
    if len(pads) == 1:
        front, back = (c.fresh([width]) for width in pads[0])
        for side in (front, back):
            c.colour(side)
        atoms = np.concatenate([front, block.atoms, back])
    else:
        atoms = np.pad(block.atoms, pads, constant_values=-1)
        new = atoms < 0
        atoms[new] = c.fresh([int(new.sum())])
        c.fix(atoms[new])
    c.colour(atoms)
    return atoms


@rule("pixel_shuffle", "pixel_unshuffle")
def pixel_shuffle(call: Call) -> Labels:
    """Move factors of the channels to space, or back. A channel owns its r x r positions."""
    x = call.layout("self")
    *batch, channels, height, width = x.shape
    n = len(batch)
    if call.name == "pixel_shuffle":
        r = call.arg("upscale_factor")
        apart = reshape(call.constraints, x, (*batch, channels // r**2, r, r, height, width))
        apart = call.fix_dims(apart, [n + 1, n + 2])
        order = [*range(n), n, n + 3, n + 1, n + 4, n + 2]
    else:
        r = call.arg("downscale_factor")
        apart = reshape(call.constraints, x, (*batch, channels, height // r, r, width // r, r))
        order = [*range(n), n, n + 2, n + 4, n + 1, n + 3]
    moved = apart.moved([apart.shape[d] for d in order], {d: i for i, d in enumerate(order)})
    return reshape(call.constraints, moved, call.shape)


@rule("channel_shuffle", "native_channel_shuffle")
def channel_shuffle(call: Call) -> Labels:
    """Transpose channels seen as groups x channels of a group."""
    x, groups = call.layout("self"), call.arg("groups")
    index = np.arange(x.shape[1]).reshape(groups, -1).T.ravel()
    return x.taken(1, index)


@rule("im2col")
def im2col(call: Call) -> Labels:
    """Cut out patches: [batch, channels, h, w] to [batch, channels * patch, places]. A channel owns its patch."""
    x = call.layout("self")
    left = call.fix_dims(x, [2, 3])
    batch, channels = x.shape[:2]
    patch = call.shape[1] // channels
    blocks = [b for b in left.blocks if not set(b.span) & {2, 3}]
    apart = Labels.of((batch, channels, patch, call.shape[2]), (*left.uniform[:2], False, False), blocks)
    return reshape(call.constraints, apart, call.shape)


@rule("col2im")
def col2im(call: Call) -> Labels:
    """Sum patches back into an image: the inverse of im2col."""
    x = call.layout("self")
    channels = call.shape[1]
    apart = reshape(call.constraints, x, (x.shape[0], channels, x.shape[1] // channels, x.shape[2]))
    left = call.fix_dims(apart, [2, 3])
    return Labels.of(call.shape, (*left.uniform[:2], False, False), left.blocks)


@rule("unfold")
def unfold(call: Call) -> Labels:
    """Sliding windows over one dimension, whose positions are fixed; the window is a new last dimension."""
    x = call.layout("self")
    dim = x.dim(call.arg("dimension"))
    left = call.fix_dims(x, [dim])
    return Labels.of(call.shape, [*[flag and d != dim for d, flag in enumerate(left.uniform)], False], left.blocks)


@rule("grid_sampler_2d", "grid_sampler_3d")
def grid_sampler(call: Call) -> Labels:
    """Sample an image at places: batch and channels pass through, places are fixed."""
    x, grid = call.layout("input"), call.layout("grid")
    call.fix(grid)
    rank = len(x.shape)
    left = call.fix_dims(x, range(2, rank))
    return Labels.of(call.shape, [False] * rank, [b for b in left.blocks if 0 not in b.span])
