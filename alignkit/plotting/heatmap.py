"""Heat maps of an alignment; `alignkit.plotting.plot_alignment` is the front door."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from alignkit.errors import TaskError
from alignkit.graph.elements.alignment import Alignment
from alignkit.matching.unit_similarity import UnitSimilarity, similarity_matrix

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from alignkit.graph import Pair

SHADES: dict[str, Any] = {"cmap": "viridis", "vmin": 0, "vmax": 1, "interpolation": "nearest"}
"""How cosines are drawn: in a colour map that reads alike with and without colour vision, light for alike."""
COLUMNS = 100
"""Percentiles of the units across a strip."""
FINEST = 192
"""Maximum number of rows and columns of a drawn matrix; of larger ones the largest element of each tile is shown."""
TALLEST = 30.0
"""Inches; groups share the height when there are too many for one legible line each."""
MAX_NAME = 48
"""Maximum number of characters of a group's name beside a strip or above a matrix."""


def draw_strips(figure: Figure, similarities: Mapping[str, UnitSimilarity], moved: Mapping[str, int]) -> None:
    """Draw one strip a group, from top to bottom: cosines of its units, least alike on the left, before and after.

    Beside it a bar shows the share of units that change place, whose number is in ``moved``. The figure is empty; its
    size is set.
    """
    names, rows = list(similarities), len(similarities)
    height = min(TALLEST, 1.5 + 0.19 * rows)
    longest = max((len(name) for name in names), default=0)
    figure.set_size_inches(6.6 + 0.066 * min(longest, MAX_NAME), max(2.4, height))
    left, middle, right = figure.subplots(1, 3, width_ratios=(4, 4, 1.3), sharey=True)
    levels = (np.arange(COLUMNS) + 0.5) / COLUMNS
    before = [similarity.before for similarity in similarities.values()]
    after = [similarity.after for similarity in similarities.values()]
    for axes, title, cosines in ((left, "before alignment", before), (middle, "after", after)):
        flat = [values.reshape(-1).clamp(-1, 1).numpy() for values in cosines]
        strips = np.stack([np.quantile(values, levels, method="nearest") for values in flat])
        image = axes.imshow(strips, **SHADES, aspect="auto", extent=(0, 100, rows, 0))
        axes.set_title(title, fontsize=9)
        axes.set_xlabel("percentile of units", fontsize=8)
        axes.set_xticks([0, 50, 100])
    step = max(1, round(rows * 0.13 / max(height - 1.5, 0.1)))
    left.set_yticks([at + 0.5 for at in range(0, rows, step)], [_shortened(name) for name in names[::step]], fontsize=7)
    moved_percent = [100 * moved[name] / max(1, values.numel()) for name, values in zip(names, after, strict=True)]
    right.barh([at + 0.5 for at in range(rows)], moved_percent, height=0.75, color="#0072b2")
    right.set_xlim(0, 100)
    right.set_title("units moved", fontsize=9)
    right.set_xlabel("%", fontsize=8)
    right.spines[["top", "right"]].set_visible(False)
    for axes in (left, middle, right):
        axes.tick_params(labelsize=7, length=2)
    bar = figure.colorbar(image, ax=[left, middle, right], shrink=min(0.9, 2.5 / height), pad=0.02)
    bar.set_label("cosine of unit of A\nand unit of B", fontsize=7)
    bar.ax.tick_params(labelsize=7)


def draw_matrices(figure: Figure, pair: Pair, alignment: Alignment, groups: Sequence[str]) -> None:
    """Draw units of A against units of B, in B's own order above and in the order of the alignment below.

    Of a family the first instance is shown. The figure is empty; its size is set.

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
        size = matrix.shape[-1]
        moved = alignment.as_matrices()[name].reshape(-1, size, size)[0].to(matrix)
        for row, cosines in enumerate((matrix @ moved, matrix)):
            axes: Axes = grid[row][column]
            if size > FINEST:
                cosines = torch.nn.functional.adaptive_max_pool2d(cosines[None], FINEST)[0]
            image = axes.imshow(cosines.clamp(-1, 1).numpy(), **SHADES, extent=(0, size, size, 0))
            axes.tick_params(labelsize=7, length=2)
            axes.set(xticks=[0, size], yticks=[0, size])
            axes.set_xlabel("place of aligned B" if row else "unit of B", fontsize=8, labelpad=-4)
            if not column:
                axes.set_ylabel("unit of A", fontsize=8, labelpad=-6)
        count = pair.graph.instances(name)
        grid[0][column].set_title(_shortened(name) + (f"\n1 of {count}" if count > 1 else ""), fontsize=8)
    bar = figure.colorbar(image, ax=grid, shrink=0.5, pad=0.02)
    bar.set_label("cosine", fontsize=8)
    bar.ax.tick_params(labelsize=7)


def _shortened(name: str) -> str:
    return name if len(name) <= MAX_NAME else "…" + name[1 - MAX_NAME :]
