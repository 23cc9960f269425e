"""Drawings of a graph: Mermaid text, Graphviz text, and a picture."""

from __future__ import annotations

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
    ids = _ids(graph)
    lines = ["flowchart LR"]
    for name in graph.groups:
        label = f"{_mermaid_text(name)}<br/>{units_text(graph, name)} units"
        lines.append(f'    {ids[name]}(["{label}"])')
    for tensor in graph.tensors.values():
        label = f"{_mermaid_text(tensor.name)}<br/>{_mermaid_text(tensor.notation() or 'scalar')}"
        lines.append(f'    {ids[tensor.name]}["{label}"]')
    for source, target, label in _edges(graph):
        arrow = f"---|{label}|" if label else "-.->"
        lines.append(f"    {ids[source]} {arrow} {ids[target]}")
    return "\n".join(lines) + "\n"


def graphviz(graph: GraphStructure) -> str:
    """Write Graphviz text (DOT): the same nodes and edges as `mermaid`."""
    ids = _ids(graph)
    lines = ["digraph alignkit {", "    rankdir=LR;", '    node [fontname="monospace"];']
    for name in graph.groups:
        label = _dot_text(name, f"{units_text(graph, name)} units")
        lines.append(f"    {ids[name]} [shape=ellipse, label={label}];")
    for tensor in graph.tensors.values():
        label = _dot_text(tensor.name, tensor.notation() or "scalar")
        lines.append(f"    {ids[tensor.name]} [shape=box, label={label}];")
    for source, target, label in _edges(graph):
        style = f'label="{label}", dir=none' if label else "style=dashed"
        lines.append(f"    {ids[source]} -> {ids[target]} [{style}];")
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


def _ids(graph: GraphStructure) -> dict[str, str]:
    """Give plain identifiers to the nodes, because names may hold any character."""
    return {name: f"g{i}" for i, name in enumerate(graph.groups)} | {n: f"t{i}" for i, n in enumerate(graph.tensors)}


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


def _mermaid_text(text: str) -> str:
    escaped = {"&": "&amp;", '"': "&quot;", "<": "&lt;", ">": "&gt;"}
    return "".join(escaped.get(character, character) for character in text)


def _dot_text(*lines: str) -> str:
    escaped = [line.replace("\\", "\\\\").replace('"', '\\"') for line in lines]
    return '"' + "\\n".join(escaped) + '"'
