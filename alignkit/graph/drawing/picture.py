"""A graph as a matplotlib figure: layers from top to bottom, groups as colours and as vertical lines."""

from __future__ import annotations

import colorsys
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from alignkit.graph.description import units_text
from alignkit.graph.drawing.rows import Box, PictureRow, picture_rows
from alignkit.graph.layout import Axis
from alignkit.graph.notation import pieces_of
from alignkit.graph.structure import GraphStructure

_FONT = 8.0
_CHAR = _FONT * 0.6021 / 72  # inches: the advance of DejaVu Sans Mono
_ROW = 0.235  # inches
_LANE = 2.0  # characters
_LONGEST = 30  # characters of a group's name in a box
_INK, _FAINT, _EDGE, _BAND = "#222222", "#767676", "#9a9a9a", "#f4f4f6"


def paint(graph: GraphStructure) -> Figure:
    """Draw a graph.

    Every row is a layer. On its left stand its tensors as boxes, one cell for each axis, labelled with the notation
    and coloured by group; on its right every group is a vertical line from its first to its last layer, with a dot
    where it acts. Layers that repeat are drawn once.
    """
    rows = picture_rows(graph)
    sheet = _Sheet(graph, rows)
    width = sheet.width * _CHAR
    height = (len(rows) + 3.2) * _ROW
    figure = Figure(figsize=(width, height), dpi=min(150.0, 60_000 / max(width, height)))
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    axes.set_axis_off()
    axes.set_xlim(0, sheet.width)
    axes.set_ylim(len(rows) - 0.2, -3.4)
    sheet.draw(axes)
    return figure


def group_colours(graph: GraphStructure) -> dict[str, tuple[float, float, float]]:
    """Give each group a colour; hues of neighbours in the list are far apart."""
    # Steps of the golden angle spread any number of hues evenly.
    return {name: colorsys.hls_to_rgb((0.58 + i * 0.381966) % 1, 0.45, 0.62) for i, name in enumerate(graph.groups)}


@dataclass
class _Lane:
    """The vertical line of one group."""

    group: str
    column: int
    rows: list[int] = field(default_factory=list)


class _Sheet:
    """The columns of the figure, measured in characters."""

    def __init__(self, graph: GraphStructure, rows: list[PictureRow]) -> None:
        self.graph, self.rows = graph, rows
        self.colours = group_colours(graph)
        self.lanes = _lanes(rows)
        self.boxes_at = max([8, *(len(_title(row)) for row in rows if not row.repeats)]) + 3.0
        boxes = max([sum(_box_width(row, box) for box in row.boxes) for row in rows] or [10])
        self.lanes_at = self.boxes_at + boxes + 1.0
        columns = 1 + max([lane.column for lane in self.lanes.values()] or [0])
        self.names_at = self.lanes_at + columns * _LANE + 1.0
        names = max([sum(len(text) + 3 for _, text in self._legend(new)) for new in self._new().values()] or [0])
        self.width = max(self.names_at + names, len(self.graph.summary) + 2.0, 60.0) + 1.0

    def _new(self) -> dict[int, list[str]]:
        """List groups by the row in which they begin."""
        begin: dict[int, list[str]] = {}
        for lane in self.lanes.values():
            begin.setdefault(lane.rows[0], []).append(lane.group)
        return begin

    def _legend(self, names: list[str]) -> Iterator[tuple[str, str]]:
        """List name and legend of the groups that begin in one row."""
        for name in names:
            size = units_text(self.graph, name).replace(" ", "")
            yield name, f"{name if name == names[0] else _short(name, names[0])} ({size})"

    def draw(self, axes: Axes) -> None:
        """Draw everything on axes whose unit is a character across and a row down."""
        _write(axes, 1.0, -2.5, self.graph.summary, weight="bold")
        headings = ((1.0, "layer"), (self.boxes_at, "tensors, axis by axis"), (self.lanes_at, "groups"))
        for x, text in headings:
            _write(axes, x, -1.2, text, colour=_FAINT)
        self._draw_bands(axes)
        self._draw_lanes(axes)
        for at, row in enumerate(self.rows):
            if row.repeats:
                _write(axes, 1.0, at, _title(row), colour=_FAINT, style="italic")
                continue
            _write(axes, 1.0, at, _title(row))
            x = self.boxes_at
            for box in row.boxes:
                self._draw_box(axes, x, at, row, box)
                x += _box_width(row, box)

    def _draw_bands(self, axes: Axes) -> None:
        """Shade every second block of layers."""
        shade, last = True, "no block yet"
        for at, row in enumerate(self.rows):
            block = _block(row.path)
            if block != last:
                shade, last = not shade, block
            if shade:
                axes.add_patch(Rectangle((0, at - 0.5), self.width, 1, facecolor=_BAND, edgecolor="none", zorder=0))

    def _draw_lanes(self, axes: Axes) -> None:
        for lane in self.lanes.values():
            x, colour = self.lanes_at + (lane.column + 0.5) * _LANE, self.colours[lane.group]
            axes.plot([x, x], [lane.rows[0], lane.rows[-1]], color=colour, linewidth=1.6, zorder=2)
            axes.plot([x] * len(lane.rows), lane.rows, "o", color=colour, markersize=4.2, zorder=3)
        for at, names in self._new().items():
            x = self.names_at
            for name, text in self._legend(names):
                _write(axes, x, at, text, colour=self.colours[name])
                x += len(text) + 3

    def _draw_box(self, axes: Axes, x: float, y: int, row: PictureRow, box: Box) -> None:
        label = _label(box)
        _write(axes, x, y, label, colour=_FAINT)
        x += len(label) + 1
        for axis in box.tensor.layout:
            pieces = _pieces(axis, row.path)
            width = sum(len(text) for text, _ in pieces) + 1
            at = x + 0.5
            for text, group in pieces:
                if group is not None:
                    pale = tuple(1 - 0.3 * (1 - channel) for channel in self.colours[group])
                    self._cell(axes, at - 0.25, y, len(text) + 0.5, pale, "none", 2)
                _write(axes, at, y, text, colour=_INK if group else _FAINT)
                at += len(text)
            self._cell(axes, x, y, width, "none", _EDGE, 4)
            x += width

    def _cell(self, axes: Axes, x: float, y: int, width: float, face: object, edge: str, order: int) -> None:
        axes.add_patch(Rectangle((x, y - 0.4), width, 0.8, facecolor=face, edgecolor=edge, linewidth=0.6, zorder=order))


