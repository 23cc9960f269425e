"""What the commands say of networks that were folded before their job."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import alignkit
from alignkit.text import list_some

if TYPE_CHECKING:
    from alignkit.jobs import NetworkFiles
    from alignkit.reports import Section

LISTED = 4
"""Maximum number of networks that the text names."""


def fold_lines(files: NetworkFiles) -> list[str]:
    """Say of each network what folding it did, and once what is the same for all."""
    networks = list(zip(files.paths, files.folded, strict=True))
    lines = [f"Folded {path}: {folded.summary}" for path, folded in networks[:LISTED]]
    if len(networks) > LISTED:
        lines.append(f"Folded as well: {list_some([str(path) for path, _ in networks[LISTED:]])}.")
    return lines + (networks[0][1].remarks if networks else [])


def fold_facts(files: NetworkFiles) -> dict[str, Any]:
    """Return the same as plain values; nothing where networks were not folded."""
    networks = zip(files.paths, files.folded, strict=False)
    folded = {str(path): folded.facts() for path, folded in networks}
    return {"folded": folded} if folded else {}


def fold_sections(files: NetworkFiles) -> tuple[Section, ...]:
    """Return the same as sections of a report; the folds themselves are those of the first network."""
    if not files.folded:
        return ()
    reports = alignkit.reports
    rows = tuple((str(path), folded.summary) for path, folded in zip(files.paths, files.folded, strict=True))
    table = reports.Table(("network", "what was done"), rows)
    first = files.folded[0].report().sections
    return (
        reports.Section("Networks were folded first", (table, *map(reports.Text, files.folded[0].remarks))),
        *(section for section in first if section.title in ("Folds", "Balanced spaces")),
    )
