"""Heat maps of an alignment; `alignkit.plotting.plot_alignment` is the front door."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from alignkit.errors import TaskError
from alignkit.graph.elements.alignment import Alignment
from alignkit.matching.unit_similarity import UnitSimilarity, similarity_matrix

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from alignkit.graph import Pair

COLOURS = "viridis"
"""A colour map that reads alike with and without colour vision, light for alike."""
COLUMNS = 100
"""Percentiles of the units across a strip."""
FINEST = 192
"""Maximum number of rows and columns of a drawn matrix; of larger ones the largest element of each tile is shown."""
TALLEST = 30.0
"""Inches; groups share the height when there are too many for one legible line each."""

FloatArray = npt.NDArray[np.float64]


def draw_strips(figure: Figure, similarities: Mapping[str, UnitSimilarity], moved: Mapping[str, int]) -> None:
    """Draw one strip a group, from top to bottom: cosines of its units, least alike on the left, before and after.

    Args:
        figure: An empty figure; its height is set.
        similarities: What `unit_similarity` measured.
        moved: Units of each group that change place.
    """
    names = list(similarities)
    rows = len(names)
    height = min(TALLEST, 1.5 + 0.19 * rows)
    label = max((len(name) for name in names), default=0)
    figure.set_size_inches(6.6 + 0.066 * min(label, 48), max(2.4, height))
    left, middle, right = figure.subplots(1, 3, width_ratios=(4, 4, 1.3), sharey=True)
    images = {
        "before alignment": [v.before for v in similarities.values()],
        "after": [v.after for v in similarities.values()],
    }
    for axes, (title, values) in zip((left, middle), images.items(), strict=True):
        strips = np.stack([_percentiles(value) for value in values])
        image = axes.imshow(
            strips, cmap=COLOURS, vmin=0, vmax=1, aspect="auto", interpolation="nearest", extent=(0, 100, rows, 0)
        )
        axes.set_title(title, fontsize=9)
        axes.set_xlabel("percentile of units", fontsize=8)
        axes.tick_params(labelsize=7, length=2)
        axes.set_xticks([0, 50, 100])
    step = max(1, round(rows * 0.13 / max(height - 1.5, 0.1)))
    left.set_yticks([at + 0.5 for at in range(0, rows, step)], [_shortened(name) for name in names[::step]], fontsize=7)
    shares = [moved[name] / max(1, similarities[name].after.numel()) for name in names]
    right.barh([at + 0.5 for at in range(rows)], [100 * share for share in shares], height=0.75, color="#0072b2")
    right.set_xlim(0, 100)
    right.set_title("units moved", fontsize=9)
    right.set_xlabel("%", fontsize=8)
    right.tick_params(labelsize=7, length=2)
    right.spines[["top", "right"]].set_visible(False)
    bar = figure.colorbar(image, ax=[left, middle, right], shrink=min(0.9, 2.5 / height), pad=0.02)
    bar.set_label("cosine of unit of A\nand unit of B", fontsize=7)
    bar.ax.tick_params(labelsize=7)


def draw_matrices(figure: Figure, pair: Pair, alignment: Alignment, groups: Sequence[str]) -> None:
    """Draw units of A against units of B, in B's own order above and in the order of the alignment below.

    Args:
        figure: An empty figure; its size is set.
        pair: The two networks.
        alignment: The order of B's units.
        groups: What to draw. Of a family the first instance is shown.

    Raises:
        TaskError: A group is not in the graph, or there is none.
    """
    if not groups:
        raise TaskError("there is no group to draw.")
    if unknown := [name for name in groups if name not in pair.graph.groups]:
        raise TaskError(f"the graph has no group {unknown[0]!r}.")
    figure.set_size_inches(0.7 + 2.3 * len(groups), 4.9)
    grid = figure.subplots(2, len(groups), squeeze=False)
    for column, name in enumerate(groups):
        matrix = similarity_matrix(pair.graph, pair.a, pair.b, alignment, name)[0]
        order = alignment.elements[name].reshape(-1, matrix.shape[-1])[0]
        size = matrix.shape[-1]
        for row, values in enumerate((matrix[:, order.argsort()], matrix)):
            axes: Axes = grid[row][column]
            image = axes.imshow(
                _tiles(values), cmap=COLOURS, vmin=0, vmax=1, interpolation="nearest", extent=(0, size, size, 0)
            )
            axes.tick_params(labelsize=7, length=2)
            axes.set_xticks([0, size])
            axes.set_yticks([0, size])
            axes.set_xlabel("unit of B" if not row else "place of aligned B", fontsize=8, labelpad=-4)
            if not column:
                axes.set_ylabel("unit of A", fontsize=8, labelpad=-6)
        many = pair.graph.instances(name)
        grid[0][column].set_title(_shortened(name) + (f"\n1 of {many}" if many > 1 else ""), fontsize=8)
    bar = figure.colorbar(image, ax=grid, shrink=0.5, pad=0.02)
    bar.set_label("cosine", fontsize=8)
    bar.ax.tick_params(labelsize=7)


def _percentiles(values: Tensor) -> FloatArray:
    flat: FloatArray = values.reshape(-1).clamp(-1, 1).numpy()
    return np.quantile(flat, (np.arange(COLUMNS) + 0.5) / COLUMNS, method="nearest")


def _tiles(matrix: Tensor) -> FloatArray:
    """Shrink a large matrix to the largest element of each tile, so that single units stay visible."""
    size = matrix.shape[-1]
    if size > FINEST:
        matrix = torch.nn.functional.adaptive_max_pool2d(matrix[None], FINEST)[0]
    tiled: FloatArray = matrix.clamp(-1, 1).numpy()
    return tiled


def _shortened(name: str) -> str:
    return name if len(name) <= 48 else "…" + name[-47:]
