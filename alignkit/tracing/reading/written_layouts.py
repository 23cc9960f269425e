"""Writing what was read in the notation: one string a tensor, and the sizes that shapes may leave open."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from networkx import Graph, connected_components

from alignkit.tracing.reading.axes import GroupKey, groups_on, write_axis
from alignkit.tracing.reading.naming import parents_of
from alignkit.tracing.reading.traced_layouts import TracedLayouts


def write_layouts(
    traced: TracedLayouts, names: Mapping[GroupKey, str], marks: Mapping[GroupKey, str] = MappingProxyType({})
) -> tuple[dict[str, str], dict[str, int]]:
    """Return the notation of each tensor, and the sizes of the groups and stacks that it mentions.

    `marks` are those of kinds, which stand in front of names; a group without one is permuted.

    The stack of the units ``experts`` is called ``experts.stack``, and one that tensors with several such groups share
    after the first of them. A group at one place of a stack that another tensor reads is ``experts.2``.
    """
    parents = parents_of(names, traced.symmetry)
    stacks = _name_stacks(traced, names)
    texts: dict[GroupKey, str] = {}
    for group, name in names.items():
        parent = parents[group]
        owner = stacks.get(group) if parent is None else names[parent]
        texts[group] = marks.get(group, "") + (name if owner is None else f"{name}[{owner}]")
    layouts, sizes = {}, {}
    for tensor, axes in traced.axes.items():
        groups = [group for axis in axes for group in groups_on(axis)]
        words = []
        for axis in axes:
            if axis[0].is_stack:
                stack = next(stacks[group] for group in groups if group in stacks)
                words.append(f"={stack}")
                sizes[stack] = axis[0].size
            else:
                words.append(write_axis(axis, texts))
        layouts[tensor] = " ".join(words)
        for group in groups:
            sizes[names[group]] = traced.symmetry.orbits[group if isinstance(group, int) else group[0]].size
    return layouts, sizes


def _name_stacks(traced: TracedLayouts, names: Mapping[GroupKey, str]) -> dict[GroupKey, str]:
    """Return the stack that owns each group that has one for each place of it."""
    together = Graph()
    for axes in traced.axes.values():
        stacked = [group for axis in axes for group in groups_on(axis) if isinstance(group, tuple)]
        together.add_edges_from((stacked[0], group) for group in stacked)
    stacks: dict[GroupKey, str] = {}
    for component in connected_components(together):
        first = next(group for group in names if group in component)
        stacks |= dict.fromkeys(component, f"{names[first]}.stack")
    return stacks
