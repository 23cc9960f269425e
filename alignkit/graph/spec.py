"""From a spec, the notation of each tensor, to the tensors and groups of a graph, and back."""

from __future__ import annotations

from collections.abc import Mapping

from alignkit.errors import GraphError, ShapeMismatchError, SpecError
from alignkit.graph.layout import Layout, Units
from alignkit.graph.nodes import Group, TensorNode
from alignkit.graph.notation import format_layout, parse_layout
from alignkit.graph.sizes import open_sizes, resolve_sizes
from alignkit.graph.source import Like, TensorFacts, tensor_facts
from alignkit.graph.structure import GraphStructure
from alignkit.text import did_you_mean


def read_spec(
    spec: Mapping[str, str], like: Like, sizes: Mapping[str, int]
) -> tuple[dict[str, TensorNode], dict[str, Group]]:
    """Read a spec against the tensors that it is written for; see `SymmetryGraph.from_spec`.

    Returns:
        The tensors and the groups of the graph, parents first.
    """
    facts = tensor_facts(like)
    layouts, group_sizes = resolve_sizes(_parse_layouts(spec, facts), {n: f.shape for n, f in facts.items()}, sizes)
    parents = _find_parents(layouts)
    if unused := sorted(set(group_sizes) - set(parents)):
        raise GraphError(f"sizes= names groups that no layout mentions: {', '.join(map(repr, unused))}.")
    groups = {name: Group(name, group_sizes[name], parent) for name, parent in parents.items()}
    tensors = {name: TensorNode(name, f.names, f.shape, f.dtype, layouts[name], f.role) for name, f in facts.items()}
    return tensors, groups


def write_spec(graph: GraphStructure) -> dict[str, str]:
    """Write the notation of every tensor; sizes stand only where shapes leave them open."""
    bare = {name: parse_layout(node.notation(), name) for name, node in graph.tensors.items()}
    shapes = {name: node.shape for name, node in graph.tensors.items()}
    # Parents stand first in the graph, and they are the ones that shapes rarely tell.
    sized = open_sizes(bare, shapes, {name: group.size for name, group in graph.groups.items()})
    return {name: format_layout(node.layout, sized) for name, node in graph.tensors.items()}


def _parse_layouts(spec: Mapping[str, str], facts: Mapping[str, TensorFacts]) -> dict[str, Layout]:
    """Parse the layout of each tensor, by first name, and check it against axes and ties."""
    if not isinstance(spec, Mapping):
        raise SpecError(f"a spec maps tensor names to layouts, found {type(spec).__name__}.")
    first_names = {name: f.names[0] for f in facts.values() for name in f.names}
    if unknown := [name for name in spec if name not in first_names]:
        hint = did_you_mean(str(unknown[0]), first_names)
        raise SpecError(f"the spec names tensors that do not exist: {', '.join(map(repr, unknown))}.{hint}")
    layouts: dict[str, Layout] = {}
    written_as: dict[str, str] = {}
    for name, text in spec.items():
        layout, first = parse_layout(text, name), first_names[name]
        shape = facts[first].shape
        if len(layout) != len(shape):
            raise ShapeMismatchError(
                f"tensor {name!r} has {len(shape)} axes (shape {shape}), but its layout {text!r} has {len(layout)}. "
                "Write one entry for each axis, '.' where nothing moves."
            )
        if layouts.get(first, layout) != layout:
            other = written_as[first]
            raise SpecError(
                f"tensors {other!r} and {name!r} are tied, but their layouts differ: {spec[other]!r} and {text!r}."
            )
        layouts[first], written_as[first] = layout, name
    missing = [f for n, f in facts.items() if n not in layouts and f.shape]
    if missing:
        lines = "\n".join(f'    "{f.names[0]}": "{" ".join("." * len(f.shape))}",' for f in missing)
        raise SpecError(f"the spec says nothing about {len(missing)} tensors. If no group acts on them, add:\n{lines}")
    return {name: layouts.get(name, ()) for name in facts}


def _find_parents(layouts: Mapping[str, Layout]) -> dict[str, str | None]:
    """Find the parent of each group; every mention has to agree. Parents stand before their children."""
    mentions: dict[str, tuple[Units, str]] = {}
    for tensor, layout in layouts.items():
        for index, axis in enumerate(layout):
            for units in axis.units():
                where = f"tensor {tensor!r}, axis {index}"
                known, known_where = mentions.setdefault(units.group, (units, where))
                if known.parent != units.parent:
                    here, there = (
                        f"nested in {u.parent!r}" if u.parent else "without a parent" for u in (units, known)
                    )
                    raise GraphError(
                        f"group {units.group!r} is {here} at {where}, but {there} at {known_where}. Write the same "
                        "parent in brackets everywhere, or use another name."
                    )
    parents: dict[str, str | None] = {}

    def add(name: str, below: tuple[str, ...]) -> None:
        """Add a group after its parent; ``below`` are the groups on the way down to it."""
        units, where = mentions[name]
        if name in below:
            raise GraphError(f"groups {' -> '.join((*below, name))} are nested in a circle ({where}).")
        parent = units.parent
        if parent is not None and parent not in mentions:
            raise GraphError(
                f"{where}: group {name!r} is nested in {parent!r}, but no tensor mentions {parent!r}. Write the "
                f"parent further left: '({parent} {name}[{parent}])'."
            )
        if parent is not None and parent not in parents:
            add(parent, (*below, name))
        parents.setdefault(name, parent)

    for name in mentions:
        add(name, ())
    return parents
