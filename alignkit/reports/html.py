"""A report as one HTML page."""

from __future__ import annotations

import base64
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from alignkit.reports.document import Block, Report, Section

STYLE = """
body { max-width: 60rem; margin: 2rem auto; padding: 0 1rem; font: 16px/1.5 system-ui, sans-serif; color: #222;
  background: #fff; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2rem; border-bottom: 1px solid #ddd; }
div.table { overflow-x: auto; }
table { border-collapse: collapse; font-size: 0.9rem; }
th, td { padding: 0.2rem 0.9rem 0.2rem 0; text-align: left; vertical-align: top; border-bottom: 1px solid #eee; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
img { max-width: 100%; height: auto; }
pre { background: #f6f6f8; padding: 0.6rem; overflow-x: auto; font-size: 0.85rem; }
"""


def to_html(report: Report) -> str:
    """The whole page. Names from files and models are escaped; there are no scripts and no links to other files."""
    title = escape(report.title)
    body = "\n".join(_section(section) for section in report.sections)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<h1>{title}</h1>\n{body}\n</body>\n</html>\n"
    )


def _section(section: Section) -> str:
    return f"<h2>{escape(section.title)}</h2>\n" + "\n".join(_block(block) for block in section.blocks)


def _block(block: Block) -> str:
    from alignkit.reports.document import Picture, Text

    if isinstance(block, Picture):
        data = base64.b64encode(block.png).decode("ascii")
        return f'<p><img alt="{escape(block.description)}" src="data:image/png;base64,{data}"></p>'
    if isinstance(block, Text):
        return f"<pre>{escape(block.text)}</pre>" if block.verbatim else f"<p>{escape(block.text)}</p>"
    numbers = [all(is_number(row[at]) for row in block.rows) for at in range(len(block.header))]
    rows = [_row("th", block.header, numbers), *(_row("td", row, numbers) for row in block.rows)]
    return '<div class="table"><table>\n' + "\n".join(rows) + "\n</table></div>"


def _row(tag: str, cells: tuple[str, ...], numbers: list[bool]) -> str:
    kinds = (' class="number"' if number else "" for number in numbers)
    return "<tr>" + "".join(f"<{tag}{k}>{escape(c)}</{tag}>" for k, c in zip(kinds, cells, strict=True)) + "</tr>"


def is_number(text: str) -> bool:
    """Whether a cell is a number, perhaps with a unit of percent, or the dash of a missing one."""
    try:
        float(text.removesuffix("%").strip().replace(",", ""))
    except ValueError:
        return text in ("", "-")
    return True
