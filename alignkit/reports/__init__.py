"""Reports of jobs: one HTML page with its pictures inside, or Markdown with its pictures beside it."""

from __future__ import annotations

from alignkit.reports.document import Picture, Report, Section, Table, Text, is_report_path, pictures_folder
from alignkit.reports.jobs import canonical_report, check_report, comparison_report, distance_report, many_report
from alignkit.reports.solved import Lines, solution_report

__all__ = [
    "Lines",
    "Picture",
    "Report",
    "Section",
    "Table",
    "Text",
    "canonical_report",
    "check_report",
    "comparison_report",
    "distance_report",
    "is_report_path",
    "many_report",
    "pictures_folder",
    "solution_report",
]
