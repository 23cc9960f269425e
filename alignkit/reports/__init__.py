"""Reports of jobs: one HTML page with its pictures inside, or Markdown with its pictures beside it.

Every result of a job builds its own with ``result.report()``. This room holds what a report is, the sections that
several of them share, and the writing of files.
"""

from alignkit.reports.document import Facts, Names, Picture, Report, Section, Table, Text
from alignkit.reports.losses import Lines, Losses, MergeLosses
from alignkit.reports.sections import Check
from alignkit.reports.write import html, is_report_path, markdown, pictures_folder, write_report

__all__ = [
    "Check",
    "Facts",
    "Lines",
    "Losses",
    "MergeLosses",
    "Names",
    "Picture",
    "Report",
    "Section",
    "Table",
    "Text",
    "html",
    "is_report_path",
    "markdown",
    "pictures_folder",
    "write_report",
]
