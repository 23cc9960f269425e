"""Names of groups, from the paths of the tensors that they act on."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from alignkit.tracing.reading.axes import GroupKey, LabelledAxis, LabelledSegment, groups_on
from alignkit.tracing.solving.orbits import Symmetry

Axes = Mapping[str, tuple[LabelledAxis, ...]]
"""Segments of each axis of each tensor, tensors in the model's order."""

_LEAF = re.compile(r"^(weight|bias)(_[ih]h)?_?")
_ROLES = {(0, 1): "qk", (0,): "q", (1,): "k", (2,): "v", (1, 2): "kv", (0, 1, 2): "qkv"}
"""Which segments of a fused projection a group acts on, in the order query, key, value, and what it is called then."""


def parents_of(groups: Iterable[GroupKey], symmetry: Symmetry) -> dict[GroupKey, GroupKey | None]:
    """Return the parent of each group; that of groups in a stack has one for each place, too."""
    stacks = {group[0]: group for group in groups if isinstance(group, tuple)}
    parents: dict[GroupKey, GroupKey | None] = {}
    for group in groups:
        parent = symmetry.orbits[group if isinstance(group, int) else group[0]].parent
        parents[group] = parent if isinstance(group, int) or parent is None else stacks[parent]
    return parents


def group_names(axes: Axes, shapes: Mapping[str, tuple[int, ...]], symmetry: Symmetry) -> dict[GroupKey, str]:
    """Return a readable, stable name for each group: the path of the module whose tensor mentions it first.

    Tensors with a single axis, such as biases, count only where nothing else mentions the group. Units that own units
    get a word for what they are: heads, groups of channels, experts. Where one tensor introduces several groups, the
    segment tells them apart. A name that is taken gets a number.
    """

    def is_vague(name: str) -> tuple[bool, bool]:
        # Biases and scales tell less than matrices, which have units on both sides, or are weights of layers with a
        # single unit. Parameters of the model itself (tokens, positions) tell less than those of layers.
        shape = shapes[name]
        is_weight = len(shape) > 1 and name.rpartition(".")[2] == "weight"
        return "." not in name, not (is_weight or sum(n > 1 for n in shape) > 1)

    first_use: dict[GroupKey, tuple[str, int]] = {}
    for name in sorted(axes, key=is_vague):
        for dim, axis in enumerate(axes[name]):
            for group in groups_on(axis):
                first_use.setdefault(group, (name, dim))
    place_of = {g: (stack, i) for stack in first_use if isinstance(stack, tuple) for i, g in enumerate(stack)}
    parent_of = parents_of(first_use, symmetry)
    owner_of = _owners(axes)
    taken: set[str] = set(axes)
    names: dict[GroupKey, str] = {}
    for group, (tensor, dim) in first_use.items():
        if group in place_of:
            continue
        if group in parent_of.values() or group in owner_of:
            base = _owner_name(group, tensor, axes, parent_of, owns_heads=group in owner_of.values())
        else:
            parent = parent_of[group]
            base = _unit_name(group, tensor, axes[tensor][dim], len(shapes[tensor]), parent)
            if parent is not None and base == names.get(parent):
                base += ".units"
        name, number = base, 2
        endings = [""] if isinstance(group, int) else ["", ".stack", *(f".{place}" for place in range(len(group)))]
        while not taken.isdisjoint(name + ending for ending in endings):
            name = f"{base}.{number}"
            number += 1
        names[group] = name
        taken.update(name + ending for ending in endings)
    # One of the groups of a stack, read by a tensor that has no other of them.
    alone = {group: place_of[group] for group in first_use if group in place_of}
    return names | {group: f"{names[stack]}.{place}" for group, (stack, place) in alone.items()}


def _unit_name(group: GroupKey, tensor: str, axis: LabelledAxis, rank: int, parent: GroupKey | None) -> str:
    """Return the name that units would like to have: the path of their module, and what tells them apart inside."""
    module, _, leaf = tensor.rpartition(".")
    suffix = _LEAF.sub("", leaf)
    if suffix == leaf or not suffix:
        base = module if module and not module.isdigit() else f"layer.{module or tensor}"
    else:
        base = f"{module}.{suffix}" if module else suffix
    if parent is None or rank > 2 or len(groups_on(axis)) <= 2:
        return base
    # A fused projection: its parallel parts are its segments, or those inside of its only segment.
    parts = axis
    while len(parts) == 1 and parts[0].group not in (None, group) and parts[0].inner:
        parts = parts[0].inner
    innermost = axis
    while len(innermost) == 1 and innermost[0].inner:
        innermost = innermost[0].inner
    role = _ROLES.get(tuple(i for i, part in enumerate(parts) if group in groups_on((part,))))
    return f"{base}.{role}" if role and len(innermost) in (2, 3) else base


def _owners(axes: Axes) -> dict[GroupKey, GroupKey]:
    """Return groups that own positions inside of another group, with that group: query heads of key-value heads."""
    owner_of: dict[GroupKey, GroupKey] = {}

    def visit(axis: LabelledAxis) -> None:
        for outer in axis:
            for inner in outer.inner:
                if outer.group is not None and inner.group is not None and inner.size > _unit_count(inner):
                    owner_of[inner.group] = outer.group
            visit(outer.inner)

    for tensor in axes.values():
        for axis in tensor:
            visit(axis)
    return owner_of


def _unit_count(segment: LabelledSegment) -> int:
    """Return how many units of its group a segment has."""
    return segment.size // max(sum(part.size for part in segment.inner), 1)


def _is_one_each(segment: LabelledSegment) -> bool:
    """Return whether a unit, or each unit in one, stands at one position."""
    return segment.inner == (LabelledSegment(None, 1),) or (
        segment.group is not None and len(segment.inner) == 1 and _is_one_each(segment.inner[0])
    )


def _owner_name(
    group: GroupKey, tensor: str, axes: Axes, parent_of: Mapping[GroupKey, GroupKey | None], *, owns_heads: bool
) -> str:
    """Return a name for units that own other units: experts, groups of channels, heads."""
    module, _, leaf = tensor.rpartition(".")
    # Fused projections and experts may be parameters of their module itself, or of layers in it.
    path = module.rpartition(".")[0] if leaf in ("weight", "bias") else module
    # Units are stacked if a tensor has a matrix for each of them.
    stacked = any(
        len(rows) > 2
        and groups_on(rows[0])[-1:] == [group]
        and all(_is_one_each(segment) for segment in rows[0])
        and any(parent_of[g] == group for axis in rows[1:] for g in groups_on(axis))
        for rows in axes.values()
    )
    if stacked and path.rpartition(".")[2] == "experts":
        return path
    if stacked:
        kind = "experts"
    elif len(axes[tensor]) > 2:
        kind, path = "groups", module
    else:
        kind = "kv_heads" if owns_heads else "heads"
    return f"{path}.{kind}" if path else kind
