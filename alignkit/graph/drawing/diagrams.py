"""Drawings of a graph as text: Mermaid and Graphviz."""

from __future__ import annotations

import html

from alignkit.graph.description import units_text
from alignkit.graph.kinds import KINDS
from alignkit.graph.structure import GraphStructure


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


def _nodes(graph: GraphStructure) -> dict[str, tuple[str, str]]:
    """Give each node an identifier, because names may hold any character, and the text below its name."""
    words = {name: KINDS[group.kind].words for name, group in graph.groups.items() if group.kind != "permutation"}
    texts = {n: f"{units_text(graph, n)} units" + (f", {words[n]}" if n in words else "") for n in graph.groups}
    groups = {name: (f"g{i}", text) for i, (name, text) in enumerate(texts.items())}
    return groups | {t.name: (f"t{i}", t.notation() or "scalar") for i, t in enumerate(graph.tensors.values())}


def _edges(graph: GraphStructure) -> list[tuple[str, str, str]]:
    """List source, target and text of each edge: one for each tensor, axis and group; nesting has no text."""
    nested = [(group.name, group.parent, "") for group in graph.groups.values() if group.parent is not None]
    acts = [
        (tensor.name, group, f"axis {index}")
        for tensor in graph.tensors.values()
        for index, axis in enumerate(tensor.layout)
        for unit in axis.units()
        for group in tensor.mentions.get(unit.group, ())
    ]
    return nested + list(dict.fromkeys(acts))
