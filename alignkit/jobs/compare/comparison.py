"""What `compare` returns: rows of numbers, and the table and the picture that they make."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from html import escape
from io import StringIO
from os import PathLike
from statistics import fmean
from typing import TYPE_CHECKING, Any, NamedTuple

import rich.box
import rich.console
import rich.markup
import rich.table
import rich.text

from alignkit.arguments import check_arguments
from alignkit.checkpoints.documents import Content, Format
from alignkit.errors import ComparisonError
from alignkit.plotting.pictures import bar_chart, plot_interpolations
from alignkit.reports.document import Facts, Part, Picture, Report, Section, Table, Text
from alignkit.reports.sections import facts_section
from alignkit.tasks.interpolation import Interpolation, LineContent
from alignkit.text import html_table, list_some, plural

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class RowContent(Content):
    """A row of a comparison as plain values."""

    solver: str
    seed: int
    status: str
    reason: str
    distance_before: float | None
    distance: float | None
    line: LineContent | None
    repaired_loss: float | None
    repaired_metric: float | None
    seconds: float | None
    peak_memory: int | None
    moved: int | None
    options: dict[str, Any]


class _ComparisonContent(Content, extra="ignore"):
    """What is read of a comparison; the command writes files, seconds and memory beside it."""

    device: str
    measured: str
    rows: list[RowContent]


FORMAT = Format("alignkit.comparison", "comparison", "Comparison.to_json", ComparisonError, _ComparisonContent)
NARROWEST, WIDEST = 80, 160
"""Columns of the table as text: names stay whole in all of them."""
LONGEST = 24
"""Columns of a word of a solver's name that are kept together on a terminal that is too narrow for the table."""
ERROR = "ERROR"
"""Status of a row that could not be run or evaluated; every other status is the name of a `Status`."""
FINISHED = ("OK", "MAX_STEPS")
MEASURED = (
    "seconds: wall-clock time of the solver alone. peak memory: rise above the memory in use when the solver began; "
    "on the CPU of the resident set of the process (Linux), on CUDA of the allocated tensors; '-' where it cannot be "
    "told, as when solvers share a process."
)
"""How the numbers that depend on the machine were measured; goes with every table."""


