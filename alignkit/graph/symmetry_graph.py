"""`SymmetryGraph`: which groups of units a network has, and where each acts on its tensors."""

from __future__ import annotations

import difflib
import hashlib
import json
import math
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from networkx import Graph, MultiDiGraph, connected_components
from torch import nn

from alignkit.errors import GraphError, ShapeMismatchError, SpecError
from alignkit.graph.layout import Layout, Units, axis_size
from alignkit.graph.nodes import Group, TensorNode
from alignkit.graph.notation import format_layout, is_group_name, parse_layout
from alignkit.graph.provenance import Provenance
from alignkit.graph.sizes import open_sizes, resolve_sizes
from alignkit.graph.source import Like, TensorFacts, tensor_facts

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from alignkit.graph.bind import Pair, WeightsSource
    from alignkit.graph.proof.verify import Verification


class SymmetryGraph:
    """The permutation symmetries of an architecture.

    An immutable value: groups, tensors, and the layout of every axis. The same facts are a networkx
    `MultiDiGraph` in `nx`: an edge tensor -> group says where the group acts, an edge child -> parent that units are
    nested in units.

    Args:
        tensors: Tensor nodes with resolved layouts.
        groups: The groups that the layouts mention, by name.
        provenance: Where the graph comes from.

    Raises:
        GraphError: An invariant is broken; the message names tensor, axis and group.
    """

    def __init__(
        self,
        tensors: Mapping[str, TensorNode],
        groups: Mapping[str, Group],
        provenance: Provenance | None = None,
    ) -> None:
        self.tensors: Mapping[str, TensorNode] = MappingProxyType(dict(tensors))
        self.groups: Mapping[str, Group] = MappingProxyType(dict(groups))
        self.provenance = provenance or Provenance()
        _check(self)

    @classmethod
    def from_spec(
        cls,
        spec: Mapping[str, str],
        like: Like,
        *,
        sizes: Mapping[str, int] | None = None,
        provenance: Provenance | None = None,
    ) -> SymmetryGraph:
        """Build a graph from the notation.

        Args:
            spec: Layout of each tensor, for example ``{"fc1.weight": "h1 ."}``. Of tied tensors one name is enough;
                tensors without axes may be left out.
            like: The module, state dict or mapping of shapes that the spec is written for.
            sizes: Sizes of groups that the shapes leave open, for example ``{"heads": 12}``.
            provenance: Where the spec comes from.

        Raises:
            SpecError: A layout cannot be read, or the names in the spec are not those of ``like``.
            ShapeMismatchError: Layouts contradict shapes.
            GraphError: Another invariant is broken.
        """
        facts = tensor_facts(like)
        layouts = _layouts(spec, facts)
        filled, found = resolve_sizes(layouts, {n: f.shape for n, f in facts.items()}, sizes or {})
        parents = _parents(filled)
        if unused := sorted(set(found) - set(parents)):
            raise GraphError(f"sizes= names groups that no layout mentions: {', '.join(map(repr, unused))}.")
        groups = {name: Group(name, found[name], parent) for name, parent in parents.items()}
        tensors = {name: TensorNode(name, f.names, f.shape, f.dtype, filled[name], f.role) for name, f in facts.items()}
        return cls(tensors, groups, provenance)

    def spec(self) -> dict[str, str]:
        """The notation of every tensor; `from_spec` reads it back.

        Sizes are written only where shapes leave them open.
        """
        bare = {name: parse_layout(node.notation(), name) for name, node in self.tensors.items()}
        shapes = {name: node.shape for name, node in self.tensors.items()}
        # Parents stand first in the graph, and they are the ones that shapes rarely tell.
        sized = open_sizes(bare, shapes, {name: group.size for name, group in self.groups.items()})
        return {name: format_layout(node.layout, sized) for name, node in self.tensors.items()}

    # ---------------------------------------------------------------- derived facts

    @cached_property
    def nx(self) -> MultiDiGraph:
        """The graph as a frozen networkx `MultiDiGraph`; nodes are named by tensor and group."""
        from alignkit.graph.network import build_network

        return build_network(self)

    @cached_property
    def roots(self) -> tuple[str, ...]:
        """Groups without a parent; each root and its descendants form a tree."""
        return tuple(name for name, group in self.groups.items() if group.parent is None)

    def children(self, group: str) -> tuple[str, ...]:
        """Groups whose parent is ``group``."""
        return self._children.get(group, ())

    @cached_property
    def _children(self) -> dict[str, tuple[str, ...]]:
        table: dict[str, tuple[str, ...]] = {}
        for name, group in self.groups.items():
            if group.parent is not None:
                table[group.parent] = (*table.get(group.parent, ()), name)
        return table

    def ancestors(self, group: str) -> tuple[str, ...]:
        """The parents of a group, outermost first."""
        parent = self.groups[group].parent
        return () if parent is None else (*self.ancestors(parent), parent)

    def tree(self, root: str) -> tuple[str, ...]:
        """A group and its descendants, parents before children."""
        return (root, *(name for child in self.children(root) for name in self.tree(child)))

    def element_shape(self, group: str) -> tuple[int, ...]:
        """Shape of a group's indices in an alignment: the sizes of its ancestors, then its own."""
        return (*(self.groups[name].size for name in self.ancestors(group)), self.groups[group].size)

    def instances(self, group: str) -> int:
        """How many copies of the group there are: the number of units of its parent, 1 for a root."""
        return math.prod(self.element_shape(group)[:-1])

    @cached_property
    def order(self) -> int:
        """Number of elements of the symmetry group, exactly."""
        return math.prod(math.factorial(g.size) ** self.instances(name) for name, g in self.groups.items())

    @cached_property
    def log10_order(self) -> float:
        """Decimal logarithm of `order`; 0 for a graph without groups."""
        return sum(self.instances(n) * math.lgamma(g.size + 1) for n, g in self.groups.items()) / math.log(10)

    @cached_property
    def _adjacency(self) -> Graph:
        """Groups that meet in one block. Groups in different segments of one axis do not meet."""
        meeting = Graph()
        meeting.add_nodes_from(self.groups)
        for node in self.tensors.values():
            for block in node.blocks:
                names = sorted(block.groups)
                meeting.add_edges_from((a, b) for i, a in enumerate(names) for b in names[i + 1 :])
        return meeting

    def neighbours(self, group: str) -> tuple[str, ...]:
        """Groups that meet ``group`` in a part of a tensor; groups that do not meet can be updated at the same time."""
        return tuple(sorted(self._adjacency[group]))

    def components(self) -> tuple[frozenset[str], ...]:
        """Independent subproblems: sets of groups that no tensor couples with the rest."""
        return tuple(frozenset(names) for names in connected_components(self._adjacency))

    def tensors_of(self, group: str) -> tuple[str, ...]:
        """Names of the tensors on which a group acts."""
        return tuple(name for name, node in self.tensors.items() if group in node.groups)

    @cached_property
    def uncovered(self) -> tuple[str, ...]:
        """Names of the tensors, scalars left out, on which no group acts."""
        return tuple(name for name, node in self.tensors.items() if node.shape and not node.groups)

    @cached_property
    def fingerprint(self) -> str:
        """A hash of groups and layouts: equal for two graphs exactly when alignments can be exchanged."""
        facts = {
            "groups": sorted((g.name, g.size, g.parent, g.kind) for g in self.groups.values()),
            "tensors": sorted((sorted(t.names), list(t.shape), format_layout(t.layout)) for t in self.tensors.values()),
        }
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SymmetryGraph) and self.fingerprint == other.fingerprint

    def __hash__(self) -> int:
        return hash(self.fingerprint)

    def __reduce__(self) -> tuple[Any, ...]:
        # Mapping proxies cannot be pickled; the constructor makes them anew.
        return (SymmetryGraph, (dict(self.tensors), dict(self.groups), self.provenance))

    def __repr__(self) -> str:
        families = sum(g.parent is not None for g in self.groups.values())
        return (
            f"SymmetryGraph({len(self.tensors)} tensors, {len(self.groups) - families} groups, {families} families, "
            f"10^{self.log10_order:.1f} symmetries)"
        )

    # ---------------------------------------------------------------- what one does with it

    def bind(self, a: WeightsSource, b: WeightsSource) -> Pair:
        """Bind two sets of weights to the graph; see `alignkit.graph.bind.bind`."""
        from alignkit.graph.bind import bind

        return bind(self, a, b)

    def verify(self, model: nn.Module, *args: Any, **kwargs: Any) -> Verification:
        """Prove on real weights that symmetries keep the outputs; see `alignkit.graph.proof.verify.verify`."""
        from alignkit.graph.proof.verify import verify

        return verify(self, model, *args, **kwargs)

    def report(self) -> str:
        """Groups, families and what is fixed, as text; see `alignkit.graph.description.describe`."""
        from alignkit.graph.description import describe

        return describe(self)

    def mermaid(self) -> str:
        """The graph as Mermaid text."""
        from alignkit.graph.drawing.diagrams import mermaid

        return mermaid(self)

    def dot(self) -> str:
        """The graph as Graphviz text."""
        from alignkit.graph.drawing.diagrams import graphviz

        return graphviz(self)

    def draw(self, path: str | Path | None = None) -> Figure:
        """The graph as a picture, written to ``path`` if one is given; needs matplotlib."""
        from alignkit.graph.drawing.diagrams import draw

        return draw(self, path)

    def to_json(self) -> str:
        """Versioned JSON in networkx's node-link form, with everything that `from_json` needs."""
        from alignkit.graph.serial import graph_to_json

        return graph_to_json(self)

    @classmethod
    def from_json(cls, text: str) -> SymmetryGraph:
        """Read what `to_json` wrote.

        Raises:
            SpecError: The text is no graph of a version that this release reads.
        """
        from alignkit.graph.serial import graph_from_json

        return graph_from_json(text)


