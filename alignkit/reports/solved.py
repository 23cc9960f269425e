"""The report of one solution, and the sections that reports share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from alignkit.plotting.pictures import bar_chart, plot_alignment, plot_interpolations
from alignkit.reports.document import Block, Picture, Report, Section, Table, Text

if TYPE_CHECKING:
    from alignkit.graph import Pair
    from alignkit.graph.proof.verify import Verification
    from alignkit.solver.solution import Solution
    from alignkit.tasks.interpolation import Interpolation

BARS = 16
"""Most groups in the picture of gains; the table has them all."""
MATRICES = 3
"""Groups that are drawn as matrices: those that gained most."""


@dataclass(frozen=True)
class Lines:
    """A task on the line between two networks, as they were given and aligned.

    Attributes:
        identity: From A to B as it was given.
        aligned: From A to aligned B.
    """

    identity: Interpolation
    aligned: Interpolation


def solution_report(
    solution: Solution,
    title: str,
    *,
    pair: Pair | None = None,
    check: Verification | None = None,
    lines: Lines | None = None,
    facts: Mapping[str, str] | None = None,
) -> Report:
    """Say what an alignment did, with pictures.

    Args:
        solution: What `alignkit.solve` returned.
        title: Heading of the report.
        pair: The two networks, for heat maps of their units; None leaves these out.
        check: The function check, if there was one.
        lines: Losses between the networks, if there is a task.
        facts: What else belongs to the summary: files, options, seconds.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    summary = {
        **(facts or {}),
        "solver": solution.solver,
        "options": ", ".join(f"{key}={value}" for key, value in solution.options.items()) or "none",
        "ended": " ".join((solution.status.value, solution.detail)).strip(),
        "seconds of the solver": f"{solution.seconds:.3g}",
    }
    sections = [facts_section("Summary", summary), side_by_side(solution, lines)]
    if lines is not None:
        sections.append(_curves(lines))
    sections.append(_gains(solution))
    if pair is not None and solution.graph.groups:
        sections.append(_units(solution, pair))
    sections += [function_section(check), uncovered_section(solution.uncovered, len(solution.graph.tensors))]
    return Report(title, tuple(sections))


# ---------------------------------------------------------------------- sections


def facts_section(title: str, facts: Mapping[str, str]) -> Section:
    """Names and what there is to say about them, as a table of two columns."""
    return Section(title, (Table(("", ""), tuple(facts.items())),))


def side_by_side(solution: Solution, lines: Lines | None) -> Section:
    """No alignment beside the alignment: the distance, and the task where there is one."""
    before, after = solution.objective_before, solution.objective_after
    rows: list[tuple[str, ...]] = [("squared distance of A and B", number(before), number(after))]
    if lines is not None:
        both = (lines.identity, lines.aligned)
        rows += [
            ("loss of A", *(number(line.losses[0]) for line in both)),
            ("loss of B", *(number(line.losses[-1]) for line in both)),
            ("loss of the average", *(number(line.midpoint.loss) for line in both)),
            ("loss barrier", *(number(line.barrier) for line in both)),
        ]
        if lines.identity.metrics is not None:
            name = lines.identity.metric_name or "metric"
            rows.append((f"{name} of the average", *(number(line.midpoint.metric) for line in both)))
    said = Text(_verdict(before, after, lines))
    return Section("No alignment beside the alignment", (Table(("", "identity", "aligned"), tuple(rows)), said))


def _verdict(before: float, after: float, lines: Lines | None) -> str:
    share = f"{100 * (before - after) / before:.1f} %" if before else "nothing"
    said = f"Alignment took away {share} of the squared distance."
    if lines is None:
        return said + " No task was given, so nothing is known about the loss of the average."
    old, new = lines.identity.midpoint.loss, lines.aligned.midpoint.loss
    ends = max(lines.aligned.losses[0], lines.aligned.losses[-1])
    if new >= old:
        return said + " The average is not better for it: without alignment its loss is as low or lower."
    if new > ends:
        return said + " The average is better for it, but still worse than each of the two networks."
    return said + " The average is better for it, and as good as the worse of the two networks or better."


def _curves(lines: Lines) -> Section:
    figure = plot_interpolations([lines.identity, lines.aligned])
    said = "Loss on the line from A to B as it was given, and from A to aligned B."
    return Section("On the line between the networks", (Picture.of(figure, "line", said),))


def _gains(solution: Solution) -> Section:
    groups = solution.graph.groups
    if not groups:
        return Section("Groups", (Text("The graph has no groups: no unit may change its place."),))
    ranked = sorted(groups, key=lambda name: -solution.gain[name])
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
    blocks: list[Block] = []
    if any(solution.gain.values()):
        shown = {name: solution.gain[name] for name in ranked[:BARS]}
        figure = bar_chart(shown, "gain")
        more = f" The {BARS} largest of {len(groups)}." if len(groups) > BARS else ""
        blocks.append(Picture.of(figure, "gain", f"Gain of each group.{more}"))
    if not any(solution.moved.values()):
        blocks.append(Text(next(line for line in solution.explain().splitlines() if line.startswith("Nothing moved"))))
    blocks.append(Table(("group", "units", "moved", "gain", "share of the gain"), rows))
    return Section("Groups: gain and units moved", tuple(blocks))


def _units(solution: Solution, pair: Pair) -> Section:
    strips = plot_alignment(pair, solution.alignment)
    ranked = sorted(solution.graph.groups, key=lambda name: -solution.gain[name])[:MATRICES]
    matrices = plot_alignment(pair, solution.alignment, groups=ranked)
    return Section(
        "Units before and after",
        (
            Text(
                "Every group is a strip: how alike the units of A and B at the same place are, least alike on the left."
            ),
            Picture.of(strips, "units", "Similarity of units before and after alignment, and units moved."),
            Text(
                "Units of A (rows) against units of B (columns) in the groups that gained most: in B's own order, and "
                "in the order of the alignment, where partners stand on the diagonal."
            ),
            Picture.of(matrices, "matrices", "Similarity of all units of A and B before and after alignment."),
        ),
    )


def function_section(check: Verification | None) -> Section:
    """What reordering units does to the outputs of the network."""
    if check is None:
        said = "Not done: it needs the network itself, not only the layouts of its tensors."
    else:
        said = (
            f"Passed: {check.draws} random reorderings of all groups change the outputs by at most {check.error:.1g} "
            f"of their size (tolerance {check.tolerance:.0e}, {check.dtype})."
        )
    return Section("Function check", (Text(said),))


def uncovered_section(uncovered: Mapping[str, str], tensors: int) -> Section:
    """Tensors that no group moves, with the reasons."""
    if not uncovered:
        return Section("Tensors not covered", (Text(f"None: each of the {tensors} tensors is moved by some group."),))
    return Section(
        "Tensors not covered",
        (
            Text(f"{len(uncovered)} of {tensors} tensors stay as they are."),
            Table(("tensor", "why"), tuple(uncovered.items())),
        ),
    )


def number(value: float | None) -> str:
    """A number with five digits, or a dash."""
    return "-" if value is None else f"{value:.5g}"
