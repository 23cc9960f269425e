"""Drawings of a graph: Mermaid text, Graphviz text, and a picture."""

from __future__ import annotations

import html
from pathlib import Path
from typing import TYPE_CHECKING

from alignkit.checkpoints.staging import staged
from alignkit.errors import AlignkitError, GraphError
from alignkit.graph.description import units_text
from alignkit.graph.structure import GraphStructure

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def mermaid(graph: GraphStructure) -> str:
    """Write Mermaid text: groups as rounded nodes, tensors as boxes, an edge for each axis on which a group acts."""
    nodes, edges = _nodes(graph), _edges(graph)
    lines = ["flowchart LR"]
    for name, (identifier, text) in nodes.items():
        label = "<br/>".join(html.escape(line, quote=False).replace('"', "&quot;") for line in (name, text))
        lines.append(f'    {identifier}(["{label}"])' if name in graph.groups else f'    {identifier}["{label}"]')
    for source, target, label in edges:
        lines.append(f"    {nodes[source][0]} {f'---|{label}|' if label else '-.->'} {nodes[target][0]}")
    return "\n".join(lines) + "\n"


def graphviz(graph: GraphStructure) -> str:
    """Write Graphviz text (DOT): the same nodes and edges as `mermaid`."""
    nodes, edges = _nodes(graph), _edges(graph)
    lines = ["digraph alignkit {", "    rankdir=LR;", '    node [fontname="monospace"];']
    for name, (identifier, text) in nodes.items():
        label = "\\n".join(line.replace("\\", "\\\\").replace('"', '\\"') for line in (name, text))
        shape = "ellipse" if name in graph.groups else "box"
        lines.append(f'    {identifier} [shape={shape}, label="{label}"];')
    for source, target, label in edges:
        style = f'label="{label}", dir=none' if label else "style=dashed"
        lines.append(f"    {nodes[source][0]} -> {nodes[target][0]} [{style}];")
    return "\n".join([*lines, "}"]) + "\n"


def draw(graph: GraphStructure, path: str | Path | None = None) -> Figure:
    """Draw a graph as a picture; see `alignkit.graph.drawing.picture.paint` for how to read it.

    Args:
        graph: The graph.
        path: Where to write the picture; its suffix says the format, for example ``.png``, ``.svg`` or ``.pdf``.

    Returns:
        The matplotlib figure.

    Raises:
        AlignkitError: matplotlib is not installed.
        GraphError: The suffix is not a format of pictures.
        WeightsError: The file cannot be written.
    """
    try:
        from alignkit.graph.drawing.picture import paint
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "matplotlib":
            raise
        raise AlignkitError('drawing needs matplotlib. Install it with pip install "alignkit[plot]".') from error
    figure = paint(graph)
    if path is not None:
        path = Path(path)
        form = path.suffix.removeprefix(".").lower()
        known = figure.canvas.get_supported_filetypes()
        if form not in known:
            raise GraphError(f"{path}: cannot tell the format of the picture. End its name in .png, .svg or .pdf.")
        with staged(path) as temporary:
            figure.savefig(temporary, format=form)
    return figure


def _nodes(graph: GraphStructure) -> dict[str, tuple[str, str]]:
    """Give each node an identifier, because names may hold any character, and the text below its name."""
    groups = {name: (f"g{i}", f"{units_text(graph, name)} units") for i, name in enumerate(graph.groups)}
    return groups | {t.name: (f"t{i}", t.notation() or "scalar") for i, t in enumerate(graph.tensors.values())}


def _edges(graph: GraphStructure) -> list[tuple[str, str, str]]:
    """List source, target and text of each edge: one for each tensor, axis and group; nesting has no text."""
    nested = [(group.name, group.parent, "") for group in graph.groups.values() if group.parent is not None]
    acts = [
        (tensor.name, unit.group, f"axis {index}")
        for tensor in graph.tensors.values()
        for index, axis in enumerate(tensor.layout)
        for unit in axis.units()
    ]
    return nested + list(dict.fromkeys(acts))
