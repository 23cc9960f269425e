"""Sections that the reports of several jobs share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

from alignkit.graph import GraphStructure
from alignkit.graph.description import why_fixed
from alignkit.graph.proof.verify import Verification
from alignkit.plotting.pictures import plot_interpolations
from alignkit.reports.document import Picture, Section, Table, Text
from alignkit.tasks.interpolation import Interpolation
from alignkit.text import plural

Check: TypeAlias = Verification | None
"""The function check of a report, if there was one."""


@dataclass(frozen=True)
class Lines:
    """A task on the line between two networks, as they were given and aligned.

    Attributes:
        identity: From A to B as it was given.
        aligned: From A to aligned B.
    """

    identity: Interpolation
    aligned: Interpolation

    def explain(self) -> str:
        """Say the losses in two sentences."""
        before, after = self.identity, self.aligned
        return (
            f"Loss: A {before.losses[0]:.4f}, B {before.losses[-1]:.4f}; their average {before.midpoint.loss:.4f} "
            f"unaligned, {after.midpoint.loss:.4f} aligned. Barrier: {before.barrier:.4f} unaligned, "
            f"{after.barrier:.4f} aligned."
        )

    def facts(self) -> dict[str, float]:
        """Return the losses by name."""
        before, after = self.identity, self.aligned
        return {
            "loss_a": before.losses[0],
            "loss_b": before.losses[-1],
            "loss_average_unaligned": before.midpoint.loss,
            "loss_average_aligned": after.midpoint.loss,
            "barrier_unaligned": before.barrier,
            "barrier_aligned": after.barrier,
        }


def facts_section(facts: Mapping[str, str]) -> Section:
    """Show names and what there is to say about them as a table of two columns."""
    return Section("Summary", (Table(("", ""), tuple(facts.items())),))


def side_by_side_section(before: float, after: float, lines: Lines | None, what: str) -> Section:
    """Show no alignment beside the alignment: the distance, and the task where there is one.

    Args:
        before: Squared distance of the networks as they were given.
        after: Squared distance of the aligned networks.
        lines: Losses between two networks, if there is a task.
        what: Whose distance it is: ``"squared distance of A and B"``.
    """
    rows: list[tuple[str, ...]] = [(what, number(before), number(after))]
    share = f"{100 * (before - after) / before:.1f} %" if before else "nothing"
    verdict = f"Alignment took away {share} of the squared distance."
    if lines is None:
        verdict += " No task was given, so nothing is known about the loss of the average."
    else:
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
        middle, ends = lines.aligned.midpoint.loss, max(lines.aligned.losses[0], lines.aligned.losses[-1])
        if middle >= lines.identity.midpoint.loss:
            verdict += " The average is not better for it: without alignment its loss is as low or lower."
        elif middle > ends:
            verdict += " The average is better for it, but still worse than each of the two networks."
        else:
            verdict += " The average is better for it, and as good as the worse of the two networks or better."
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
