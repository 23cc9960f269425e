"""Attachments: tensors that stand on axes of a network without being part of it, such as probes and steering vectors.

Their layouts are written in the notation of graphs. A word that begins with ``@`` says that an axis is like another
one: ``@fc2.weight:1`` like axis 1 of that tensor, ``@layers.3`` like what comes out of that module.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from torch import Tensor

from alignkit.errors import MergeError
from alignkit.graph import Gain, Mean, OutputScale, Shift, SymmetryGraph
from alignkit.graph.kinds import KINDS
from alignkit.graph.layout import Axis, factor_size
from alignkit.graph.notation import format_layout, parse_layout
from alignkit.rewriting.axes import Likes
from alignkit.text import did_you_mean, list_some

_WORD = re.compile(r"@(?P<name>.+?)(?::(?P<axis>\d+))?")
Place: TypeAlias = tuple[str, int]
"""A tensor of a graph, by first name, and one of its axes."""
FindOutput: TypeAlias = Callable[[str], Place]
"""Takes the path of a module; returns an axis that is laid out as the axis of units of what comes out of it."""


@dataclass(frozen=True)
class Attachments:
    """The layouts of attachments as a graph of their own, whose groups are those of the network.

    ``likes`` says for each tensor which of its axes are rewritten with which axis of the network.
    """

    graph: SymmetryGraph
    likes: Mapping[str, Likes]


def read_attachments(
    graph: SymmetryGraph, tensors: Mapping[str, Tensor], layouts: str | Mapping[str, str], find_output: FindOutput
) -> Attachments:
    """Read the layouts of attachments.

    Args:
        graph: The graph of the network.
        tensors: The attachments by name.
        layouts: The layout of each; or one word, for all axes that are as long as it.
        find_output: Says what comes out of a module.

    Raises:
        MergeError: A word names nothing of the network, or it is not clear what an axis is like.
        SpecError: A layout cannot be read.
        ShapeMismatchError: A layout contradicts the shape of its tensor.
    """
    words = _Words(graph, find_output)
    if isinstance(layouts, str):
        layouts = _for_all(words.text(layouts), layouts, tensors)
    if unknown := [name for name in layouts if name not in tensors]:
        raise MergeError(f"layouts= names {unknown[0]!r}, which is not there.{did_you_mean(unknown[0], tensors)}")
    if missing := [name for name in tensors if name not in layouts]:
        listed = list_some([repr(name) for name in missing], 5)
        raise MergeError(f"layouts= says nothing about {listed}. Write one word an axis, '.' for one that stays.")
    split = {name: _split(text) for name, text in layouts.items()}
    texts = {name: " ".join(map(words.text, parts)) for name, parts in split.items()}
    mentioned = {u.group for text in texts.values() for axis in parse_layout(text) for u in axis.units()}
    sizes = {name: graph.groups[name].size for name in mentioned if name in graph.groups}
    own = SymmetryGraph.from_spec(texts, {name: tuple(t.shape) for name, t in tensors.items()}, sizes=sizes)
    for name, group in own.groups.items():
        if name not in graph.groups:
            raise MergeError(f"the network has no group {name!r}.{did_you_mean(name, graph.groups)}")
        if group != (known := graph.groups[name]):
            parent = f"[{known.parent}]" if known.parent else ""
            written = f"{KINDS[known.kind].mark}{name}{parent}"
            raise MergeError(f"group {name!r} is written {written!r}: it has {known.size} units, {KINDS[known.kind]}.")
    likes = {}
    for name, parts in split.items():
        places = ((at, words.like(part, own.tensors[name].layout[at])) for at, part in enumerate(parts))
        likes[name] = {at: place for at, place in places if place is not None}
    return Attachments(own, likes)


def _split(text: str) -> list[str]:
    """Split a layout into words, one an axis; blanks inside parentheses do not count."""
    words, depth = [""], 0
    for letter in text:
        depth += (letter == "(") - (letter == ")")
        if letter.isspace() and not depth:
            words.append("")
        else:
            words[-1] += letter
    return [word for word in words if word]


def _for_all(text: str, word: str, tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Give one word to every axis that is as long as what it stands for."""
    (axis,) = parse_layout(text)
    if axis.is_fixed or any(units.size is None for units in axis.units()):
        raise MergeError(f"{word!r}: say for each tensor which axis it is, as in {{'probe.weight': '. {word}'}}.")
    size = factor_size(axis)
    layouts = {}
    for name, tensor in tensors.items():
        fitting = [at for at, length in enumerate(tensor.shape) if length == size]
        if len(fitting) > 1:
            clear = " ".join("." if at else word for at in range(tensor.ndim))
            shape = f"{name!r} of shape {tuple(tensor.shape)} has {len(fitting)} axes of {size} positions"
            raise MergeError(f"{shape}. Say for each tensor which is {word!r}, as in {{{name!r}: {clear!r}}}.")
        layouts[name] = " ".join(word if at in fitting else "." for at in range(tensor.ndim))
    if not any(word in text.split() for text in layouts.values()):
        shapes = list_some([f"{name!r} {tuple(tensor.shape)}" for name, tensor in tensors.items()], 5)
        raise MergeError(f"{word!r} has {size} positions, which no axis of the tensors has: {shapes}.")
    return layouts


