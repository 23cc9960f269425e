"""The report of one solution: what an alignment did, with pictures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from alignkit.graph import Pair
from alignkit.graph.proof.verify import Verification
from alignkit.plotting.pictures import bar_chart, plot_alignment
from alignkit.reports.document import Part, Picture, Report, Section, Table, Text
from alignkit.reports.sections import (
    Lines,
    facts_section,
    function_section,
    lines_section,
    number,
    side_by_side_section,
    uncovered_section,
)

if TYPE_CHECKING:
    from alignkit.solver.solution import Solution

BARS = 16
"""Maximum number of groups in the picture of gains: more cannot be read. The table has them all."""
MATRICES = 3
"""Number of groups that are drawn as matrices: those that gained most."""


def report_solution(
    solution: Solution,
    title: str,
    *,
    pair: Pair | None,
    check: Verification | None,
    lines: Lines | None,
    facts: Mapping[str, str],
) -> Report:
    """Say what an alignment did. See `alignkit.Solution.report`."""
    summary = {
        **facts,
        "solver": solution.solver,
        "options": ", ".join(f"{key}={value}" for key, value in solution.options.items()) or "none",
        "ended": " ".join((solution.status.value, solution.detail)).strip(),
        "seconds of the solver": f"{solution.seconds:.3g}",
    }
    before, after = solution.objective_before, solution.objective_after
    sections = [facts_section(summary), side_by_side_section(before, after, lines, "squared distance of A and B")]
    if lines is not None:
        sections.append(lines_section(lines))
    ranked = sorted(solution.graph.groups, key=lambda name: -solution.gain[name])
    sections.append(_gains(solution, ranked))
    if pair is not None and ranked:
        sections.append(_units(solution, pair, ranked))
    return Report(title, (*sections, function_section(check), uncovered_section(solution.graph)))


def _gains(solution: Solution, ranked: list[str]) -> Section:
    groups = solution.graph.groups
    if not groups:
        return Section("Groups", (Text("The graph has no groups: no unit may change its place."),))
    total = solution.objective_before - solution.objective_after
    rows = tuple(
        (
            name,
            str(solution.graph.unit_count(name)),
            f"{solution.moved[name]}",
            number(solution.gain[name]),
            f"{100 * solution.gain[name] / total:.1f}%" if total > 0 else "-",
        )
        for name in groups
    )
    parts: list[Part] = []
    if any(solution.gain.values()):
        more = f" The {BARS} largest of {len(groups)}." if len(groups) > BARS else ""
        figure = bar_chart({name: solution.gain[name] for name in ranked[:BARS]}, "gain")
        parts.append(Picture.of(figure, "gain", f"Gain of each group.{more}"))
    if not any(solution.moved.values()):
        parts.append(Text(next(line for line in solution.explain().splitlines() if line.startswith("Nothing moved"))))
    parts.append(Table(("group", "units", "moved", "gain", "share of the gain"), rows))
    return Section("Groups: gain and units moved", tuple(parts))


def _units(solution: Solution, pair: Pair, ranked: list[str]) -> Section:
    strips = plot_alignment(pair, solution.alignment)
    matrices = plot_alignment(pair, solution.alignment, groups=ranked[:MATRICES])
    about_strips = (
        "Every group is a strip: how alike the units of A and B at the same place are, least alike on the left."
    )
    about_matrices = (
        "Units of A (rows) against units of B (columns) in the groups that gained most: in B's own order, and in the "
        "order of the alignment, where partners stand on the diagonal."
    )
    return Section(
        "Units before and after",
        (
            Text(about_strips),
            Picture.of(strips, "units", "Similarity of units before and after alignment, and units moved."),
            Text(about_matrices),
            Picture.of(matrices, "matrices", "Similarity of all units of A and B before and after alignment."),
        ),
    )
