"""Reports as files: Markdown with its pictures beside it, or one HTML page with its pictures inside.

The page is the Markdown, rendered by markdown-it-py, so there is one text of every report.
"""

from __future__ import annotations

import base64
import re
from html import escape
from pathlib import Path
from urllib.parse import quote, unquote

from markdown_it import MarkdownIt

from alignkit.arguments import check_arguments
from alignkit.checkpoints.file_set import written_together
from alignkit.checkpoints.staging import prepare_output, staged, write_text
from alignkit.errors import ReportError
from alignkit.reports.document import Part, Picture, Report, Text

HTML_SUFFIXES, MARKDOWN_SUFFIXES = (".html", ".htm"), (".md",)
SPECIAL = "\\`*_{}[]<>|#&"
"""Characters that Markdown, or a table in it, would take for its own."""
PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
body {{ max-width: 60rem; margin: 2rem auto; padding: 0 1rem; font: 16px/1.5 system-ui, sans-serif; color: #222;
  background: #fff; }}
h1 {{ font-size: 1.6rem; }} h2 {{ font-size: 1.2rem; margin-top: 2rem; border-bottom: 1px solid #ddd; }}
table {{ display: block; overflow-x: auto; border-collapse: collapse; font-size: 0.9rem; }}
th, td {{ padding: 0.2rem 0.9rem 0.2rem 0; text-align: left; vertical-align: top; border-bottom: 1px solid #eee; }}
[style="text-align:right"] {{ font-variant-numeric: tabular-nums; white-space: nowrap; }}
img {{ max-width: 100%; height: auto; }}
pre {{ background: #f6f6f8; padding: 0.6rem; overflow-x: auto; font-size: 0.85rem; }}
</style>
</head>
<body>
{body}</body>
</html>
"""


@check_arguments
def markdown(report: Report, pictures: str = "") -> str:
    """Return the whole text. Pictures are shown from the folder ``pictures``, named relative to the file."""
    parts = [f"# {_plain(report.title)}"]
    for section in report.sections:
        parts.append(f"## {_plain(section.title)}")
        parts += [_part(part, pictures) for part in section.parts]
    return "\n\n".join(parts) + "\n"


@check_arguments
def html(report: Report) -> str:
    """Return one page that needs no other file. It has no scripts and no links, and names in it are escaped."""
    body = MarkdownIt("commonmark", {"html": False, "xhtmlOut": False}).enable("table").render(markdown(report))
    for picture in report.pictures:
        data = base64.b64encode(picture.png).decode("ascii")
        body = body.replace(f'src="{quote(picture.name)}.png"', f'src="data:image/png;base64,{data}"')
    return PAGE.format(title=escape(report.title), body=body)


@check_arguments
def write_report(report: Report, path: str | Path) -> None:
    """Write a report: ``.html`` is one file, ``.md`` has its pictures in the folder `pictures_folder`.

    All files appear, or none. A folder of pictures is replaced if it holds only pictures that are written anew or that
    the report which is replaced shows.

    Raises:
        ReportError: The suffix is not that of a report.
        WeightsError: The folder does not exist or cannot be written to, or another file would be lost.
    """
    path = prepare_output(Path(path))
    if not is_report_path(path):
        raise ReportError(f"{path}: end the name of a report in {' or '.join(HTML_SUFFIXES + MARKDOWN_SUFFIXES)}.")
    if path.suffix in HTML_SUFFIXES:
        write_text(path, html(report))
        return
    folder = pictures_folder(path)
    with written_together():
        if pictures := {Path(f"{picture.name}.png"): picture.png for picture in report.pictures}:
            replaces = {*pictures, *pictures_shown(path)}
            with staged(folder, folder=True, replaces=replaces) as temporary:
                for name, png in pictures.items():
                    (temporary / name).write_bytes(png)
        write_text(path, markdown(report, folder.name))


@check_arguments
def is_report_path(path: Path) -> bool:
    """Tell whether a file name is that of a report."""
    return path.suffix in HTML_SUFFIXES + MARKDOWN_SUFFIXES


@check_arguments
def pictures_folder(path: Path) -> Path:
    """Return the folder of the pictures of a Markdown report: ``merge.md`` has them in ``merge_files``."""
    return path.with_name(f"{path.stem}_files")


def pictures_shown(path: Path) -> set[Path]:
    """Return the files in its folder of pictures that a Markdown report shows; none where there is no report."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return set()
    shown = re.findall(re.escape(f"]({quote(pictures_folder(path).name)}/") + r"([^()/]+\.png)\)", text)
    return {Path(unquote(name)) for name in shown}


def _part(part: Part, pictures: str) -> str:
    if isinstance(part, Picture):
        folder = f"{quote(pictures)}/" if pictures else ""
        return f"![{_plain(part.description)}]({folder}{quote(part.name)}.png)"
    if isinstance(part, Text):
        return "\n".join(f"    {line}" for line in part.text.splitlines()) if part.verbatim else _plain(part.text)
    right = [all(_is_number(row[column]) for row in part.rows) for column in range(len(part.header))]
    ruler = "| " + " | ".join("---:" if number else "---" for number in right) + " |"
    header, *rows = ("| " + " | ".join(map(_plain, row)) + " |" for row in (part.header, *part.rows))
    return "\n".join((header, ruler, *rows))


def _plain(text: str) -> str:
    """Return text that reads as it is, on one line."""
    return "".join(f"\\{c}" if c in SPECIAL else c for c in " ".join(text.split()))


def _is_number(text: str) -> bool:
    """Tell whether a cell is a number, perhaps with a percent sign, or the dash of a missing one."""
    try:
        float(text.removesuffix("%").strip().replace(",", ""))
    except ValueError:
        return text in ("", "-")
    return True
