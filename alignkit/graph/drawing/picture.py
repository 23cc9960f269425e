"""A graph as a matplotlib figure: layers from top to bottom, groups as colours and as vertical lines."""

from __future__ import annotations

import colorsys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from alignkit.graph.description import mention_text
from alignkit.graph.drawing.rows import Box, PictureRow, picture_rows
from alignkit.graph.layout import StackPlaces, Units
from alignkit.graph.notation import mark_of, pieces_of
from alignkit.graph.structure import GraphStructure

_FONT = 8.0
_CHAR = _FONT * 0.6021 / 72  # inches: the advance of DejaVu Sans Mono
_ROW = 0.235  # inches
_LANE = 2.0  # characters
_LONGEST = 30  # characters of a group's name in a box
_INK, _FAINT, _EDGE, _BAND = "#222222", "#767676", "#9a9a9a", "#f4f4f6"
Colour: TypeAlias = tuple[float, float, float]
Cells: TypeAlias = list[list[tuple[str, str | None]]]
"""For each axis of a tensor the texts of its notation, each with the group that it names, if any."""


def paint(graph: GraphStructure) -> Figure:
    """Draw a graph.

    Every row is a layer. On its left stand its tensors as boxes, one cell for each axis, labelled with the notation
    and coloured by group; on its right every group is a vertical line from its first to its last layer, with a dot
    where it acts. Layers that repeat are drawn once.
    """
    rows = picture_rows(graph)
    # Hues of neighbours in the list are far apart: steps of the golden angle spread any number of hues evenly.
    hues = {name: (0.58 + i * 0.381966) % 1 for i, name in enumerate(graph.copies)}
    colours = {name: colorsys.hls_to_rgb(hue, 0.45, 0.62) for name, hue in hues.items()}
    lanes = _find_lanes(graph, rows)
    titles = [f"... to {row.path}: {row.repeats} more like this" if row.repeats else row.path for row in rows]
    # The columns of the figure, measured in characters.
    boxes_at = max([8, *(len(title) for title, row in zip(titles, rows, strict=True) if not row.repeats)]) + 3.0
    boxes = [[_write_box(row.path, box) for box in row.boxes] for row in rows]
    lanes_at = boxes_at + max([sum(width for *_, width in texts) for texts in boxes] or [10]) + 1.0
    names_at = lanes_at + (1 + max([lane.column for lane in lanes.values()] or [0])) * _LANE + 1.0
    names = max([lane.legend_at + len(lane.legend) + 3 for lane in lanes.values()] or [0])
    across = max(names_at + names, len(graph.summary) + 2.0, 60.0) + 1.0
    width, height = across * _CHAR, (len(rows) + 3.2) * _ROW
    figure = Figure(figsize=(width, height), dpi=min(150.0, 60_000 / max(width, height)))
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0), xlim=(0, across), ylim=(len(rows) - 0.2, -3.4))
    axes.set_axis_off()
    _write(axes, 1.0, -2.5, graph.summary, weight="bold")
    for x, text in ((1.0, "layer"), (boxes_at, "tensors, axis by axis"), (lanes_at, "groups")):
        _write(axes, x, -1.2, text, colour=_FAINT)
    shade, block = True, "no block yet"
    for at, row in enumerate(rows):
        # Every second block of layers is shaded. A block is named by the path up to its first number.
        parts = row.path.split(".")
        number = next((i for i, part in enumerate(parts) if part.isdigit()), -1)
        if (begun := ".".join(parts[: number + 1])) != block:
            shade, block = not shade, begun
        if shade:
            axes.add_patch(Rectangle((0, at - 0.5), across, 1, facecolor=_BAND, edgecolor="none", zorder=0))
    for name, lane in lanes.items():
        x, colour = lanes_at + (lane.column + 0.5) * _LANE, colours[name]
        axes.plot([x, x], [lane.rows[0], lane.rows[-1]], color=colour, linewidth=1.6, zorder=2)
        axes.plot([x] * len(lane.rows), lane.rows, "o", color=colour, markersize=4.2, zorder=3)
        _write(axes, names_at + lane.legend_at, lane.rows[0], lane.legend, colour=colour)
    for at, (title, row) in enumerate(zip(titles, rows, strict=True)):
        _write(axes, 1.0, at, title, **({"colour": _FAINT, "style": "italic"} if row.repeats else {}))
        x = boxes_at
        for label, cells, width in boxes[at]:
            _draw_box(axes, x, at, label, cells, colours)
            x += width
    return figure


