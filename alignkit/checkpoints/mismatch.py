"""Why tensors do not fit, in one sentence: most long lists of mismatches have one cause."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence

import torch

from alignkit.text import dtype_name, list_some

Shape = tuple[int, ...]
_MOST_SIZES = 3
"""Maximum number of pairs of sizes that a sentence names."""


def names_cause(names: Collection[str], known: Collection[str], label: str, owner: str) -> str:
    """Say why the names of one side are not those that are known; "" where there is no single cause.

    Args:
        names: The names of the side.
        known: Those that are expected, all names of tied tensors among them.
        label: What messages call the side, such as ``"B"``.
        owner: What they call those that expect, such as ``"the graph"``.
    """
    if not names:
        return f"{label} has no tensors"
    if prefix := common_prefix(names, known):
        return f"all names of {label} start with {prefix!r}. Remove it: name.removeprefix({prefix!r})"
    if prefix := common_prefix(known, names):
        return f"all names of {owner} start with {prefix!r}, those of {label} do not. Add it: {prefix!r} + name"
    if not any(name in known for name in names):
        example = f"{next(iter(names))!r} and the like in place of {next(iter(known), '')!r}"
        return f"{label} is another architecture: it shares no name with {owner}, {example}"
    return ""


def common_prefix(names: Collection[str], known: Collection[str]) -> str:
    """Return what all names have before known ones, such as ``module.``; "" if there is no such thing.

    Wrappers write it: ``module.`` (DataParallel), ``_orig_mod.`` (torch.compile), ``model.`` (Lightning).
    """
    first = next(iter(names), "")
    for prefix in (first.removesuffix(name) for name in known if first.endswith(name) and first != name):
        if all(other.startswith(prefix) and other.removeprefix(prefix) in known for other in names):
            return prefix
    return ""


def sizes_cause(shapes: Mapping[str, Shape], expected: Mapping[str, Shape], label: str, owner: str) -> str:
    """Say which sizes the tensors of one side have in place of others; "" where that explains nothing.

    Args:
        shapes: Shape of each tensor of the side, by name.
        expected: Shape by every name that is expected.
        label: What messages call the side.
        owner: What they call those that expect.
    """
    wrong = [(own, expected[name]) for name, own in shapes.items() if own != expected.get(name, own)]
    if len(wrong) < 2 or any(len(own) != len(wanted) for own, wanted in wrong):
        return ""
    sizes = Counter(pair for own, wanted in wrong for pair in zip(own, wanted, strict=True) if pair[0] != pair[1])
    listed = [f"{own} in place of {wanted}" for (own, wanted), _ in sizes.most_common()]
    return f"{label} has other sizes than {owner}: {list_some(listed, _MOST_SIZES)}"


def dtypes_cause(differing: Sequence[tuple[torch.dtype, torch.dtype]], reference: str, label: str) -> str:
    """Say that one side is of another dtype than the reference; "" where the tensors that differ are mixed."""
    if len(differing) < 2 or len(set(differing)) > 1:
        return ""
    wanted, own = map(dtype_name, differing[0])
    return f"{label} is {own}, {reference} is {wanted}. Convert one of them, tensor by tensor: .to(torch.{wanted})"
