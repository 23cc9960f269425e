"""The graph as a networkx `MultiDiGraph`, for every algorithm that networkx has."""

from __future__ import annotations

from collections.abc import Iterator

import networkx as nx

from alignkit.graph.layout import Axis, Units
from alignkit.graph.structure import GraphStructure


def build_network(graph: GraphStructure) -> nx.MultiDiGraph:
    """Make groups and tensors nodes, and where groups act and what they are nested in edges.

    Returns:
        A frozen graph. Nodes carry ``node="group"`` with ``size``, ``kind`` and ``parent``, or ``node="tensor"`` with
        ``names``, ``shape``, ``dtype``, ``layout`` (the notation) and ``role``. Edges tensor -> group carry
        ``relation="acts_on"`` with ``axis``, ``segment`` (index within the axis) and ``factor``: the path inside the
        segment, one index for a factor, then segment and factor again for each nested sum. Edges child -> parent
        carry ``relation="nested_in"``.
    """
    network = nx.MultiDiGraph()
    for group in graph.groups.values():
        network.add_node(group.name, node="group", size=group.size, kind=group.kind, parent=group.parent)
    for name, tensor in graph.tensors.items():
        facts = {"names": tensor.names, "shape": tensor.shape, "dtype": tensor.dtype, "layout": tensor.notation()}
        network.add_node(name, node="tensor", **facts, role=tensor.role)
    for group in graph.groups.values():
        if group.parent is not None:
            network.add_edge(group.name, group.parent, relation="nested_in")
    for tensor in graph.tensors.values():
        for index, axis in enumerate(tensor.layout):
            for (segment, *factor), units in _mentions(axis):
                network.add_edge(
                    tensor.name, units.group, relation="acts_on", axis=index, segment=segment, factor=tuple(factor)
                )
    return nx.freeze(network)


def _mentions(axis: Axis) -> Iterator[tuple[tuple[int, ...], Units]]:
    """List every mention of a group with its path: segment, factor, and again for each nested sum."""
    for s, segment in enumerate(axis.segments):
        for f, factor in enumerate(segment.factors):
            if isinstance(factor, Units):
                yield (s, f), factor
            elif isinstance(factor, Axis):
                yield from (((s, f, *path), units) for path, units in _mentions(factor))
