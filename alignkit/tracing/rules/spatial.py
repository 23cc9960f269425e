"""Pooling, padding and resampling: trailing dimensions are space, the others pass through."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from alignkit.tracing.labels.reshape import reshape
from alignkit.tracing.labels.tensor_labels import LabelBlock, Labels
from alignkit.tracing.rules.table import Call, RuleSet

RULES = RuleSet()


@RULES.rule("max_pool1d", "max_pool1d_with_indices", "max_pool2d", "max_pool2d_with_indices", "max_pool3d",
            "max_pool3d_with_indices", "mkldnn_max_pool2d", "avg_pool1d", "avg_pool2d", "avg_pool3d",
            "adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d", "_adaptive_avg_pool2d",
            "_adaptive_avg_pool3d", "adaptive_max_pool1d", "adaptive_max_pool2d", "adaptive_max_pool3d",
            "reflection_pad1d", "reflection_pad2d", "reflection_pad3d", "replication_pad1d", "replication_pad2d",
            "replication_pad3d", "upsample_linear1d", "upsample_nearest1d", "_upsample_nearest_exact1d",
            "upsample_bilinear2d", "upsample_bicubic2d", "upsample_nearest2d", "_upsample_nearest_exact2d",
            "_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa", "upsample_trilinear3d", "upsample_nearest3d",
            "_upsample_nearest_exact3d")  # fmt: skip
def space(call: Call) -> Sequence[Labels]:
    """Pool, pad or resample: positions in space are fixed, batch, channels and untouched dimensions pass through."""
    x = call.labels(call.step.inputs[0])
    space = next(int(digit) for digit in call.name if digit in "123")
    first = len(x.shape) - space
    dims = [first + d for d in range(space) if not _is_untouched(call, d, space)]
    free = call.fix_dims(x, dims)
    return [free.with_fixed(dims, ref.shape) for ref in call.outputs]


def _is_untouched(call: Call, dim: int, space: int) -> bool:
    """Return whether pooling or padding leaves the values along a dimension of space alone."""
    size = call.step.inputs[0].shape[len(call.shape) - space + dim]
    if call.name.startswith(("reflection", "replication")):
        pad = call.arg("padding")
        return not any(pad[2 * (space - 1 - dim) :][:2])
    if "adaptive" in call.name:
        return bool(call.shape[len(call.shape) - space + dim] == size)
    if "pool" not in call.name:
        return False
    kernel, stride, padding = (call.arg(name) for name in ("kernel_size", "stride", "padding"))
    return all(
        (values[dim if len(values) > 1 else 0] if values else 1) == nothing
        for values, nothing in ((kernel, 1), (stride, 1), (padding, 0))
    )


@RULES.rule("constant_pad_nd")
def constant_pad(call: Call) -> Labels:
    """Pad with one value.

    Along a single labelled dimension, new positions are alike on each side. Along several, they are fixed.
    """
    c, x, pad = call.constraints, call.labels("self"), call.arg("pad")
    rank = len(x.shape)
    widths = {rank - 1 - i: (pad[2 * i], pad[2 * i + 1]) for i in range(len(pad) // 2) if pad[2 * i] or pad[2 * i + 1]}
    blocks = []
    for block in x.blocks:
        if not set(block.span) & set(widths):
            blocks.append(block)
        elif set(block.context) & set(widths) or min(min(w) for w in widths.values()) < 0:
            c.fix(block.atoms)
        else:
            pads = [widths.get(d, (0, 0)) for d in block.span]
            if len(pads) == 1:
                front, back = (c.new_atoms([width]) for width in pads[0])
                for side in (front, back):
                    c.colour(side)
                atoms = np.concatenate([front, block.atoms, back])
            else:
                atoms = np.pad(block.atoms, pads, constant_values=-1)
                new = atoms < 0
                atoms[new] = c.new_atoms([int(new.sum())])
                c.fix(atoms[new])
            c.colour(atoms)
            blocks.append(LabelBlock(block.dims, block.context, atoms))
    return Labels.of(call.shape, [flag and d not in widths for d, flag in enumerate(x.uniform)], blocks)


@RULES.rule("pixel_shuffle", "pixel_unshuffle")
def pixel_shuffle(call: Call) -> Labels:
    """Move factors of the channels to space, or back. A channel owns its r x r positions."""
    x = call.labels("self")
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
    return reshape(call.constraints, apart.permute(order), call.shape)


@RULES.rule("channel_shuffle", "native_channel_shuffle")
def channel_shuffle(call: Call) -> Labels:
    """Transpose channels seen as groups x channels of a group."""
    x = call.labels("self")
    return x.index_select(1, np.arange(x.shape[1]).reshape(call.arg("groups"), -1).T.ravel())


@RULES.rule("im2col")
def im2col(call: Call) -> Labels:
    """Cut out patches: [batch, channels, h, w] to [batch, channels * patch, positions]. A channel owns its patch."""
    free = call.fix_dims(call.labels("self"), [2, 3])
    batch, channels = free.shape[:2]
    shape = (batch, channels, call.shape[1] // channels, call.shape[2])
    apart = Labels.of(shape, (*free.uniform[:2], False, False), free.blocks)
    return reshape(call.constraints, apart, call.shape)


@RULES.rule("col2im")
def col2im(call: Call) -> Labels:
    """Sum patches back into an image: the inverse of im2col."""
    x = call.labels("self")
    channels = call.shape[1]
    apart = reshape(call.constraints, x, (x.shape[0], channels, x.shape[1] // channels, x.shape[2]))
    return call.fix_dims(apart, [2, 3], call.shape)


@RULES.rule("unfold")
def unfold(call: Call) -> Labels:
    """Slide a window over one dimension, whose positions are fixed; the window is a new last dimension."""
    x = call.labels("self")
    dim = x.dim(call.arg("dimension"))
    free = call.fix_dims(x, [dim])
    return Labels.of(call.shape, [*[flag and d != dim for d, flag in enumerate(free.uniform)], False], free.blocks)


@RULES.rule("grid_sampler_2d", "grid_sampler_3d")
def grid_sampler(call: Call) -> Labels:
    """Sample an image at given positions, which are fixed: channels pass through."""
    x, grid = call.labels("input"), call.labels("grid")
    call.fix(grid)
    return call.fix_dims(x, [d for d in range(len(x.shape)) if d != 1], call.shape)