@dataclass
class _Lane:
    """The vertical line of one group: the rows on which it acts, its column, its legend and where that starts."""

    rows: list[int]
    column: int
    legend: str
    legend_at: int


def _find_lanes(graph: GraphStructure, rows: list[PictureRow]) -> dict[str, _Lane]:
    """Lay out a line for each group that is shown; lines share a column where they do not overlap."""
    acts_on: dict[str, list[int]] = {}
    for at, row in enumerate(rows):
        for name in row.groups:
            acts_on.setdefault(name, []).append(at)
    lanes: dict[str, _Lane] = {}
    ends: list[int] = []  # the last row of each column
    begun: dict[int, tuple[str, int]] = {}  # by row, the first group that begins there and the length of its legends
    for name, numbers in acts_on.items():
        column = next((number for number, end in enumerate(ends) if end < numbers[0]), len(ends))
        ends[column : column + 1] = [numbers[-1]]
        first, start = begun.get(numbers[0], (name, 0))
        short = mark_of(graph.mentions[name]) + (name if name == first else _shorten_name(name, first))
        legend = f"{short} ({mention_text(graph, name).replace(' ', '')})"
        begun[numbers[0]] = first, start + len(legend) + 3
        lanes[name] = _Lane(numbers, column, legend, start)
    return lanes


def _draw_box(axes: Axes, x: float, y: int, label: str, cells: Cells, colours: Mapping[str, Colour]) -> None:
    """Draw the label of a box, and for each axis a cell with the notation, in which groups have their colours."""

    def cell(left: float, width: float, **style: Any) -> None:
        axes.add_patch(Rectangle((left, y - 0.4), width, 0.8, linewidth=0.6, **style))

    _write(axes, x, y, label, colour=_FAINT)
    x += len(label) + 1
    for pieces in cells:
        at = x + 0.5
        for text, group in pieces:
            if group is not None:
                pale = tuple(1 - 0.3 * (1 - channel) for channel in colours[group])
                cell(at - 0.25, len(text) + 0.5, facecolor=pale, edgecolor="none", zorder=2)
            _write(axes, at, y, text, colour=_INK if group else _FAINT)
            at += len(text)
        cell(x, at + 0.5 - x, facecolor="none", edgecolor=_EDGE, zorder=4)
        x = at + 0.5


def _write(axes: Axes, x: float, y: float, text: str, colour: object = _INK, **font: Any) -> None:
    font |= {"fontsize": _FONT, "family": "DejaVu Sans Mono", "va": "center_baseline"}
    axes.text(x, y, text, color=colour, zorder=5, parse_math=False, **font)


def _write_box(path: str, box: Box) -> tuple[str, Cells, float]:
    """Return the label and the cells of a box of the layer ``path``, and its width."""

    def cell(piece: str | Units) -> tuple[str, str | None]:
        if isinstance(piece, str):
            return piece, None
        short = _shorten_name(piece.group, path)
        return mark_of(piece) + short, None if isinstance(piece, StackPlaces) else piece.group

    cells: Cells = [list(map(cell, pieces_of(axis))) for axis in box.tensor.layout]
    label = f"{' '.join(name for name in box.names if name)} {'x'.join(map(str, box.tensor.shape))}".strip()
    return label, cells, len(label) + 1 + sum(sum(len(text) for text, _ in pieces) + 1 for pieces in cells) + 2.0


def _shorten_name(name: str, path: str) -> str:
    """Cut off the part of a group's name that it shares with the path of the layer."""
    parts, here = name.split("."), path.split(".")
    shared = 0
    while shared < min(len(parts) - 1, len(here)) and parts[shared] == here[shared]:
        shared += 1
    text = ("…" if shared else "") + ".".join(parts[shared:])
    return text if len(text) <= _LONGEST else "…" + text[-_LONGEST + 1 :]
