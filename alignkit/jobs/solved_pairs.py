"""What `solve_many` returns: a solution for each pair of networks, or the reason why there is none."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from alignkit.arguments import check_arguments
from alignkit.errors import SolverError
from alignkit.graph import SymmetryGraph
from alignkit.plotting.pictures import bar_chart
from alignkit.reports.document import Facts, Names, Part, Picture, Report, Section, Table, Text
from alignkit.reports.sections import facts_section, number, uncovered_section
from alignkit.solver.solution import Solution
from alignkit.text import Explained, plural, shorten_list

ROWS = 200
"""Maximum number of pairs in the table of a report."""
LISTED = 10
"""Longest list of pairs without a solution that an explanation prints in full."""


@dataclass(frozen=True)
class SolvedPair:
    """One pair of `alignkit.solve_many`.

    Attributes:
        index: Its number, from 0.
        solution: What the solver found, None if there is nothing.
        reason: Why there is no solution, or why it is not finished; empty where all is well.
    """

    index: int
    solution: Solution | None
    reason: str = ""


@dataclass(frozen=True, eq=False)
class SolvedPairs(Explained):
    """Many pairs of networks on one graph, solved: ``solved[i]`` is the solution of pair ``i``.

    Attributes:
        graph: Their graph.
        solver: Name of the solver or chain.
        pairs: One for each pair, in the order in which pairs were given.
        seconds: Wall-clock time of the whole.
        interrupted: Whether Ctrl-C ended it.
    """

    graph: SymmetryGraph
    solver: str
    pairs: tuple[SolvedPair, ...]
    seconds: float
    interrupted: bool = False

    def __len__(self) -> int:
        return len(self.pairs)

    @check_arguments
    def __getitem__(self, index: int) -> Solution:
        """Return the solution of a pair.

        Raises:
            SolverError: There is none; the message says why.
            IndexError: There is no such pair.
        """
        pair = self.pairs[index]
        if pair.solution is None:
            raise SolverError(f"pair {pair.index} has no solution. {pair.reason}")
        return pair.solution

    def __iter__(self) -> Iterator[Solution]:
        return (self[index] for index in range(len(self)))

    @property
    def solutions(self) -> tuple[Solution, ...]:
        """All solutions that there are, in the order of the pairs."""
        return tuple(pair.solution for pair in self.pairs if pair.solution is not None)

    @property
    def reasons(self) -> dict[int, str]:
        """Why pairs have no solution, or none that is finished, by their numbers."""
        return {pair.index: pair.reason for pair in self.pairs if pair.reason}

    def explain(self) -> str:
        """Say in a few lines what it was worth, and what went wrong."""
        lines = [f"{self.solver}: {len(self.solutions)} of {plural(len(self), 'pair')} solved."]
        if self.solutions:
            before, after = self._means
            lines.append(f"Mean squared distance {before:.6g} -> {after:.6g}.")
        reasons = [f"pair {index}: {reason}" for index, reason in self.reasons.items()]
        if reasons:
            lines += ["Not solved:", *shorten_list(reasons, LISTED, ", see solved.reasons")]
        return "\n".join(lines)

    __str__ = explain

    def facts(self) -> dict[str, Any]:
        """Return what came out as plain values, as JSON takes them."""
        return {
            "solver": self.solver,
            "pairs": [
                {"reason": pair.reason, **({} if pair.solution is None else pair.solution.facts())}
                for pair in self.pairs
            ],
            "seconds": self.seconds,
            "interrupted": self.interrupted,
        }

    @check_arguments
    def report(self, title: str = "Pairs of networks", *, names: Names = None, facts: Facts = None) -> Report:
        """Say how far the networks of each pair are from each other, as they were given and aligned."""
        called = [f"pair {pair.index}" for pair in self.pairs] if names is None else names
        rows = []
        for name, pair in zip(called, self.pairs, strict=True):
            solution = pair.solution
            distances = ("-", "-") if solution is None else (solution.objective_before, solution.objective_after)
            rows.append((name, *(each if isinstance(each, str) else number(each) for each in distances), pair.reason))
        summary = {
            **(facts or {}),
            "solver": self.solver,
            "pairs": f"{len(self.solutions)} of {len(self)} solved",
            "seconds": f"{self.seconds:.3g}",
        }
        parts: list[Part] = []
        if self.solutions:
            means = dict(zip(("as given", "aligned"), self._means, strict=True))
            figure = bar_chart(means, "mean squared distance of A and B")
            parts.append(Picture.of(figure, "distances", "Squared distances, mean over the pairs."))
        parts.append(Table(("pair", "squared distance as given", "aligned", "what went wrong"), tuple(rows[:ROWS])))
        if len(rows) > ROWS:
            parts.append(Text(f"and {len(rows) - ROWS} more pairs."))
        side_by_side = Section("No alignment beside the alignment", tuple(parts))
        return Report(title, (facts_section(summary), side_by_side, uncovered_section(self.graph)))

    @property
    def _means(self) -> tuple[float, float]:
        """Mean squared distances of the solved pairs, as given and aligned."""
        before = fmean(solution.objective_before for solution in self.solutions)
        return before, fmean(solution.objective_after for solution in self.solutions)

    def __repr__(self) -> str:
        return f"SolvedPairs({self.solver}: {len(self.solutions)} of {plural(len(self), 'pair')} solved)"
