"""A report as Markdown."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import quote

from alignkit.reports.html import is_number

if TYPE_CHECKING:
    from alignkit.reports.document import Block, Report

SPECIAL = "\\`*_{}[]<>|#"
"""Characters that Markdown or a table in it would take for its own."""


def to_markdown(report: Report, pictures: str) -> str:
    """The whole text; pictures are shown from the folder ``pictures``, named relative to the file."""
    parts = [f"# {_plain(report.title)}"]
    for section in report.sections:
        parts.append(f"## {_plain(section.title)}")
        parts.extend(_block(block, pictures) for block in section.blocks)
    return "\n\n".join(parts) + "\n"


def _block(block: Block, pictures: str) -> str:
    from alignkit.reports.document import Picture, Text

    if isinstance(block, Picture):
        folder = f"{quote(pictures)}/" if pictures else ""
        return f"![{_plain(block.description)}]({folder}{block.name}.png)"
    if isinstance(block, Text):
        return "\n".join(f"    {line}" for line in block.text.splitlines()) if block.verbatim else _plain(block.text)
    numbers = [all(is_number(row[at]) for row in block.rows) for at in range(len(block.header))]
    rows = [block.header, tuple("---:" if number else "---" for number in numbers), *block.rows]
    return "\n".join("| " + " | ".join(c if at == 1 else _plain(c) for c in row) + " |" for at, row in enumerate(rows))


def _plain(text: str) -> str:
    """Text that reads as it is, on one line."""
    return "".join(f"\\{c}" if c in SPECIAL else c for c in " ".join(text.split()))
