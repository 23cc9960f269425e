"""Nets with their symmetries written by hand, in the notation of alignkit and a short form of it."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from alignkit import SymmetryGraph
from alignkit.graph.elements.alignment import Alignment


@dataclass(frozen=True)
class Net:
    """A net, an example call of it, and its symmetries.

    Attributes:
        build: Makes the net.
        inputs: Positional arguments of a call.
        symmetries: A line for each kind of tensor: names, a colon, and a layout. A name holds `*` for anything and
            `{i}` for a part that the layout takes up again. Layouts are cut to the number of axes of a tensor, and
            filled up with `.`, so that `fc.*: h .` says both weight and bias. Tensors that no line names are fixed.
        kwargs: Arguments of the call by name.
    """

    build: Callable[[], nn.Module]
    inputs: tuple[Any, ...]
    symmetries: str
    kwargs: dict[str, Any] = field(default_factory=dict)


def parameter(*shape: int) -> nn.Parameter:
    """Return a parameter of random numbers."""
    return nn.Parameter(torch.randn(shape))


def derived(model: nn.Module, symmetries: str) -> SymmetryGraph:
    """Return the graph of lines as those of `Net.symmetries`; each line names tensors, none is named twice."""
    ranks: dict[str, int] = {}
    seen: set[int] = set()
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:
            seen.add(id(tensor))
            ranks[name] = tensor.dim()
    spec: dict[str, str] = {}
    for line in filter(None, map(str.strip, symmetries.splitlines())):
        names, _, layout = line.partition(": ")
        matches = [(name, match) for name in ranks for pattern in names.split() if (match := _matches(pattern, name))]
        if not matches:
            raise ValueError(f"no tensor is named by {line!r}; there are {list(ranks)}")
        for name, match in matches:
            if name in spec:
                raise ValueError(f"{name!r} is named twice, by {spec[name]!r} and {line!r}")
            filled = layout
            for part, value in match.groupdict().items():
                filled = filled.replace(f"{{{part}}}", value)
            spec[name] = " ".join([*_words(filled), *["."] * ranks[name]][: ranks[name]])
    fixed = {name: " ".join(["."] * rank) for name, rank in ranks.items()}
    return SymmetryGraph.from_spec({**fixed, **spec}, like=model)


def _matches(pattern: str, name: str) -> re.Match[str] | None:
    text = re.escape(pattern).replace(r"\*", ".*")
    return re.fullmatch(re.sub(r"\\\{(\w)\\\}", r"(?P<\1>\\w+)", text), name)


def _words(layout: str) -> list[str]:
    """Split a layout into axes: at blanks outside of parentheses."""
    words, depth = [""], 0
    for letter in layout.strip():
        depth += (letter == "(") - (letter == ")")
        if letter == " " and not depth:
            words.append("")
        else:
            words[-1] += letter
    return [word for word in words if word]


def difference(derived: SymmetryGraph, traced: SymmetryGraph) -> str:
    """Return how a traced graph differs from one written by hand, tensor by tensor; empty where it does not.

    Two graphs are the same where their groups can be paired such that the same elements move every tensor in the same
    way. Groups are paired in the order in which the tensors name them.
    """
    order = list(derived.tensors)
    names = [_groups_in_order(graph, order) for graph in (derived, traced)]
    facts = [
        [(graph.groups[n].size, of.index(p) if (p := graph.groups[n].parent) else None) for n in of]
        for graph, of in zip((derived, traced), names, strict=True)
    ]
    differing = order
    if facts[0] == facts[1] and len(names[0]) == len(derived.groups) == len(traced.groups):
        differing = []
        for seed in range(3):
            ours = Alignment.random(derived, seed)
            theirs = Alignment(traced, {b: ours.elements[a] for a, b in zip(*names, strict=True)})
            for name in order:
                shape = derived.tensors[name].shape
                numbers = torch.arange(torch.Size(shape).numel()).view(shape)
                if not torch.equal(ours.apply_tensor(name, numbers), theirs.apply_tensor(name, numbers)):
                    differing.append(name)
    texts = [graph.spec() for graph in (derived, traced)]
    lines = [f"{name:32} by hand {texts[0].get(name, '')!r:40} traced {texts[1].get(name, '')!r}" for name in order]
    return "\n".join(line for line, name in zip(lines, order, strict=True) if name in differing)


def _groups_in_order(graph: SymmetryGraph, order: list[str]) -> list[str]:
    blocks = (block for name in order for block in sorted(graph.tensors[name].blocks, key=lambda b: b.offsets))
    return list(dict.fromkeys(dim.group for block in blocks for dim in block.dims if dim.group is not None))