def _layouts(spec: Mapping[str, str], facts: Mapping[str, TensorFacts]) -> dict[str, Layout]:
    """Parse a spec against the tensors that it is written for, by first name."""
    if not isinstance(spec, Mapping):
        raise SpecError(f"a spec maps tensor names to layouts, found {type(spec).__name__}.")
    first = {name: f.names[0] for f in facts.values() for name in f.names}
    if unknown := [name for name in spec if name not in first]:
        raise SpecError(_unknown_tensors(unknown, list(first)))
    layouts: dict[str, Layout] = {}
    written: dict[str, str] = {}
    for name, text in spec.items():
        layout = parse_layout(text, name)
        shape = facts[first[name]].shape
        if len(layout) != len(shape):
            raise ShapeMismatchError(
                f"tensor {name!r} has {len(shape)} axes (shape {shape}), but its layout {text!r} has {len(layout)}. "
                "Write one entry for each axis, '.' where nothing moves."
            )
        if first[name] in layouts and layouts[first[name]] != layout:
            other = written[first[name]]
            raise SpecError(
                f"tensors {other!r} and {name!r} are tied, but their layouts differ: {spec[other]!r} and {text!r}."
            )
        layouts[first[name]], written[first[name]] = layout, name
    missing = [f for n, f in facts.items() if n not in layouts and f.shape]
    if missing:
        lines = "\n".join(f'    "{f.names[0]}": "{" ".join("." * len(f.shape))}",' for f in missing)
        raise SpecError(f"the spec says nothing about {len(missing)} tensors. If no group acts on them, add:\n{lines}")
    for name, f in facts.items():
        if not f.shape:
            layouts.setdefault(name, ())
    return {name: layouts[name] for name in facts}


