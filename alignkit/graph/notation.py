"""The notation of layouts: one string a tensor, read and written.

Axes are separated by blanks, segments by ``+``, and a product of factors stands in parentheses::

    axis    = segment ('+' segment)*
    segment = factor | '(' factor+ ')'
    factor  = '.' | number | group | '(' axis ')'
    group   = ['=' | mark] name ['[' parent ']'] [':' size]
    mark    = '-' | '%' | '%%' | '~' | '^'

A name holds letters, digits and ``_ . - /``, does not begin with one of the last three, and is not a number. ``.`` is
fixed and takes the size that is left. ``=name`` is a stack: its places stay, and each owns the groups whose parent it
is. A mark says the kind of a group, see `alignkit.graph.kinds`; a group without one is permuted.
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterator

from alignkit.errors import SpecError
from alignkit.graph.kinds import KIND_OF_MARK, KINDS
from alignkit.graph.layout import Axis, Factor, Fixed, Layout, Segment, StackPlaces, Units

_NAME = r"[A-Za-z0-9_][A-Za-z0-9_.\-/]*"
_GROUP = rf"(?P<mark>=|-|%%?|~|\^)?(?P<name>{_NAME})(?:\[(?P<parent>{_NAME})\])?(?::(?P<size>\d+))?"
_TOKEN = re.compile(rf"\s*(?P<token>{_GROUP}|[.()+])", re.ASCII)
_DEEPEST = 32
"""Maximum number of parentheses inside each other: no layout needs more than three, and recursion stays shallow."""


def is_group_name(name: str) -> bool:
    """Return whether ``name`` can stand for a group in the notation."""
    # Alignments are saved by group, and safetensors keeps this one name for itself.
    return bool(re.fullmatch(_NAME, name, re.ASCII)) and not name.isdigit() and name != "__metadata__"


def parse_layout(text: str, tensor: str = "") -> Layout:
    """Read the notation of one tensor.

    Args:
        text: For example ``"(heads d[heads]) model"``. The empty string is the layout of a scalar.
        tensor: Name of the tensor, for messages.

    Raises:
        SpecError: The text does not follow the grammar; the message points at the place.
    """
    if not isinstance(text, str):
        raise SpecError(f"tensor {tensor!r}: a layout is a string such as 'h2 h1', found {type(text).__name__}.")
    reader, axes = _Reader(text, tensor), []
    while reader.tokens:
        axes.append(reader.axis())
    return tuple(axes)


class _Reader:
    """Recursive descent over the tokens of one string; ``tokens`` are those to come, the next one last."""

    def __init__(self, text: str, tensor: str) -> None:
        self.text, self.tensor, self.depth = text, tensor, 0
        self.tokens: list[re.Match[str]] = []
        stripped, end = text.rstrip(), 0
        while end < len(stripped):
            match = _TOKEN.match(stripped, end)
            if match is None:
                start = len(stripped) - len(stripped[end:].lstrip())
                raise self.error(f"{stripped[start]!r} is not part of the notation", start)
            self.tokens.append(match)
            end = match.end()
        self.tokens.reverse()

    def error(self, what: str, position: int) -> SpecError:
        where = f"tensor {self.tensor!r}: " if self.tensor else ""
        start = max(0, position - 60)
        text = self.text if len(self.text) <= 120 else f"...{self.text[start : position + 60]}..."
        return SpecError(
            f"{where}cannot read the layout {text!r} at position {position}: {what}. Axes are separated by "
            "blanks, segments by '+', products stand in parentheses: '(heads d[heads])+. model'."
        )

    def peek(self) -> str:
        return self.tokens[-1]["token"] if self.tokens else ""

    def take(self) -> re.Match[str]:
        if not self.tokens:
            raise self.error("the text ends too early", len(self.text))
        return self.tokens.pop()

    def axis(self) -> Axis:
        segments = [self.segment()]
        while self.peek() == "+":
            self.take()
            segments.append(self.segment())
        return Axis(tuple(segments))

    def segment(self) -> Segment:
        if self.peek() != "(":
            return Segment((self.atom(),))
        self.depth += 1
        opening = self.take()
        if self.depth > _DEEPEST:
            raise self.error(f"more than {_DEEPEST} parentheses inside each other", opening.start("token"))
        factors: list[Factor] = []
        while self.peek() != ")":
            inner = self.axis()
            factors.extend(inner.segments[0].factors if len(inner.segments) == 1 else (inner,))
        closing = self.take()
        if not factors:
            raise self.error("empty parentheses", closing.start("token"))
        self.depth -= 1
        return Segment(tuple(factors))

    def atom(self) -> Factor:
        match = self.take()
        token, name, parent, size = match.group("token", "name", "parent", "size")
        if token == ".":
            return Fixed()
        if re.search(r"(?:^|:)\d{16}", token):
            problem = "a size of more than 15 digits"
        elif name is None:
            problem = f"a group, a number or '.' should stand here, not {token!r}"
        elif token.isdigit():
            if int(token) > 0:
                return Fixed(int(token))
            problem = "a fixed size of 0"
        elif name.isdigit() or (parent or "").isdigit():
            problem = f"{token!r} is not a group: a group's name may not be a number"
        elif size is not None and int(size) == 0:
            problem = f"group {name!r} has size 0; leave an empty group out"
        else:
            number, mark = int(size) if size else None, match["mark"] or ""
            if mark == "=":
                return StackPlaces(name, parent, number)
            return Units(name, parent, number, KIND_OF_MARK[mark])
        raise self.error(problem, match.start("token"))


def format_layout(layout: Layout, sized: Container[str] = ()) -> str:
    """Write a layout in the notation; groups in ``sized`` are written with their size."""

    def write(piece: str | Units) -> str:
        if isinstance(piece, str):
            return piece
        name = mark_of(piece) + piece.group
        parent = f"[{piece.parent}]" if piece.parent else ""
        return f"{name}{parent}" + (f":{piece.size}" if piece.group in sized else "")

    return " ".join("".join(map(write, pieces_of(axis))) for axis in layout)


def mark_of(units: Units) -> str:
    """Return what stands in front of the name of a stack, or of a group of its kind."""
    return "=" if isinstance(units, StackPlaces) else KINDS[units.kind].mark


def pieces_of(axis: Axis) -> Iterator[str | Units]:
    """Cut the notation of an axis into mentions of groups and the text between them.

    ``"(heads d[heads])+."`` gives ``"("``, heads, ``" "``, d, ``")"``, ``"+"``, ``"."``.
    """
    whole = len(axis.segments) == 1 and len(axis.segments[0].factors) == 1
    if whole and axis.is_fixed:
        yield "."
        return
    for number, segment in enumerate(axis.segments):
        is_product = len(segment.factors) > 1
        yield from ["+"] * (number > 0) + ["("] * is_product
        for index, factor in enumerate(segment.factors):
            yield from [" "] * (index > 0)
            if isinstance(factor, Axis):
                yield from ("(", *pieces_of(factor), ")")
            elif isinstance(factor, Units):
                yield factor
            else:
                yield "." if factor.size is None else str(factor.size)
        yield from [")"] * is_product
