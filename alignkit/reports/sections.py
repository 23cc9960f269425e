"""Sections that the reports of several jobs share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

from alignkit.graph import GraphStructure
from alignkit.graph.description import why_fixed
from alignkit.graph.proof.verify import Verification
from alignkit.plotting.pictures import plot_interpolations
from alignkit.reports.document import Picture, Section, Table, Text
from alignkit.reports.losses import Lines, MergeLosses
from alignkit.text import plural

Check: TypeAlias = Verification | None
"""The function check of a report, if there was one."""


def facts_section(facts: Mapping[str, str]) -> Section:
    """Show names and what there is to say about them as a table of two columns."""
    return Section("Summary", (Table(("", ""), tuple(facts.items())),))


def side_by_side_section(before: float, after: float, losses: MergeLosses | None, what: str) -> Section:
    """Show no alignment beside the alignment: the distance, and the task where there is one.

    Args:
        before: Squared distance of the networks as they were given.
        after: Squared distance of the aligned networks.
        losses: Losses of the networks and of their averages, if there is a task.
        what: Whose distance it is: ``"squared distance of A and B"``.
    """
    rows: list[tuple[str, ...]] = [(what, number(before), number(after))]
    share = f"{100 * (before - after) / before:.1f} %" if before else "nothing"
    verdict = f"Alignment took away {share} of the squared distance."
    if losses is None:
        verdict += " No task was given, so nothing is known about the loss of the average."
    else:
        for name, averages in losses.averages.measures.items():
            rows += [(f"{name} of {of}", *[number(value)] * 2) for of, value in losses.parents.measures[name].items()]
            rows.append((f"{name} of the average", *map(number, averages.values())))
        if losses.lines is not None:
            both = (losses.lines.identity, losses.lines.aligned)
            rows.append(("loss barrier", *(number(line.barrier) for line in both)))
        plain, middle = losses.averages.measures["loss"].values()
        two = len(losses.parents.results) == 2
        each, worst = ("each of the two", "worse of the two") if two else ("each of the", "worst of the")
        if middle >= plain:
            verdict += " The average is not better for it: without alignment its loss is as low or lower."
        elif middle > max(losses.parents.measures["loss"].values()):
            verdict += f" The average is better for it, but still worse than {each} networks."
        else:
            verdict += f" The average is better for it, and as good as the {worst} networks or better."
    table = Table(("", "identity", "aligned"), tuple(rows))
    return Section("No alignment beside the alignment", (table, Text(verdict)))


def lines_section(lines: Lines) -> Section:
    """Draw the task on the line between two networks."""
    figure = plot_interpolations([lines.identity, lines.aligned])
    description = "Loss on the line from A to B as it was given, and from A to aligned B."
    return Section("On the line between the networks", (Picture.of(figure, "line", description),))


def function_section(check: Check) -> Section:
    """Say what reordering units does to the outputs of the network."""
    not_done = "Not done: it runs the network, which a spec or a limit of memory does not allow."
    return Section("Function check", (Text(not_done if check is None else f"Passed: {check.explain()}"),))


def uncovered_section(graph: GraphStructure) -> Section:
    """List the tensors that no group moves, with the reasons."""
    title, count = "Tensors not covered", len(graph.tensors)
    uncovered = tuple((name, why_fixed(graph, name)) for name in graph.uncovered)
    if not uncovered:
        return Section(title, (Text(f"None: each of the {plural(count, 'tensor')} is moved by some group."),))
    text = Text(f"{len(uncovered)} of {plural(count, 'tensor')} stay as they are.")
    return Section(title, (text, Table(("tensor", "why"), uncovered)))


def number(value: float | None) -> str:
    """Write a number with five digits, or a dash for a missing one."""
    return "-" if value is None else f"{value:.5g}"