def _unknown_tensors(unknown: list[str], known: list[str]) -> str:
    parts = []
    for name in unknown:
        close = difflib.get_close_matches(str(name), known, 1)
        parts.append(f"{name!r}" + (f" (did you mean {close[0]!r}?)" if close else ""))
    return f"the spec names tensors that do not exist: {', '.join(parts)}."


def _parents(layouts: Mapping[str, Layout]) -> dict[str, str | None]:
    """The parent of each group, parents first; every mention has to agree."""
    seen: dict[str, tuple[str | None, str, int]] = {}
    for tensor, layout in layouts.items():
        for index, axis in enumerate(layout):
            for unit in axis.units():
                known = seen.setdefault(unit.group, (unit.parent, tensor, index))
                if known[0] != unit.parent:
                    raise GraphError(_parent_conflict(unit, tensor, index, known))
    order: dict[str, str | None] = {}

    def place(name: str, below: tuple[str, ...]) -> None:
        parent, tensor, index = seen[name]
        if name in below:
            raise GraphError(
                f"groups {' -> '.join((*below, name))} are nested in a circle (tensor {tensor!r}, axis {index})."
            )
        if parent is not None and parent not in seen:
            raise GraphError(
                f"tensor {tensor!r}, axis {index}: group {name!r} is nested in {parent!r}, but no tensor mentions "
                f"{parent!r}. Write the parent further left: '({parent} {name}[{parent}])'."
            )
        if parent is not None and parent not in order:
            place(parent, (*below, name))
        order.setdefault(name, parent)

    for name in seen:
        place(name, ())
    return order


