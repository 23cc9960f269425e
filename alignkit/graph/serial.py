"""A symmetry graph as a networkx `MultiDiGraph`, and as JSON: its node-link form, with a version and the provenance."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, fields
from typing import Annotated, Any, Literal, TypeVar

import networkx as nx
from pydantic import Field, NonNegativeInt, PositiveInt, TypeAdapter

from alignkit.checkpoints.documents import Content, Format
from alignkit.errors import SpecError
from alignkit.graph.kinds import GroupKind
from alignkit.graph.layout import Axis, Units
from alignkit.graph.nodes import Group, Provenance, Role, TensorNode
from alignkit.graph.notation import format_layout, parse_layout
from alignkit.graph.rewrites import FOLDS, AnyBalance, Blocked
from alignkit.graph.sizes import resolve_sizes
from alignkit.graph.structure import GraphStructure

GraphT = TypeVar("GraphT", bound=GraphStructure)


class _Facts(Content):
    id: str


class _GroupFacts(_Facts):
    node: Literal["group"]
    size: PositiveInt
    parent: str | None
    kind: GroupKind


class _TensorFacts(_Facts):
    node: Literal["tensor"]
    names: list[str]
    shape: list[NonNegativeInt]
    dtype: str
    layout: str
    role: Role


class _GraphFacts(Content):
    fingerprint: str
    provenance: dict[str, Any]
    folds: list[dict[str, Any]] = Field(default_factory=list)
    balances: list[dict[str, Any]] = Field(default_factory=list)
    blocked: list[dict[str, Any]] = Field(default_factory=list)


class _GraphContent(Content):
    directed: bool
    multigraph: bool
    graph: _GraphFacts
    nodes: list[Annotated[_GroupFacts | _TensorFacts, Field(discriminator="node")]]
    edges: list[dict[str, Any]]


# In version 1 all groups were permuted, and there were no marks.
FORMAT = Format(
    "alignkit.graph", "symmetry graph", "SymmetryGraph.to_json", SpecError, _GraphContent, version=2, older=(1,)
)
_PROVENANCE = TypeAdapter(Provenance)
_FOLDS: dict[str, TypeAdapter[Any]] = {kind.__name__: TypeAdapter(kind) for kind in FOLDS}
_BALANCES, _BLOCKED = TypeAdapter(list[AnyBalance]), TypeAdapter(list[Blocked])


def build_network(graph: GraphStructure) -> nx.MultiDiGraph:
    """Make groups and tensors nodes, and where groups act and what they are nested in edges.

    Returns:
        A frozen graph. Nodes carry ``node="group"`` with ``size``, ``kind`` and ``parent``, or ``node="tensor"`` with
        ``names``, ``shape``, ``dtype``, ``layout`` (the notation, with the sizes of stacks and of what they own) and
        ``role``. Edges tensor -> group carry ``relation="acts_on"`` with ``axis``, ``segment`` (index within the axis)
        and ``factor``: the path inside the segment, one index for a factor, then segment and factor again for each
        nested sum. Edges child -> parent carry ``relation="nested_in"``.
    """
    network = nx.MultiDiGraph()
    for group in graph.groups.values():
        network.add_node(group.name, node="group", size=group.size, kind=group.kind, parent=group.parent)
    for name, tensor in graph.tensors.items():
        layout = format_layout(tensor.layout, graph.mentions.keys() - graph.groups.keys())
        facts = {"names": tensor.names, "shape": tensor.shape, "dtype": tensor.dtype, "layout": layout}
        network.add_node(name, node="tensor", **facts, role=tensor.role)
    for group in graph.groups.values():
        if group.parent is not None:
            network.add_edge(group.name, group.parent, relation="nested_in")
    for tensor in graph.tensors.values():
        for index, axis in enumerate(tensor.layout):
            for (segment, *factor), units in _mentions(axis):
                place = {"axis": index, "segment": segment, "factor": tuple(factor)}
                for name in tensor.mentions.get(units.group, ()):
                    network.add_edge(tensor.name, name, relation="acts_on", **place)
    return nx.freeze(network)


def _mentions(axis: Axis) -> Iterator[tuple[tuple[int, ...], Units]]:
    """List every mention of a group with its path: segment, factor, and again for each nested sum."""
    for s, segment in enumerate(axis.segments):
        for f, factor in enumerate(segment.factors):
            if isinstance(factor, Units):
                yield (s, f), factor
            elif isinstance(factor, Axis):
                yield from (((s, f, *path), units) for path, units in _mentions(factor))


def graph_to_json(graph: GraphStructure) -> str:
    """Write a graph as JSON; `graph_from_json` reads it back, and so does `networkx.node_link_graph`."""
    network = build_network(graph)
    facts: dict[str, Any] = {"directed": True, "multigraph": True}
    facts["graph"] = {
        "fingerprint": graph.fingerprint,
        "provenance": asdict(graph.provenance),
        "folds": [{"fold": type(fold).__name__, **asdict(fold)} for fold in graph.folds],
        "balances": list(map(asdict, graph.balances)),
        "blocked": list(map(asdict, graph.blocked)),
    }
    facts["nodes"] = [{**node, "id": name} for name, node in network.nodes(data=True)]
    edges = network.edges(keys=True, data=True)
    facts["edges"] = [{**edge, "source": child, "target": group, "key": key} for child, group, key, edge in edges]
    return FORMAT.to_json(facts)


def graph_from_json(text: str, kind: type[GraphT]) -> GraphT:
    """Read what `graph_to_json` wrote, as a graph of the class ``kind``.

    Raises:
        SpecError: The text is not JSON, not a graph of this version, or was changed so that its parts disagree.
    """
    content = FORMAT.from_json(text)
    with FORMAT.rebuilding("this symmetry graph"):
        nodes, provenance = content.nodes, content.graph.provenance
        needed = [field.name for field in fields(Provenance)]
        if sorted(provenance) != sorted(needed):
            raise SpecError(f"its provenance needs the fields {', '.join(needed)}.")
        groups = {node.id: Group(node.id, node.size, node.parent, node.kind) for node in nodes if node.node == "group"}
        facts = {node.id: node for node in nodes if node.node == "tensor"}
        layouts = {name: parse_layout(node.layout, name) for name, node in facts.items()}
        shapes = {name: tuple(node.shape) for name, node in facts.items()}
        for name, layout in layouts.items():
            if facts[name].names[:1] != [name]:
                raise SpecError(f"tensor {name!r} has the names {facts[name].names}; its own has to be the first.")
            if len(layout) != len(shapes[name]):
                raise SpecError(f"tensor {name!r} has {len(shapes[name])} axes, but its layout has {len(layout)}.")
        filled, _ = resolve_sizes(layouts, shapes, {name: group.size for name, group in groups.items()})
        tensors = {
            name: TensorNode(name, tuple(node.names), shapes[name], node.dtype, filled[name], node.role)
            for name, node in facts.items()
        }
        written_folds = [dict(fold) for fold in content.graph.folds]
        folds = [_FOLDS[fold.pop("fold")].validate_python(fold) for fold in written_folds]
        balances = _BALANCES.validate_python(content.graph.balances)
        blocked = _BLOCKED.validate_python(content.graph.blocked)
        graph = kind(tensors, groups, _PROVENANCE.validate_python(provenance), folds, balances, blocked)
    written, rebuilt = content.model_dump(mode="json"), json.loads(graph_to_json(graph))
    for key in ("graph", "nodes", "edges"):  # What follows from the rest has to agree with it, fingerprint too.
        if written[key] != rebuilt[key]:
            problem = f"this symmetry graph was changed after it was written: its {key} do not agree with the layouts"
            raise SpecError(f"{problem}. Build it again with SymmetryGraph.from_spec.")
    return graph
