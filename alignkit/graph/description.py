"""A symmetry graph in words: its groups, and what is fixed and why."""

from __future__ import annotations

from alignkit.graph.folded import constants_after
from alignkit.graph.kinds import KINDS
from alignkit.graph.structure import GraphStructure
from alignkit.text import plural, shorten_list

_LISTED = 20
"""Number of lines of a section that are shown: a report of a large model still fits a screen or two."""
_NOT_PROVED = " (not proved: the trace had no weights)"


def describe(graph: GraphStructure) -> str:
    """Describe groups as trees with their sizes, axes that a trace pinned, unknown operations and idle tensors."""
    provenance = graph.provenance
    source = {"written": "written by hand", "traced": "traced"}[provenance.source]
    if provenance.tensors:
        source += f" on {provenance.tensors} tensors"
    families = plural(len(graph.groups) - len(graph.roots), "family", "families")
    counts = f"{plural(len(graph.tensors), 'tensor')}, {plural(len(graph.roots), 'group')}, {families}"
    components = plural(len(graph.components()), "component")
    summary = f"{counts}, {components}, {graph.extent}; {source}."
    if graph.groups:
        table = _fold_stacks(graph)
        wide, right = (max(len(row[column]) for row in table) for column in (0, 1))
        groups = ["Groups:", *(f"  {name:<{wide}}  {units:>{right}} units  {where}" for name, units, where in table)]
        kinds = [facts for kind, facts in KINDS.items() if any(g.kind == kind for g in graph.groups.values())]
        groups += [f"  {facts.mark}: {facts.words}" for facts in kinds if facts.mark]
    else:
        groups = ["No group: every axis of every tensor is fixed."]
    unused = set(provenance.unused)
    sections = {
        "Folds, which weights need before this holds (alignkit.fold does them)": list(map(str, graph.folds)),
        "Spaces that alignkit.fold balances": list(map(str, graph.balances)),
        "What cannot be folded": list(map(str, graph.blocked)),
        "Spaces, and what keeps them from more" + _NOT_PROVED * (provenance.proved is False): list(
            map(str, provenance.limits)
        ),
        "Axes that the trace had to fix": [str(pin) for pin in provenance.pinned],
        "Operations without a rule (what they touch is fixed)": list(provenance.unknown_ops),
        "Tensors that the run never read": list(provenance.unused),
        "Positions that the run did not read (a longer example may)": [str(unread) for unread in provenance.unread],
        "Weights that met only constants, such as a state of zeros (trace two steps)": list(
            map(str, provenance.single_step)
        ),
        "Code that reads values of tensors (the symmetries are those of the path that this run took)": [
            module or "the forward of the model" for module in provenance.choosing
        ],
        "Stacks with one order of units for all matrices, to save memory (trace fewer layers)": list(provenance.joint),
        "Tensors on which no group acts": [name for name in graph.uncovered if name not in unused],
    }
    fixed: list[str] = []
    for title, lines in sections.items():
        if lines:
            fixed += [f"{title}:", *shorten_list(lines, _LISTED)]
    return "\n".join([summary, *groups, *fixed])


def group_table(graph: GraphStructure) -> list[tuple[str, str, str]]:
    """List name, size and number of tensors of each group, in the order of ``graph.parents_first``.

    Families are indented under their parents. A mark stands in front of the name where the kind has one.
    """
    indented = {name: "  " * len(graph.ancestors(name)) + marked(graph, name) for name in graph.parents_first}
    counts = {name: plural(len(graph.tensors_of(name)), "tensor") for name in indented}
    return [(text, units_text(graph, name), counts[name]) for name, text in indented.items()]


def _fold_stacks(graph: GraphStructure) -> list[tuple[str, str, str]]:
    """List groups as `group_table` does; groups of the same kind at the places of a stack are one line."""
    stacked = {mention: groups for mention, groups in graph.copies.items() if len(groups) > 1}
    kinds = {group: mention if group == groups[0] else None for mention, groups in stacked.items() for group in groups}
    rows = []
    for name, (text, units, tensors) in zip(graph.parents_first, group_table(graph), strict=True):
        mention = kinds.get(name, "")
        if mention:
            text, units = f"{text} to {graph.copies[mention][-1]}", mention_text(graph, mention)
        if mention is not None:
            rows.append((text, units, tensors))
    return rows


def mention_text(graph: GraphStructure, mention: str) -> str:
    """Write the size of what a name in the layouts stands for, ``"8 x 64"`` for the groups of 64 units of a stack."""
    groups = graph.copies[mention]
    if len(groups) == 1:
        return units_text(graph, groups[0])
    return f"{len(groups) * graph.instances(groups[0])} x {graph.groups[groups[0]].size}"


def marked(graph: GraphStructure, group: str) -> str:
    """Write the name of a group with the mark of its kind: ``"~model"``."""
    return KINDS[graph.groups[group].kind].mark + group


def units_text(graph: GraphStructure, group: str) -> str:
    """Write the size of a group, ``"64"``, or the number and size of the copies of a family, ``"12 x 64"``."""
    size = graph.groups[group].size
    return str(size) if graph.groups[group].parent is None else f"{graph.instances(group)} x {size}"


def why_fixed(graph: GraphStructure, tensor: str) -> str:
    """Say why no group acts on a tensor, as the end of a sentence: what pinned it, or that nothing ever read it."""
    node, provenance = graph.tensors[tensor], graph.provenance
    if pins := [pin for pin in provenance.pinned if pin.tensor in node.names]:
        axes = [f"axis {pin.axis} by {pin.op}" + (f" in {pin.where}" if pin.where else "") for pin in pins]
        return f"pinned on {', '.join(axes)}"
    if any(name in node.names and place is None for fold in graph.folds for name, place, _ in constants_after(fold)):
        return "a fold leaves one number in all of it"
    if set(node.names) & set(provenance.unused):
        return "the traced run never used it"
    if provenance.source == "written":
        return "the spec fixes all its axes"
    return "no group acts on it: its axes are model inputs or outputs, or another tensor fixes them"