def _write(axes: Axes, x: float, y: float, text: str, colour: object = _INK, **font: Any) -> None:
    axes.text(
        x, y, text, color=colour, fontsize=_FONT, family="DejaVu Sans Mono", va="center_baseline", zorder=5,
        parse_math=False, **font,
    )  # fmt: skip


def _title(row: PictureRow) -> str:
    return f"... to {row.path}: {row.repeats} more like this" if row.repeats else row.path


def _block(path: str) -> str:
    """Cut a path behind its first number: the block that a layer belongs to; "" outside of blocks."""
    parts = path.split(".")
    number = next((at for at, part in enumerate(parts) if part.isdigit()), -1)
    return ".".join(parts[: number + 1])


def _label(box: Box) -> str:
    names = " ".join(name for name in box.names if name)
    return f"{names} {'x'.join(map(str, box.tensor.shape))}".strip()


def _box_width(row: PictureRow, box: Box) -> float:
    cells = sum(sum(len(text) for text, _ in _pieces(axis, row.path)) + 1 for axis in box.tensor.layout)
    return len(_label(box)) + 1 + cells + 2.0


def _pieces(axis: Axis, path: str) -> list[tuple[str, str | None]]:
    """Cut the notation of an axis into texts, each with the group that it names, if any."""
    return [(p, None) if isinstance(p, str) else (_short(p.group, path), p.group) for p in pieces_of(axis)]


def _short(name: str, path: str) -> str:
    """Cut off the part of a group's name that it shares with the path of the layer."""
    parts, here = name.split("."), path.split(".")
    shared = 0
    while shared < min(len(parts) - 1, len(here)) and parts[shared] == here[shared]:
        shared += 1
    text = ("…" if shared else "") + ".".join(parts[shared:])
    return text if len(text) <= _LONGEST else "…" + text[-_LONGEST + 1 :]


def _lanes(rows: list[PictureRow]) -> dict[str, _Lane]:
    """Lay out a line for each group that is shown; lines share a column where they do not overlap."""
    lanes: dict[str, _Lane] = {}
    last: dict[str, int] = {name: at for at, row in enumerate(rows) for name in row.groups}
    free_from: list[int] = []
    for at, row in enumerate(rows):
        for name in row.groups:
            if name not in lanes:
                column = next((c for c, end in enumerate(free_from) if end < at), len(free_from))
                free_from[column:column + 1] = [last[name]]  # fmt: skip
                lanes[name] = _Lane(name, column)
            lanes[name].rows.append(at)
    return lanes
