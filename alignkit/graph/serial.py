"""A symmetry graph as JSON: networkx's node-link form, with a version and the provenance."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, Field, NonNegativeInt, PositiveInt, TypeAdapter

from alignkit.checkpoints.documents import Format
from alignkit.errors import SpecError
from alignkit.graph.network import build_network
from alignkit.graph.nodes import Group, GroupKind, Role, TensorNode
from alignkit.graph.notation import parse_layout
from alignkit.graph.provenance import Provenance
from alignkit.graph.sizes import resolve_sizes
from alignkit.graph.structure import GraphStructure

FORMAT = Format("alignkit.graph", "symmetry graph", "SymmetryGraph.to_json", SpecError)
GraphT = TypeVar("GraphT", bound=GraphStructure)


class _Facts(BaseModel, strict=True, extra="forbid"):
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


_NODES = TypeAdapter(list[Annotated[_GroupFacts | _TensorFacts, Field(discriminator="node")]])
_PROVENANCE = TypeAdapter(Provenance)


def graph_to_json(graph: GraphStructure) -> str:
    """Write a graph as JSON; `graph_from_json` reads it back, and so does `networkx.node_link_graph`."""
    network = build_network(graph)
    facts: dict[str, Any] = {"directed": True, "multigraph": True}
    facts["graph"] = {"fingerprint": graph.fingerprint, "provenance": asdict(graph.provenance)}
    facts["nodes"] = [{**node, "id": name} for name, node in network.nodes(data=True)]
    edges = network.edges(keys=True, data=True)
    facts["edges"] = [{**edge, "source": child, "target": group, "key": key} for child, group, key, edge in edges]
    return FORMAT.to_json(facts)


def graph_from_json(text: str, kind: type[GraphT]) -> GraphT:
    """Read what `graph_to_json` wrote.

    Args:
        text: The JSON text.
        kind: Class of the graph that is made.

    Raises:
        SpecError: The text is not JSON, not a graph of this version, or was changed so that its parts disagree.
    """
    values = FORMAT.from_json(text)
    with FORMAT.rebuilding("this symmetry graph"):
        nodes, provenance = _NODES.validate_python(values["nodes"]), values["graph"]["provenance"]
        needed = [field.name for field in fields(Provenance)]
        if not isinstance(provenance, Mapping) or sorted(provenance) != sorted(needed):
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
        graph = kind(tensors, groups, _PROVENANCE.validate_python(provenance))
    rebuilt = json.loads(graph_to_json(graph))
    for key in ("graph", "nodes", "edges"):  # What follows from the rest has to agree with it, fingerprint too.
        if values.get(key) != rebuilt[key]:
            raise SpecError(
                f"this symmetry graph was changed after it was written: its {key} do not agree with the layouts. "
                "Build it again with SymmetryGraph.from_spec."
            )
    return graph
