"""From a spec, the notation of each tensor, to the tensors and groups of a graph, and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from alignkit.checkpoints.dense import why_not_dense
from alignkit.checkpoints.fit import first_names
from alignkit.checkpoints.mismatch import names_cause
from alignkit.errors import GraphError, ShapeMismatchError, SpecError
from alignkit.graph.kinds import KINDS
from alignkit.graph.layout import Layout, StackPlaces, Units
from alignkit.graph.nodes import Group, Role, TensorNode
from alignkit.graph.notation import format_layout, parse_layout
from alignkit.graph.sizes import open_sizes, resolve_sizes
from alignkit.graph.structure import GraphStructure, check_depth
from alignkit.text import did_you_mean, dtype_name, list_some, plural, shorten_list, show_value

Like = nn.Module | Mapping[str, Tensor] | Mapping[str, tuple[int, ...]]


def read_spec(
    spec: Mapping[str, str], like: Like, sizes: Mapping[str, int]
) -> tuple[dict[str, TensorNode], dict[str, Group]]:
    """Read the tensors and groups (parents first) of a graph from a spec; see `SymmetryGraph.from_spec`."""
    nodes = read_tensor_nodes(like)
    layouts, group_sizes = resolve_sizes(_parse_layouts(spec, nodes), {n: t.shape for n, t in nodes.items()}, sizes)
    mentions: dict[str, tuple[Units, str]] = {}
    for tensor, index, axis in ((name, i, axis) for name, layout in layouts.items() for i, axis in enumerate(layout)):
        where = f"tensor {tensor!r}, axis {index}"
        for units in axis.units():
            known, known_where = mentions.setdefault(units.group, (units, where))
            if (type(known), known.parent) != (type(units), units.parent):
                here, there = map(_place_of, (units, known))
                clash = f"group {units.group!r} is {here} at {where}, but {there} at {known_where}"
                raise GraphError(f"{clash}. Write the same parent in brackets everywhere, or use another name.")
            if known.kind != units.kind:
                clash = f"group {units.group!r} is {KINDS[units.kind]} at {where}"
                clash += f", but {KINDS[known.kind]} at {known_where}"
                raise GraphError(f"{clash}. Write the same mark everywhere, or use another name.")
    for name in mentions:
        chain = [name]  # from the group outwards
        while (parent := mentions[chain[-1]][0].parent) is not None:
            child, where = chain[-1], mentions[chain[-1]][1]
            if parent not in mentions:
                problem = f"group {child!r} is nested in {parent!r}, but no tensor mentions {parent!r}"
                both = f"'({parent} {child}[{parent}])'"
                raise GraphError(f"{where}: {problem}. Write the parent further left: {both}.")
            if parent in chain:
                where = mentions[parent][1]
                raise GraphError(f"groups {' -> '.join((*chain, parent))} are nested in a circle ({where}).")
            chain.append(parent)
            check_depth(chain)
    if unused := sorted(set(group_sizes) - set(mentions)):
        raise GraphError(
            f"sizes= names groups that no layout mentions: {list_some([repr(name) for name in unused], 5)}."
        )
    tensors = {name: replace(node, layout=layouts[name]) for name, node in nodes.items()}
    groups: dict[str, Group] = {}
    for mention, copies in (item for node in tensors.values() for item in node.mentions.items()):
        for name, parent in copies.items():
            groups.setdefault(name, Group(name, group_sizes[mention], parent, mentions[mention][0].kind))
    return tensors, groups


def _place_of(units: Units) -> str:
    """Say what a mention is nested in, as a part of a sentence."""
    stack = "a stack " if isinstance(units, StackPlaces) else ""
    return stack + (f"nested in {units.parent!r}" if units.parent else "without a parent")


def read_tensor_nodes(like: Like) -> dict[str, TensorNode]:
    """Read names, shapes, dtypes, roles and ties of tensors, by first name, into nodes whose layouts are still empty.

    Only metadata is read. A value that is neither a tensor nor a shape is a `GraphError`.
    """
    tensors: dict[str, Tensor] = {}
    roles: dict[str, Role] = {}
    for name in () if isinstance(like, nn.Module) else like:
        if not isinstance(name, str):
            raise GraphError(f"like= has the key {show_value(name)}: names of tensors have to be strings.")
    if isinstance(like, nn.Module):
        parameters = {name for name, _ in like.named_parameters(remove_duplicate=False)}
        tensors = {n: t for n, t in like.state_dict(keep_vars=True).items() if isinstance(t, Tensor)}
        roles = {name: "parameter" if name in parameters else "buffer" for name in tensors}
    elif any(isinstance(value, Tensor) for value in like.values()):
        for name, value in like.items():
            if not isinstance(value, Tensor):
                raise GraphError(f"like[{name!r}] is not a tensor but {type(value).__name__}.")
            tensors[name] = value
    else:
        for name, shape in like.items():
            if not isinstance(shape, tuple | list | torch.Size) or any(not isinstance(n, int) or n < 0 for n in shape):
                raise GraphError(
                    f"like[{name!r}] is neither a tensor nor a shape like (128, 784): {show_value(shape)}."
                )
        return {name: TensorNode(name, (name,), tuple(shape), "", ()) for name, shape in like.items()}
    for name, tensor in tensors.items():
        if (kind := why_not_dense(tensor)) is not None:
            raise GraphError(f"like[{name!r}] is not a dense tensor, but {kind}.")
    tied: dict[str, list[str]] = {}
    for name, first in first_names(tensors).items():
        tied.setdefault(first, []).append(name)
    facts = {first: (tuple(tensors[first].shape), dtype_name(tensors[first].dtype)) for first in tied}
    return {n: TensorNode(n, tuple(tied[n]), *fact, (), roles.get(n, "tensor")) for n, fact in facts.items()}


def write_spec(graph: GraphStructure) -> dict[str, str]:
    """Write the notation of every tensor; sizes stand only where shapes leave them open."""
    bare = {name: parse_layout(node.notation(), name) for name, node in graph.tensors.items()}
    shapes = {name: node.shape for name, node in graph.tensors.items()}
    # Parents stand first in the graph, and they are the ones that shapes rarely tell.
    sizes = {name: group.size for name, group in graph.groups.items()}
    sized = open_sizes(bare, shapes, sizes | {name: units.size or 0 for name, units in graph.mentions.items()})
    return {name: format_layout(node.layout, sized) for name, node in graph.tensors.items()}


def _parse_layouts(spec: Mapping[str, str], nodes: Mapping[str, TensorNode]) -> dict[str, Layout]:
    """Parse the layout of each tensor, by first name, and check it against axes and ties."""
    known_names = {name: first for first, node in nodes.items() for name in node.names}
    if unknown := [name for name in spec if name not in known_names]:
        listed = list_some([repr(name) for name in unknown], 5)
        cause = names_cause([str(name) for name in spec], known_names, "the spec", "the model")
        hint = f" In short: {cause}." if cause else did_you_mean(str(unknown[0]), known_names)
        raise SpecError(f"the spec names tensors that do not exist: {listed}.{hint}")
    layouts: dict[str, Layout] = {}
    written_as: dict[str, str] = {}
    for name, text in spec.items():
        layout, first = parse_layout(text, name), known_names[name]
        shape = nodes[first].shape
        if len(layout) != len(shape):
            axes = plural(len(shape), "axis", "axes")
            counts = f"tensor {name!r} has {axes} (shape {shape}), but its layout {text!r} has {len(layout)}"
            raise ShapeMismatchError(f"{counts}. Write one entry for each axis, '.' where nothing moves.")
        if layouts.get(first, layout) != layout:
            other = written_as[first]
            both = f"{spec[other]!r} and {text!r}"
            raise SpecError(f"tensors {other!r} and {name!r} are tied, but their layouts differ: {both}.")
        layouts[first], written_as[first] = layout, name
    if missing := [node for name, node in nodes.items() if name not in layouts and node.shape]:
        entries = [f'  "{node.name}": "{" ".join("." * len(node.shape))}",' for node in missing]
        lines = "\n".join(shorten_list(entries, 5))
        count = plural(len(missing), "tensor")
        raise SpecError(f"the spec says nothing about {count}. If no group acts on them, add:\n{lines}")
    return {name: layouts.get(name, ()) for name in nodes}
