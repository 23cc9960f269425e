"""Names of groups, from the paths of the tensors that they act on."""

from __future__ import annotations

import re
from collections.abc import Mapping

from alignkit.tracing.reading.layouts import LabelledAxis, LabelledSegment, groups_of
from alignkit.tracing.solving.orbits import Symmetry

_LEAF = re.compile(r"^(weight|bias)(_[ih]h)?_?")
_ROLES = {(0, 1): "qk", (0,): "q", (1,): "k", (2,): "v", (1, 2): "kv", (0, 1, 2): "qkv"}


def group_names(
    axes: Mapping[str, tuple[LabelledAxis, ...]], shapes: Mapping[str, tuple[int, ...]], symmetry: Symmetry
) -> dict[int, str]:
    """Return a readable, stable name for each group: the path of the module whose tensor mentions it first.

    Tensors with a single axis, such as biases, count only where nothing else mentions the group. Units that own units
    get a word for what they are: heads, groups of channels, experts. Where one tensor introduces several groups, the
    segment tells them apart.

    Args:
        axes: Segments of each axis, tensors in the model's order.
        shapes: Shapes of these tensors.
        symmetry: The groups.
    """
    owner: dict[int, tuple[str, int]] = {}
    # Biases and scales tell less than matrices; parameters of the model itself (tokens, positions) less than those
    # of layers.
    order = sorted(axes, key=lambda name: ("." not in name, not _is_matrix(name, shapes[name])))
    for name in order:
        for dim, axis in enumerate(axes[name]):
            for group in groups_of(axis):
                owner.setdefault(group, (name, dim))
    family_of = {g: symmetry.orbits[g].parent for g in owner}
    taken: set[str] = set(axes)
    names: dict[int, str] = {}
    whole = _heads_of_heads(axes)
    for group, (tensor, dim) in owner.items():
        if group in family_of.values() or group in whole:
            base = _owner_name(
                tensor, axes[tensor], owns_heads=group in whole.values(), stacked=_is_stacked(group, axes, family_of)
            )
        else:
            base = _unit_name(group, tensor, axes[tensor][dim], len(shapes[tensor]), family_of[group])
        names[group] = _unused(base, taken)
        taken.add(names[group])
    return names


def _is_matrix(tensor: str, shape: tuple[int, ...]) -> bool:
    """Return whether a tensor has units on both sides, as weights of layers have even if one side is a single unit."""
    return sum(n > 1 for n in shape) > 1 or (len(shape) > 1 and tensor.rpartition(".")[2] == "weight")


def _unit_name(group: int, tensor: str, axis: LabelledAxis, rank: int, parent: int | None) -> str:
    """Return the name that units would like to have.

    The path of their module, and what tells them apart inside of it.
    """
    module, _, leaf = tensor.rpartition(".")
    rest = _LEAF.sub("", leaf)
    if rest == leaf or not rest:
        base = module if module and not module.isdigit() else f"layer.{module or tensor}"
    else:
        base = f"{module}.{rest}" if module else rest
    role = _ROLES.get(tuple(sorted(_segments(axis, group))))
    if parent is not None and rank <= 2 and role and _segment_count(axis) in (2, 3) and len(groups_of(axis)) > 2:
        return f"{base}.{role}"
    return base


def _heads_of_heads(axes: Mapping[str, tuple[LabelledAxis, ...]]) -> dict[int, int]:
    """Return groups that own positions inside of another group, with that group: query heads of key-value heads."""
    found: dict[int, int] = {}

    def visit(axis: LabelledAxis) -> None:
        for outer in axis:
            for inner in outer.inner:
                if outer.group is not None and inner.group is not None and inner.size > _own(inner):
                    found[inner.group] = outer.group
            visit(outer.inner)

    for tensor in axes.values():
        for axis in tensor:
            visit(axis)
    return found


def _own(segment: LabelledSegment) -> int:
    """Return how many units of its group a segment has."""
    return segment.size // max(sum(part.size for part in segment.inner), 1)


def _is_stacked(group: int, axes: Mapping[str, tuple[LabelledAxis, ...]], family_of: Mapping[int, int | None]) -> bool:
    """Return whether a tensor stacks one matrix for each unit of a group."""
    return any(
        len(tensor) > 2
        and groups_of(tensor[0]) == [group]
        and any(family_of[g] == group for axis in tensor[1:] for g in groups_of(axis))
        for tensor in axes.values()
        if all(segment.size == _own(segment) for segment in tensor[0])
    )


def _owner_name(tensor: str, axes: tuple[LabelledAxis, ...], *, owns_heads: bool, stacked: bool) -> str:
    """Return a name for units that own other units: experts, groups of channels, heads."""
    module, _, leaf = tensor.rpartition(".")
    if stacked:
        kind, path = "experts", module.rpartition(".")[0] if leaf in ("weight", "bias") else module
    elif len(axes) > 2:
        kind, path = "groups", module
    else:
        kind = "kv_heads" if owns_heads else "heads"
        # Fused projections may be parameters of the attention module itself, or layers of it.
        path = module.rpartition(".")[0] if leaf in ("weight", "bias") else module
    return f"{path}.{kind}" if path else kind


def _segments(axis: LabelledAxis, group: int) -> set[int]:
    """Return in which of the parallel parts of an axis a group acts: its segments, or those inside its only segment."""
    parts: tuple[LabelledSegment, ...] = axis
    while len(parts) == 1 and parts[0].group is not None and parts[0].group != group and parts[0].inner:
        parts = parts[0].inner
    return {i for i, part in enumerate(parts) if group in groups_of((part,))}


def _segment_count(axis: LabelledAxis) -> int:
    parts: tuple[LabelledSegment, ...] = axis
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
