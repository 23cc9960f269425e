"""Pictures. matplotlib is imported only when one is drawn."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, cast

from alignkit.arguments import check_arguments
from alignkit.checkpoints.staging import staged
from alignkit.errors import AlignmentError, MissingExtraError, TaskError
from alignkit.matching.unit_similarity import unit_similarity
from alignkit.plotting.heatmap import draw_matrices, draw_strips
from alignkit.text import install_extra

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from alignkit.graph import Pair
    from alignkit.graph.elements.alignment import Alignment

PALETTE = ("#000000", "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c6d31")
"""Colours that stay apart for colour-blind readers ([Okabe02]), in the order of the lines."""
STYLES = ("-", "--", "-.", ":")
"""Line styles, so that lines of one shape stay apart where they cover each other."""


@dataclass(frozen=True)
class Curve:
    """Loss and metric on a line between two networks; `alignkit.Interpolation` is one.

    Losses and metrics (None without a metric) are means at each of ``lambdas``, the shares of B from 0 to 1. ``label``
    is the name of the line in pictures and tables.
    """

    lambdas: tuple[float, ...]
    losses: tuple[float, ...]
    metrics: tuple[float, ...] | None = None
    metric_name: str | None = None
    label: str | None = None


@check_arguments
def plot_interpolations(
    lines: Iterable[Curve], target: str | PathLike[str] | Axes | None = None, *, title: str | None = None
) -> Figure:
    """Draw several interpolations in one picture: losses, and beside them the metric if every line has one.

    Args:
        lines: Interpolations, or other curves; ``label`` names each in the legend.
        target: A file to write (its suffix gives the format; written whole or not at all), matplotlib axes on which
            only the losses are drawn, or None for a new figure.
        title: Text above the picture.

    Raises:
        MissingExtraError: matplotlib is not installed.
        TaskError: There is nothing to draw, or the suffix is not that of a picture.
    """
    curves = list(lines)
    if not curves:
        raise TaskError("there is no interpolation to draw.")
    if target is not None and not isinstance(target, (str, PathLike)):
        _draw(target, curves, "loss", [curve.losses for curve in curves])
        target.legend(frameon=False)
        return cast("Figure", target.figure)
    metrics = [curve.metrics for curve in curves if curve.metrics is not None]
    figure = _new_figure(target, panels=2 if len(metrics) == len(curves) else 1)
    _draw(figure.axes[0], curves, "loss", [curve.losses for curve in curves])
    if len(figure.axes) > 1:
        _draw(figure.axes[1], curves, curves[0].metric_name or "metric", metrics)
    handles = figure.axes[0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=min(4, len(curves)), frameon=False)
    return _finish(figure, title, target)


@check_arguments
def bar_chart(
    values: Mapping[str, float], label: str, target: str | PathLike[str] | None = None, *, title: str | None = None
) -> Figure:
    """Draw one horizontal bar for each name, the first on top, whose length is the value; ``label`` says what it is.

    ``target`` is a file to write, or None for a new figure. Title and errors are those of `plot_interpolations`.
    """
    figure = _new_figure(target, panels=1)
    axes = figure.axes[0]
    axes.barh(range(len(values)), list(values.values()), color=PALETTE[1])
    axes.set_yticks(range(len(values)), list(values))
    axes.invert_yaxis()
    axes.set_xlabel(label)
    axes.spines[["top", "right"]].set_visible(False)
    return _finish(figure, title, target)


@check_arguments
def plot_alignment(
    pair: Pair,
    alignment: Alignment,
    target: str | PathLike[str] | None = None,
    *,
    groups: Sequence[str] | None = None,
    title: str | None = None,
) -> Figure:
    """Draw how alike the units of two networks are before and after alignment, as heat maps.

    Without ``groups`` every group of the graph is one strip: the cosines of its units with those of B at the same
    places, from the least to the most alike, before and after, and beside them the share of units that moved. With
    ``groups`` each of these is a matrix of all units of A against all units of B: in B's own order, where a matching
    shows as scattered points, and in the order of the alignment, where it is the diagonal.

    Args:
        pair: The two networks, ``graph.bind(a, b)``.
        alignment: The order of B's units.
        target: A file to write, or None for a new figure.
        groups: Groups to draw as matrices, about four at most.
        title: Text above the picture.

    Raises:
        MissingExtraError: matplotlib is not installed.
        TaskError: The graph has no group, or not one of those named; or the suffix is not that of a picture.
        AlignmentError: The alignment belongs to another graph.
    """
    if alignment.graph != pair.graph:
        raise AlignmentError("the alignment belongs to another graph than the pair.")
    if not pair.graph.groups:
        raise TaskError("the graph has no group, so there is nothing to draw.")
    figure = _new_figure(target, panels=0)
    if groups is None:
        draw_strips(figure, unit_similarity(pair.graph, pair.a, pair.b, alignment), alignment.moved())
    else:
        draw_matrices(figure, pair, alignment, groups)
    return _finish(figure, title, target)


@check_arguments
def check_picture(path: str | PathLike[str]) -> str:
    """Return the format that the suffix of a picture names.

    Raises:
        TaskError: The suffix is not that of a picture.
        MissingExtraError: matplotlib is not installed.
    """
    path = Path(path)
    known = sorted(_new_figure(path, 0).canvas.get_supported_filetypes())
    if (kind := path.suffix.lstrip(".").lower()) not in known:
        raise TaskError(f"{path}: a picture cannot be written as {path.suffix!r}. Known: {', '.join(known)}.")
    return kind


@check_arguments
def save_figure(figure: Figure, path: str | PathLike[str]) -> None:
    """Write a figure to a file, whole or not at all.

    Raises:
        TaskError: The suffix is not that of a picture.
        WeightsError: The folder does not exist or cannot be written to.
    """
    path = Path(path)
    kind = check_picture(path)
    with staged(path) as temporary:
        figure.savefig(temporary, format=kind, dpi=80)


def _new_figure(target: object, panels: int) -> Figure:
    """Make a figure with some axes side by side, or an empty one of the default size for 0 panels."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError(f"pictures need matplotlib: {install_extra('plot')}.") from error
    size = (4.4 * panels, 3.6) if panels else None  # inches
    if target is None:  # known to pyplot, so that notebooks and plt.show() find it
        from matplotlib import pyplot

        figure = pyplot.figure(figsize=size, layout="constrained")
    else:
        figure = Figure(figsize=size, layout="constrained")
    if panels:
        figure.subplots(1, panels)
    return figure


def _finish(figure: Figure, title: str | None, target: str | PathLike[str] | None) -> Figure:
    if title:
        figure.suptitle(title)
    if target is not None:
        save_figure(figure, target)
    return figure


def _draw(axes: Axes, curves: Sequence[Curve], name: str, values: Sequence[Sequence[float]]) -> None:
    for index, (curve, heights) in enumerate(zip(curves, values, strict=True)):
        colour, style = PALETTE[index % len(PALETTE)], STYLES[index % len(STYLES)]
        label = curve.label or f"line {index + 1}"
        axes.plot(curve.lambdas, heights, style, color=colour, label=label, linewidth=1.8)
    axes.set(xlabel="lambda: from A (0) to B (1)", ylabel=name, xlim=(0, 1))
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