class _Words:
    """The words of layouts: as notation, and the axis of the network that they are like."""

    def __init__(self, graph: SymmetryGraph, find_output: FindOutput) -> None:
        self.graph, self.find_output = graph, find_output
        self.outputs: dict[str, Place] = {}

    def text(self, word: str) -> str:
        """Return a word as notation, with all sizes where it is like an axis of the network."""
        named = _WORD.fullmatch(word)
        if named is None:
            units = self.graph.mentions.get(word.lstrip("-%~^"))
            return word if units is None else f"{word}:{units.size}"
        tensor, axis = self._place(named)
        layout = self.graph.tensors[tensor].layout[axis]
        return format_layout((layout,), {units.group for units in layout.units()})

    def like(self, word: str, layout: Axis) -> Place | None:
        """Return the axis of the network with which an axis of this word is rewritten; None where none is.

        Raises:
            MergeError: What writes a space of units and what reads it are rewritten in two ways.
        """
        named = _WORD.fullmatch(word)
        if named is not None and named["axis"] is not None:
            return self._checked(self._place(named))
        for units in layout.units():
            for balance in self.graph.balances:
                if balance.group in self.graph.copies[units.group]:
                    ends = (balance.writes[0], *balance.reads[:1])
                    ways = (f"'@{place.tensor}:{place.axis}'" for place in ends)
                    problem = f"{word!r}: what writes these units and what reads them is scaled in two ways"
                    raise MergeError(f"{problem}. Say {' to be like what writes them, or '.join(ways)} for a reader.")
        scaled = {place for fold in self.graph.folds if isinstance(fold, OutputScale) for place in fold.writers}
        for place in (place for fold in self.graph.folds if isinstance(fold, Mean) for place in fold.writers):
            if place not in scaled and self.graph.tensors[place.tensor].layout[place.axis] == layout:
                return place.tensor, place.axis
        return None

    def _place(self, named: re.Match[str]) -> Place:
        name, axis = named["name"], named["axis"]
        first = self.graph.first_names.get(name)
        if axis is None and first is None:
            if name not in self.outputs:
                self.outputs[name] = self.find_output(name)
            return self.outputs[name]
        if first is None:
            raise MergeError(f"'@{name}:{axis}': no tensor {name!r}.{did_you_mean(name, self.graph.first_names)}")
        shape = self.graph.tensors[first].shape
        if axis is None or int(axis) >= len(shape):
            raise MergeError(f"'@{name}': say which axis of shape {shape}, as in '@{name}:0'.")
        return first, int(axis)

    def _checked(self, place: Place) -> Place:
        """Refuse an axis of a gain, shift or scale that a fold moves into other weights."""
        for fold in self.graph.folds:
            match fold:
                case Gain(gain, readers, _, shift):
                    gone, beside = {gain, shift}, readers
                case Shift(shift, pairs):
                    gone, beside = {shift}, tuple(reader for reader, _ in pairs)
                case OutputScale(scale, writers):
                    gone, beside = {scale}, writers
                case _:
                    continue
            if place[0] in gone:
                ways = " or ".join(f"'@{at.tensor}:{at.axis}'" for at in beside)
                raise MergeError(f"'@{place[0]}:{place[1]}': folding moves it into other weights. Say {ways}.")
        return place
