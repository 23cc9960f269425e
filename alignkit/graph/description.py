"""A symmetry graph in words: its groups, and what is fixed and why."""

from __future__ import annotations

from typing import TYPE_CHECKING

from alignkit.text import plural, shorten_list

if TYPE_CHECKING:
    from alignkit.graph.symmetry_graph import SymmetryGraph

_LISTED = 20
"""Maximum number of lines of one section."""


def describe(graph: SymmetryGraph) -> str:
    """Groups as trees with their sizes, then the axes that a trace pinned, unknown operations and idle tensors."""
    parts = [_summary(graph), *_groups(graph), *_fixed(graph)]
    return "\n".join(parts)


def why_fixed(graph: SymmetryGraph, tensor: str) -> str:
    """Why no group acts on a tensor, as the end of a sentence: what pinned it, or that nothing ever read it."""
    node, provenance = graph.tensors[tensor], graph.provenance
    pins = [pin for pin in provenance.pinned if pin.tensor in node.names]
    if pins:
        said = [f"axis {pin.axis} by {pin.op}" + (f" in {pin.where}" if pin.where else "") for pin in pins]
        return f"pinned on {', '.join(said)}"
    if set(node.names) & set(provenance.unused):
        return "the traced run never used it"
    if provenance.source == "written":
        return "the spec fixes all its axes"
    return "its axes are inputs or outputs of the model, or were found to be fixed"


def _summary(graph: SymmetryGraph) -> str:
    source = {"written": "written by hand", "traced": "traced"}[graph.provenance.source]
    if graph.provenance.tensors:
        source += f" on {graph.provenance.tensors} tensors"
    families = len(graph.groups) - len(graph.roots)
    components = len(graph.components())
    return (
        f"{plural(len(graph.tensors), 'tensor')}, {plural(len(graph.roots), 'group')}, "
        f"{plural(families, 'family', 'families')}, {plural(components, 'component')}, "
        f"10^{graph.log10_order:.1f} symmetries; {source}."
    )


def _groups(graph: SymmetryGraph) -> list[str]:
    if not graph.groups:
        return ["No group: every axis of every tensor is fixed."]
    rows: list[tuple[str, str, str]] = []
    for root in graph.roots:
        for name in graph.tree(root):
            depth = len(graph.ancestors(name))
            size = str(graph.groups[name].size)
            if depth:
                size = f"{graph.instances(name)} x {size}"
            rows.append(("  " * depth + name, size, plural(len(graph.tensors_of(name)), "tensor")))
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    return [
        "Groups:",
        *(f"  {name:<{widths[0]}}  {size:>{widths[1]}} units  {where}" for name, size, where in rows),
    ]


def _fixed(graph: SymmetryGraph) -> list[str]:
    provenance = graph.provenance
    unused = set(provenance.unused)
    idle = [name for name in graph.uncovered if name not in unused]
    return [
        *_section("Axes that the trace had to fix", [str(pin) for pin in provenance.pinned]),
        *_section("Operations without a rule (what they touch is fixed)", list(provenance.unknown_ops)),
        *_section("Tensors that the run never read", list(provenance.unused)),
        *_section("Tensors on which no group acts", idle),
    ]


def _section(title: str, lines: list[str]) -> list[str]:
    if not lines:
        return []
    return [f"{title}:", *shorten_list(lines, _LISTED)]
