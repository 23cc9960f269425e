"""YAML as people write it by hand: plain values and where they stand. No tags, no anchors, no name twice."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, NoReturn, TypeAlias

import yaml

from alignkit.errors import UsageError
from alignkit.text import first_line, show_value

MAX_YAML = 1_000_000
"""Bytes of a text; a merge that is written by hand has hundreds."""
Steps: TypeAlias = tuple[str | int, ...]
"""The way to a value: names of fields, and places in lists."""
_AS_WRITTEN = {f"tag:yaml.org,2002:{kind}" for kind in ("timestamp", "merge", "value")}
"""What YAML takes for dates and the like, and people mean as texts: ``2024-05-01``, ``<<``."""

_POWER = re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+")


@dataclass
class YamlText:
    """The values of a text, and the line of each.

    Attributes:
        source: What messages call the text, such as its path.
        values: Mappings, lists, texts, numbers, truth values and None.
        lines: Line of each value, counted from 1, by the way to it.
    """

    source: str
    values: Any = None
    lines: dict[Steps, int] = field(default_factory=dict)

    @classmethod
    def read(cls, text: str, source: object) -> YamlText:
        """Read a text.

        Raises:
            UsageError: It is not YAML, holds several documents or none, a tag, an anchor or a name that comes twice.
        """
        read = cls(str(source))
        try:
            events = list(yaml.parse(text, Loader=yaml.SafeLoader))
            for event in events:
                read._refuse_references(event)
            node = yaml.compose(text, Loader=yaml.SafeLoader)
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            read._refuse(mark.line + 1 if mark else None, f"this is not YAML: {error.problem}")
        except (yaml.YAMLError, ValueError) as error:
            read._refuse(None, f"this is not YAML: {first_line(error)}")
        except RecursionError:
            read._refuse(None, "it is nested too deeply")
        if node is None:
            read._refuse(None, "it is empty")
        read.values = read._value(node, ())
        return read

    def line_of(self, steps: Steps) -> int | None:
        """Return the line of a value, or that of what holds it; None where nothing is known."""
        while steps and steps not in self.lines:
            steps = steps[:-1]
        return self.lines.get(steps)

    def _refuse_references(self, event: yaml.Event) -> None:
        line = event.start_mark.line + 1
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            self._refuse(line, f"write the value again in place of the anchor {event.anchor!r}")
        if tag := getattr(event, "tag", None):
            self._refuse(line, f"the tag {tag!r} is not read: write plain values")

    def _value(self, node: yaml.Node, steps: Steps) -> Any:
        """Return the values below a node."""
        self.lines.setdefault(steps, node.start_mark.line + 1)
        if isinstance(node, yaml.SequenceNode):
            return [self._value(part, (*steps, at)) for at, part in enumerate(node.value)]
        if isinstance(node, yaml.MappingNode):
            table: dict[str, Any] = {}
            for key, value in node.value:
                line = key.start_mark.line + 1
                if not isinstance(key, yaml.ScalarNode):
                    self._refuse(line, "the name of an entry has to be a text")
                name = str(key.value)
                if name in table:
                    self._refuse(line, f"{name!r} comes twice, first in line {self.lines[(*steps, name)]}")
                self.lines[(*steps, name)] = line
                table[name] = self._value(value, (*steps, name))
            return table
        if node.tag in _AS_WRITTEN:
            return node.value
        if node.style is None and _POWER.fullmatch(node.value):  # a text for YAML 1.1, a number for everybody else
            return float(node.value)
        try:
            return yaml.SafeLoader("").construct_object(node)
        except (yaml.YAMLError, ValueError, OverflowError):
            self._refuse(node.start_mark.line + 1, f"{show_value(node.value)} cannot be read as a value")

    def _refuse(self, line: int | None, problem: str) -> NoReturn:
        raise UsageError(f"{self.place(line)}: {problem}.")

    def place(self, line: int | None) -> str:
        """Name a line of the text."""
        return self.source if line is None else f"{self.source}, line {line}"
