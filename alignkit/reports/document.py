"""A report as plain values: a title, and sections of text, tables and pictures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Facts: TypeAlias = Mapping[str, str] | None
"""What else belongs to the summary of a report, by name."""
Names: TypeAlias = Sequence[str] | None
"""What the networks of a report are called; None: by their number."""
RESOLUTION = 110
"""Dots an inch of pictures: sharp at the width of a page, and some ten kilobytes each."""


@dataclass(frozen=True)
class Text:
    """A paragraph. With ``verbatim`` lines stay as they are."""

    text: str
    verbatim: bool = False


@dataclass(frozen=True)
class Table:
    """Rows of text under a heading. The first column names things, the others are numbers or words about them."""

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Picture:
    """A PNG with a name for its file and a sentence for those who cannot see it."""

    name: str
    description: str
    png: bytes = field(repr=False)

    @classmethod
    def of(cls, figure: Figure, name: str, description: str) -> Picture:
        """Take the picture of a matplotlib figure, and close the figure."""
        from matplotlib import pyplot

        stream = BytesIO()
        figure.savefig(stream, format="png", dpi=RESOLUTION)
        pyplot.close(figure)
        return cls(name, description, stream.getvalue())


Part: TypeAlias = Text | Table | Picture


@dataclass(frozen=True)
class Section:
    """A heading with what stands below it."""

    title: str
    parts: tuple[Part, ...]


@dataclass(frozen=True)
class Report:
    """What a job did, to be read in a browser or as Markdown. `alignkit.reports.write_report` makes files of it.

    Attributes:
        title: Heading of the page.
        sections: What it says, in order.
    """

    title: str
    sections: tuple[Section, ...]

    @property
    def pictures(self) -> Iterator[Picture]:
        """All pictures, in order."""
        return (part for section in self.sections for part in section.parts if isinstance(part, Picture))
