"""A graph as a matplotlib figure: layers from top to bottom, groups as colours and as vertical lines."""

from __future__ import annotations

import colorsys
from collections.abc import Mapping
from typing import Any, TypeAlias

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from alignkit.graph.description import units_text
from alignkit.graph.drawing.rows import Box, PictureRow, picture_rows
from alignkit.graph.notation import pieces_of
from alignkit.graph.structure import GraphStructure

_FONT = 8.0
_CHAR = _FONT * 0.6021 / 72  # inches: the advance of DejaVu Sans Mono
_ROW = 0.235  # inches
_LANE = 2.0  # characters
_LONGEST = 30  # characters of a group's name in a box
Colour: TypeAlias = tuple[float, float, float]
_INK, _FAINT, _EDGE, _BAND = "#222222", "#767676", "#9a9a9a", "#f4f4f6"


def paint(graph: GraphStructure) -> Figure:
    """Draw a graph.

    Every row is a layer. On its left stand its tensors as boxes, one cell for each axis, labelled with the notation
    and coloured by group; on its right every group is a vertical line from its first to its last layer, with a dot
    where it acts. Layers that repeat are drawn once.
    """
    rows = picture_rows(graph)
    # Hues of neighbours in the list are far apart: steps of the golden angle spread any number of hues evenly.
    hues = {name: (0.58 + i * 0.381966) % 1 for i, name in enumerate(graph.groups)}
    colours = {name: colorsys.hls_to_rgb(hue, 0.45, 0.62) for name, hue in hues.items()}
    lanes, legends = _find_lanes(rows), _write_legends(graph, rows)
    titles = [f"... to {row.path}: {row.repeats} more like this" if row.repeats else row.path for row in rows]
    # The columns of the figure, measured in characters.
    boxes_at = max([8, *(len(title) for title, row in zip(titles, rows, strict=True) if not row.repeats)]) + 3.0
    lanes_at = boxes_at + max([sum(_box_width(row, box) for box in row.boxes) for row in rows] or [10]) + 1.0
    names_at = lanes_at + (1 + max(lanes.values(), default=0)) * _LANE + 1.0
    names = max((sum(len(text) + 3 for text in legend.values()) for legend in legends), default=0)
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
    for name, column in lanes.items():
        acts_at = [at for at, row in enumerate(rows) if name in row.groups]
        x = lanes_at + (column + 0.5) * _LANE
        axes.plot([x, x], [acts_at[0], acts_at[-1]], color=colours[name], linewidth=1.6, zorder=2)
        axes.plot([x] * len(acts_at), acts_at, "o", color=colours[name], markersize=4.2, zorder=3)
    for at, legend in enumerate(legends):
        x = names_at
        for name, text in legend.items():
            _write(axes, x, at, text, colour=colours[name])
            x += len(text) + 3
    for at, (title, row) in enumerate(zip(titles, rows, strict=True)):
        _write(axes, 1.0, at, title, **({"colour": _FAINT, "style": "italic"} if row.repeats else {}))
        x = boxes_at
        for box in row.boxes:
            _draw_box(axes, x, at, row, box, colours)
            x += _box_width(row, box)
    return figure


def _find_lanes(rows: list[PictureRow]) -> dict[str, int]:
    """Choose a column for the line of each group that is shown; lines share one where they do not overlap."""
    lanes: dict[str, int] = {}
    last = {name: at for at, row in enumerate(rows) for name in row.groups}
    free_from: list[int] = []
    for at, row in enumerate(rows):
        for name in (name for name in row.groups if name not in lanes):
            lanes[name] = next((column for column, end in enumerate(free_from) if end < at), len(free_from))
            free_from[lanes[name] : lanes[name] + 1] = [last[name]]
    return lanes


def _write_legends(graph: GraphStructure, rows: list[PictureRow]) -> list[dict[str, str]]:
    """Write the legends of the groups that begin in each row, by name; all but the first in a row are shortened."""
    legends: list[dict[str, str]] = []
    begun: set[str] = set()
    for row in rows:
        new = [name for name in row.groups if name not in begun]
        short = [name if name == new[0] else _shorten_name(name, new[0]) for name in new]
        sizes = [units_text(graph, name).replace(" ", "") for name in new]
        legends.append({name: f"{text} ({size})" for name, text, size in zip(new, short, sizes, strict=True)})
        begun.update(new)
    return legends


def _draw_box(axes: Axes, x: float, y: int, row: PictureRow, box: Box, colours: Mapping[str, Colour]) -> None:
    """Draw the label of a box, and for each axis a cell with the notation, in which groups have their colours."""

    def cell(left: float, width: float, **style: Any) -> None:
        axes.add_patch(Rectangle((left, y - 0.4), width, 0.8, linewidth=0.6, **style))

    label, cells = _box_texts(row, box)
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


def _box_texts(row: PictureRow, box: Box) -> tuple[str, list[list[tuple[str, str | None]]]]:
    """Write the label of a box, and cut the notation of each axis into texts, each with the group that it names."""
    names = " ".join(name for name in box.names if name)
    cells: list[list[tuple[str, str | None]]] = [
        [(p, None) if isinstance(p, str) else (_shorten_name(p.group, row.path), p.group) for p in pieces_of(axis)]
        for axis in box.tensor.layout
    ]
    return f"{names} {'x'.join(map(str, box.tensor.shape))}".strip(), cells


def _box_width(row: PictureRow, box: Box) -> float:
    label, cells = _box_texts(row, box)
    return len(label) + 1 + sum(sum(len(text) for text, _ in pieces) + 1 for pieces in cells) + 2.0


def _shorten_name(name: str, path: str) -> str:
    """Cut off the part of a group's name that it shares with the path of the layer."""
    parts, here = name.split("."), path.split(".")
    shared = 0
    while shared < min(len(parts) - 1, len(here)) and parts[shared] == here[shared]:
        shared += 1
    text = ("…" if shared else "") + ".".join(parts[shared:])
    return text if len(text) <= _LONGEST else "…" + text[-_LONGEST + 1 :]
