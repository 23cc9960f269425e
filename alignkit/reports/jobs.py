"""Reports of jobs that are more, or less, than one solution."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from alignkit.plotting.pictures import bar_chart
from alignkit.reports.document import Block, Picture, Report, Section, Table, Text
from alignkit.reports.solved import facts_section, function_section, number, solution_report, uncovered_section

if TYPE_CHECKING:
    from alignkit.graph import GraphStructure, Pair, SymmetryGraph
    from alignkit.graph.proof.verify import Verification
    from alignkit.jobs.align_many import ManyAlignment
    from alignkit.jobs.canonicalize import Canonical
    from alignkit.jobs.compare.comparison import Comparison
    from alignkit.jobs.distance import Distance

ROWS = 200
"""Longest table of networks; of more only the first are listed."""


def check_report(
    graph: SymmetryGraph, proofs: Mapping[str, Verification], title: str, facts: Mapping[str, str] | None = None
) -> Report:
    """What `alignkit check` found.

    Args:
        graph: The graph that was proved.
        proofs: What was measured, by the kind of weights.
        title: Heading.
        facts: What else belongs to the summary.
    """
    rows = tuple((kind, f"{p.error:.2g}", f"{p.tolerance:.0e}", p.dtype, str(p.draws)) for kind, p in proofs.items())
    header = ("weights", "largest change", "tolerance", "run in", "symmetries tried")
    passed = Text("Passed: random symmetries leave the outputs of the network as they are.")
    found = {
        name: (str(graph.unit_count(name)), group.parent or "-", str(len(graph.tensors_of(name))))
        for name, group in graph.groups.items()
    }
    groups = Table(("group", "units", "nested in", "tensors"), tuple((name, *row) for name, row in found.items()))
    return Report(
        title,
        (
            facts_section("Summary", {**(facts or {}), "symmetries": f"10^{graph.log10_order:.1f}"}),
            Section("Function check", (passed, Table(header, rows))),
            Section("Groups", (groups,)),
            uncovered_section(_uncovered(graph), len(graph.tensors)),
        ),
    )


def comparison_report(comparison: Comparison, title: str, facts: Mapping[str, str] | None = None) -> Report:
    """A comparison of solvers as table and picture.

    Raises:
        MissingExtraError: matplotlib is not installed.
        ComparisonError: Every solver failed.
    """
    picture = Picture.of(
        comparison.plot(), "comparison", "Solvers on the line from A to aligned B, or their distances."
    )
    blocks: list[Block] = [picture, _comparison_table(comparison), *(Text(said) for said in comparison.problems())]
    blocks.append(Text(comparison.measured))
    return Report(title, (facts_section("Summary", facts or {}), Section("Solvers", tuple(blocks))))


def distance_report(
    distance: Distance, title: str, *, pair: Pair | None = None, facts: Mapping[str, str] | None = None
) -> Report:
    """How far two networks are apart, with the tensors in which they differ.

    Args:
        distance: What was measured.
        title: Heading.
        pair: The two networks, for heat maps.
        facts: What else belongs to the summary.
    """
    verdict = "the same up to permutation" if distance.same else f"not the same, most in {distance.differs}"
    own = {**(facts or {}), "the networks are": verdict, "tolerance": f"{distance.tolerance:g}"}
    tensors = Table(
        ("tensor", "squared distance before", "after", "largest relative difference"),
        tuple((n, number(t.before), number(t.after), number(t.largest)) for n, t in distance.tensors.items()),
    )
    report = solution_report(distance.solution, title, pair=pair, facts=own)
    kept = tuple(section for section in report.sections if section.title != "Function check")
    return Report(title, (*kept, Section("Tensors", (tensors,))))


def many_report(
    many: ManyAlignment,
    names: Sequence[str],
    title: str,
    *,
    check: Verification | None = None,
    facts: Mapping[str, str] | None = None,
) -> Report:
    """Several networks in one order of units.

    Args:
        many: What `alignkit.align_many` returned.
        names: What the networks are called.
        title: Heading.
        check: The function check, if there was one.
        facts: What else belongs to the summary.
    """
    before, after = many.spread_before, many.spread_after
    summary = {
        **(facts or {}),
        "method": many.method,
        "solver": many.solver,
        "reference": names[many.reference],
        "sweeps": str(len(many.history)),
        "seconds": f"{many.seconds:.3g}",
    }
    moved = {name: sum(a.moved().values()) for name, a in zip(names, many.alignments, strict=True)}
    groups = tuple(
        (group, *(str(a.moved()[group]) for a in many.alignments)) for group in list(many.graph.groups)[:ROWS]
    )
    return Report(
        title,
        (
            facts_section("Summary", summary),
            Section(
                "No alignment beside the alignment",
                (
                    Table(
                        ("", "identity", "aligned"),
                        (("mean squared distance of a pair", number(before), number(after)),),
                    ),
                ),
            ),
            Section(
                "Units moved",
                (
                    Picture.of(bar_chart(moved, "units moved"), "moved", "Units of each network that change place."),
                    Table(("group", *names), groups),
                ),
            ),
            function_section(check),
            uncovered_section(_uncovered(many.graph), len(many.graph.tensors)),
        ),
    )


def canonical_report(
    found: Canonical, names: Sequence[str], title: str, facts: Mapping[str, str] | None = None
) -> Report:
    """Many networks brought to the order of one reference.

    Args:
        found: What `alignkit.canonicalize` returned.
        names: What the networks are called.
        title: Heading.
        facts: What else belongs to the summary.
    """
    rows = [
        (name, number(before), number(after))
        for name, before, after in zip(names, found.before.tolist(), found.after.tolist(), strict=True)
    ]
    summary = {
        **(facts or {}),
        "networks": str(len(found)),
        "seconds": f"{found.seconds:.3g}",
        "networks a second": f"{found.networks_per_second:.3g}",
    }
    means = {"as given": float(found.before.mean()), "in the order of the reference": float(found.after.mean())}
    blocks: list[Block] = [
        Picture.of(
            bar_chart(means, "mean squared distance to the reference"), "distances", "Distances to the reference."
        ),
        Table(("network", "squared distance as given", "in the order of the reference"), tuple(rows[:ROWS])),
    ]
    if len(rows) > ROWS:
        blocks.append(Text(f"and {len(rows) - ROWS} more networks."))
    return Report(
        title,
        (
            facts_section("Summary", summary),
            Section("No alignment beside the alignment", tuple(blocks)),
            uncovered_section(_uncovered(found.graph), len(found.graph.tensors)),
        ),
    )


def _comparison_table(comparison: Comparison) -> Table:
    from alignkit.jobs.compare.comparison import COLUMNS

    averages = comparison.averages
    columns = [column for column in COLUMNS if column.always or any(column.value(a) for a in averages)]
    rows = tuple(tuple(column.value(average) or "-" for column in columns) for average in averages)
    return Table(tuple(column.heading.replace("\n", " ") for column in columns), rows)


def _uncovered(graph: GraphStructure) -> dict[str, str]:
    from alignkit.graph.description import why_fixed

    return {name: why_fixed(graph, name) for name in graph.uncovered}
