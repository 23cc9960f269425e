"""Names of groups, from the paths of the tensors that they act on."""

from __future__ import annotations

from collections.abc import Mapping

from alignkit.trace.layouts import Axis, Segment, groups_of
from alignkit.trace.orbits import Symmetry


def group_names(
    axes: Mapping[str, tuple[Axis, ...]], shapes: Mapping[str, tuple[int, ...]], symmetry: Symmetry
) -> dict[int, str]:
    """Return a readable, stable name for each group: the path of the module whose tensor mentions it first.

    Tensors with a single axis, such as biases, count only where nothing else mentions the group. Units that own units get a word
    for what they are: heads, groups of channels, experts. Where one tensor introduces several groups, the segment tells them apart.

    Args:
        axes: Segments of each axis, tensors in the model's order.
        shapes: Shapes of these tensors.
        symmetry: The groups.
    """
    owner: dict[int, tuple[str, int]] = {}
    wide = [name for name in axes if sum(n > 1 for n in shapes[name]) > 1]
    for name in [*wide, *(name for name in axes if name not in wide)]:
        for dim, axis in enumerate(axes[name]):
            for group in groups_of(axis):
                owner.setdefault(group, (name, dim))
    parents = {symmetry.orbits[g].parent for g in owner}
    taken: set[str] = set(axes)
    names: dict[int, str] = {}
    for group, (tensor, dim) in owner.items():
        base = _base(group, tensor, axes[tensor][dim], symmetry, parents)
        names[group] = _unused(base, taken)
        taken.add(names[group])
    return names


def _base(group: int, tensor: str, axis: Axis, symmetry: Symmetry, parents: set[int | None]) -> str:
    """Return the name that a group would like to have."""
    module = tensor.rpartition(".")[0]
    if group in parents:
        return _owner_name(group, tensor, axis, symmetry)
    orbit = symmetry.orbits[group]
    if orbit.parent is not None and symmetry.orbits[orbit.parent].parent is None and len(groups_of(axis)) > 2:
        places = sorted(_segments(axis, group))
        role = {(0, 1): "qk", (0,): "q", (1,): "k", (2,): "v", (1, 2): "kv", (0, 1, 2): "qkv"}.get(tuple(places))
        if role is not None and max(_segment_count(axis), 1) in (2, 3):
            return f"{module}.{role}" if module else role
    return module if module and not module.isdigit() else f"layer.{module or tensor}"


def _owner_name(group: int, tensor: str, axis: Axis, symmetry: Symmetry) -> str:
    """Return a name for units that own other units."""
    module = tensor.rpartition(".")[0]
    above = module.rpartition(".")[0] or module
    alone = all(segment.group == group and all(s.group is None for s in segment.inner) for segment in axis)
    if alone:
        return f"{module or tensor}.experts"
    nested = {g for g in groups_of(axis) if symmetry.orbits[g].parent == group}
    if any(symmetry.orbits[g].parent in nested for g in groups_of(axis)) or len(nested) > 1:
        kind = "kv_heads" if len(axis) == 1 and len(_segments(axis, group)) == 1 else "heads"
        return f"{above}.{kind}" if above else kind
    return f"{above}.heads" if above else "heads"


def _segments(axis: Axis, group: int) -> set[int]:
    """Return in which of the parallel parts of an axis a group acts: its segments, or those inside its only segment."""
    parts: tuple[Segment, ...] = axis
    while len(parts) == 1 and parts[0].group is not None and parts[0].group != group and parts[0].inner:
        parts = parts[0].inner
    return {i for i, part in enumerate(parts) if group in groups_of((part,))}


def _segment_count(axis: Axis) -> int:
    parts: tuple[Segment, ...] = axis
    while len(parts) == 1 and parts[0].inner:
        parts = parts[0].inner
    return len(parts)


def _unused(base: str, taken: set[str]) -> str:
    """Return the name, with a number if it is taken."""
    name, number = base, 2
    while name in taken:
        name = f"{base}.{number}"
        number += 1
    return name