def _parent_conflict(unit: Units, tensor: str, index: int, known: tuple[str | None, str, int]) -> str:
    def say(parent: str | None) -> str:
        return f"nested in {parent!r}" if parent else "without a parent"

    return (
        f"group {unit.group!r} is {say(unit.parent)} at tensor {tensor!r}, axis {index}, but {say(known[0])} at tensor "
        f"{known[1]!r}, axis {known[2]}. Write the same parent in brackets everywhere, or use another name."
    )


def _check_sizes(node: TensorNode, groups: Mapping[str, Group]) -> None:
    for index, unit in ((i, unit) for i, axis in enumerate(node.layout) for unit in axis.units()):
        group = groups.get(unit.group)
        if group is None:
            raise GraphError(f"tensor {node.name!r} mentions group {unit.group!r}, which is no group of this graph.")
        if (unit.size, unit.parent) != (group.size, group.parent):
            raise GraphError(
                f"tensor {node.name!r}, axis {index}: group {group.name!r} has {unit.size} units and the parent "
                f"{unit.parent!r} here, but the graph says {group.size} and {group.parent!r}."
            )
    if (sizes := tuple(map(axis_size, node.layout))) != node.shape:
        raise ShapeMismatchError(f"tensor {node.name!r} has shape {node.shape}, but its layout makes {sizes}.")


def _check(graph: SymmetryGraph) -> None:
    """The invariants of a whole graph, however it was put together."""
    for name, group in graph.groups.items():
        if not is_group_name(name):
            raise GraphError(
                f"{name!r} is no name for a group: letters, digits and '_.-/' are allowed, and not digits alone. "
                "'__metadata__' is reserved."
            )
        if group.size < 1:
            raise GraphError(f"group {name!r} has {group.size} units. Leave an empty group out.")
        if group.parent is not None and group.parent not in graph.groups:
            raise GraphError(f"group {name!r} is nested in {group.parent!r}, which is no group of this graph.")
        if name in graph.tensors:
            raise GraphError(f"{name!r} is the name of a group and of a tensor. Rename the group.")
    for name in graph.groups:
        seen, parent = [name], graph.groups[name].parent
        while parent is not None:
            if parent in seen:
                raise GraphError(f"groups {' -> '.join((*seen, parent))} are nested in a circle.")
            seen.append(parent)
            parent = graph.groups[parent].parent
    for node in graph.tensors.values():
        _check_sizes(node, graph.groups)
        node.blocks  # noqa: B018  multiplying the layout out checks that children stand with their parents