@dataclass(frozen=True)
class ComparisonRow:
    """One solver with one seed.

    Attributes:
        solver: Name in the table.
        seed: Seed of the solver's random choices.
        status: Name of the `Status` that the solver ended with, or ``"ERROR"`` when it could not be run or evaluated.
        reason: Why it failed, as a sentence; empty when it did not.
        distance_before: ``||A - B||^2``, None if the row failed before it was known.
        distance: ``||A - P # B||^2``.
        line: The task on the line between A and aligned B, if there is a task.
        repaired_loss: Loss of the average of A and aligned B after `alignkit.repair`, where that was asked for.
        repaired_metric: Metric of the same.
        seconds: Wall-clock time of the solver.
        peak_memory: Bytes by which the memory in use rose (`alignkit.jobs.memory_use`); None if unknown.
        moved: Units that changed their place.
        options: Options of the solver, or of each stage of a chain.
    """

    solver: str
    seed: int
    status: str
    reason: str = ""
    distance_before: float | None = None
    distance: float | None = None
    line: Interpolation | None = None
    repaired_loss: float | None = None
    repaired_metric: float | None = None
    seconds: float | None = None
    peak_memory: int | None = None
    moved: int | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def failed(self) -> bool:
        """Whether numbers are missing; ``reason`` then says why."""
        return self.status not in FINISHED

    @property
    def key(self) -> tuple[str, int]:
        """What tells the row from the others of a comparison."""
        return self.solver, self.seed

    @property
    def gain(self) -> float | None:
        """Squared distance that the alignment saves."""
        if self.distance is None or self.distance_before is None:
            return None
        return self.distance_before - self.distance

    @property
    def barrier(self) -> float | None:
        """Loss barrier between A and aligned B."""
        return None if self.line is None else self.line.barrier

    @property
    def auc(self) -> float | None:
        """Area under the excess loss."""
        return None if self.line is None else self.line.auc

    @property
    def middle_loss(self) -> float | None:
        """Loss of the average of A and aligned B."""
        return None if self.line is None else self.line.midpoint.loss

    @property
    def middle_metric(self) -> float | None:
        """Metric of the average of A and aligned B."""
        return None if self.line is None else self.line.midpoint.metric

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, as JSON takes them."""
        values = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return {**values, "line": None if self.line is None else self.line.to_dict()}

    @classmethod
    @check_arguments
    def from_dict(cls, values: Mapping[str, Any]) -> ComparisonRow:
        """Read what `to_dict` wrote.

        Raises:
            ComparisonError: It is not a row.
        """
        with FORMAT.rebuilding("this row of a comparison"):
            return cls.from_content(RowContent.model_validate_json(json.dumps(dict(values))))

    @classmethod
    def from_content(cls, row: RowContent) -> ComparisonRow:
        """Make a row of checked values; `ComparisonError` if their numbers do not fit each other."""
        with FORMAT.rebuilding("this row of a comparison"):
            line = None if row.line is None else Interpolation.from_content(row.line)
            return cls(**{**vars(row), "line": line})


@dataclass(frozen=True)
class Average:
    """The rows of one solver as one line: means over the seeds."""

    solver: str
    rows: tuple[ComparisonRow, ...]

    def mean(self, quantity: str) -> float | None:
        """Return the mean of an attribute of `ComparisonRow` over the rows that have it; None if none has."""
        values = [value for row in self.rows if (value := getattr(row, quantity)) is not None]
        return fmean(values) if values else None

    @property
    def line(self) -> Interpolation | None:
        """Losses and metrics on the line, averaged over the seeds."""
        lines = [row.line for row in self.rows if row.line is not None and not row.failed]
        if not lines:
            return None
        label = self.solver if len(lines) == 1 else f"{self.solver} (mean of {plural(len(lines), 'seed')})"
        metrics = [line.metrics for line in lines if line.metrics is not None]
        return Interpolation(
            lines[0].lambdas,
            tuple(map(fmean, zip(*(line.losses for line in lines), strict=True))),
            tuple(map(fmean, zip(*metrics, strict=True))) if metrics else None,
            lines[0].metric_name,
            label,
        )


@dataclass(frozen=True)
class Comparison:
    """Solvers side by side on one pair of networks.

    Printed, it is a table; ``rich.print`` draws it with lines and colours.

    Attributes:
        rows: One for each solver and seed, the identity first.
        device: Where the solvers worked.
        measured: How time and memory were measured.
    """

    rows: tuple[ComparisonRow, ...]
    device: str = "cpu"
    measured: str = MEASURED

    @property
    def solvers(self) -> tuple[str, ...]:
        """Names in the order of the table."""
        return tuple(dict.fromkeys(row.solver for row in self.rows))

    @property
    def averages(self) -> tuple[Average, ...]:
        """One line for each solver."""
        return tuple(Average(name, tuple(r for r in self.rows if r.solver == name)) for name in self.solvers)

    @check_arguments
    def row(self, solver: str, seed: int | None = None) -> ComparisonRow:
        """Return the row of a solver; the first one if ``seed`` is None.

        Raises:
            ComparisonError: There is no such row.
        """
        for row in self.rows:
            if row.solver == solver and seed in (None, row.seed):
                return row
        wanted = f"{solver!r}" if seed is None else f"{solver!r} with seed {seed}"
        existing = list_some([f"{row.solver} (seed {row.seed})" for row in self.rows])
        raise ComparisonError(f"no row of {wanted}. Rows: {existing}.")

    @check_arguments
    def plot(self, path: str | PathLike[str] | None = None, *, title: str | None = None) -> Figure:
        """Draw loss and metric on the line from A to B; without a task the squared distances as bars.

        Args:
            path: A file to write, or None for a figure only.
            title: Heading of the picture of lines.

        Raises:
            MissingExtraError: matplotlib is not installed.
            ComparisonError: Every row failed, so there is nothing to draw.
        """
        averages = self.averages
        if lines := [line for average in averages if (line := average.line) is not None]:
            return plot_interpolations(lines, path, title=title)
        bars = {average.solver: mean for average in averages if (mean := average.mean("distance")) is not None}
        if not bars:
            raise ComparisonError("every solver failed, there is nothing to draw: see the reasons in the rows.")
        return bar_chart(bars, "squared distance of A to aligned B", path)

    def table(self) -> rich.table.Table:
        """Return the comparison as a rich table: a line for each solver, means over the seeds."""
        (first, *others), *rows = self._cells
        drawn = rich.table.Table(box=rich.box.SIMPLE_HEAD, padding=0, pad_edge=False, show_edge=False)
        words = [word for row in rows for word in row[0].split()]
        drawn.add_column(first, overflow="fold", min_width=min(LONGEST, max(map(len, words), default=0)))
        for heading in others:  # on a narrow terminal names are folded, numbers never cut
            drawn.add_column(heading, justify="right", no_wrap=True, overflow="fold")
        for row in rows:
            drawn.add_row(*map(rich.markup.escape, row))
        return drawn

    def problems(self) -> tuple[str, ...]:
        """Return one sentence for each row that failed or was not finished."""
        return tuple(f"{row.solver} (seed {row.seed}): {row.reason}" for row in self.rows if row.reason)

    def explain(self) -> str:
        """Return the table as text, with what went wrong below it; as wide as the terminal, where there is one."""
        text, columns = StringIO(), shutil.get_terminal_size((WIDEST, 0)).columns
        rich.console.Console(file=text, width=max(NARROWEST, min(WIDEST, columns)), no_color=True).print(self)
        return text.getvalue().rstrip("\n")

    __str__ = explain

    def facts(self) -> dict[str, Any]:
        """Return all rows as plain values, as JSON takes them."""
        rows = [row.to_dict() for row in self.rows]
        return {**FORMAT.header, "device": self.device, "measured": self.measured, "rows": rows}

    @check_arguments
    def report(self, title: str = "Solvers side by side", *, facts: Facts = None) -> Report:
        """Show the comparison as picture and table.

        Raises:
            MissingExtraError: matplotlib is not installed.
            ComparisonError: Every solver failed.
        """
        description = "Solvers on the line from A to aligned B, or their distances."
        headings, *rows = self._cells
        table = Table(tuple(heading.replace("\n", " ") for heading in headings), tuple(rows))
        parts: list[Part] = [Picture.of(self.plot(), "comparison", description), table]
        parts += [Text(problem) for problem in (*self.problems(), self.measured)]
        summary = facts_section({**(facts or {}), "device": self.device})
        return Report(title, (summary, Section("Solvers", tuple(parts))))

    @property
    def _cells(self) -> list[tuple[str, ...]]:
        """The headings of the columns in which some solver has something to say, then a row for each solver."""
        averages = self.averages
        columns = [column for column in COLUMNS if column.always or any(column.value(a) for a in averages)]
        headings = tuple(column.heading for column in columns)
        return [headings, *(tuple(column.value(average) or "-" for column in columns) for average in averages)]

    def _repr_html_(self) -> str:
        header, *rows = self._cells
        problems = "".join(f"<p>{escape(problem)}</p>" for problem in self.problems())
        return html_table(header, rows, f"Solvers on {self.device}, means over the seeds") + problems

    def __repr__(self) -> str:
        return f"Comparison({plural(len(self.rows), 'row')}: {', '.join(self.solvers)})"

    def __rich_console__(self, console: Any, options: Any) -> Iterable[Any]:
        yield self.table()
        yield from (rich.text.Text(problem) for problem in self.problems())

    def to_json(self) -> str:
        """Return everything as JSON text."""
        return FORMAT.to_json(self.facts())

    @classmethod
    @check_arguments
    def from_json(cls, text: str) -> Comparison:
        """Read what `to_json` wrote.

        Raises:
            ComparisonError: The text is not JSON, or not a comparison of the version that this release reads.
        """
        content = FORMAT.from_json(text)
        return cls(tuple(map(ComparisonRow.from_content, content.rows)), content.device, content.measured)


# ---------------------------------------------------------------------- the table


class Column(NamedTuple):
    """One column of the table: its heading, and the text for a solver (empty if there is nothing to say)."""

    heading: str
    value: Callable[[Average], str]
    always: bool = True


def _mean(quantity: str, form: str, unless: str | None = None, scale: float = 1.0) -> Callable[[Average], str]:
    """Write a mean over the seeds; nothing where there is none, or one of ``unless``, which says more in less room."""

    def write(average: Average) -> str:
        mean = average.mean(quantity)
        if mean is None or (unless is not None and average.mean(unless) is not None):
            return ""
        return form.format(mean * scale)

    return write


def _gain(average: Average) -> str:
    gain, before = average.mean("gain"), average.mean("distance_before")
    return f"{100 * gain / before:.1f}%" if gain is not None and before else ""


def _seeds(average: Average) -> str:
    if len(average.rows) == 1:
        return ""
    failed = sum(row.failed for row in average.rows)
    return str(len(average.rows)) + (f", {failed} failed" if failed else "")


COLUMNS = (
    Column("solver", lambda average: average.solver),
    Column("seeds", _seeds, always=False),
    Column("squared\ndistance", _mean("distance", "{:.5g}")),
    Column("gain", _gain),
    Column("barrier", _mean("barrier", "{:.4f}"), always=False),
    Column("AUC", _mean("auc", "{:.4f}"), always=False),
    Column("middle\nloss", _mean("middle_loss", "{:.4f}", unless="middle_metric"), always=False),
    Column("middle\nmetric", _mean("middle_metric", "{:.4f}"), always=False),
    Column("repaired\nloss", _mean("repaired_loss", "{:.4f}", unless="repaired_metric"), always=False),
    Column("repaired\nmetric", _mean("repaired_metric", "{:.4f}"), always=False),
    Column("seconds", _mean("seconds", "{:.2g}")),
    Column("peak\nMB", _mean("peak_memory", "{:.1f}", scale=2**-20), always=False),
    Column("status", lambda average: ", ".join(sorted({row.status for row in average.rows} - {"OK"})), always=False),
)
