"""A report as plain values, and how it becomes a file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from alignkit.checkpoints.staging import staged, write_text
from alignkit.errors import ReportError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

HTML_SUFFIXES, MARKDOWN_SUFFIXES = (".html", ".htm"), (".md",)
RESOLUTION = 110
"""Dots an inch of pictures."""


@dataclass(frozen=True)
class Text:
    """A paragraph; with ``verbatim`` lines stay as they are."""

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
        """Take the picture of a matplotlib figure, and close it."""
        from matplotlib import pyplot

        stream = BytesIO()
        figure.savefig(stream, format="png", dpi=RESOLUTION)
        pyplot.close(figure)
        return cls(name, description, stream.getvalue())


Block: TypeAlias = Text | Table | Picture


@dataclass(frozen=True)
class Section:
    """A heading with what stands below it."""

    title: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True)
class Report:
    """What a job did, to be read in a browser or as Markdown.

    Attributes:
        title: Heading of the page.
        sections: What it says, in order.
    """

    title: str
    sections: tuple[Section, ...]

    @property
    def pictures(self) -> Iterator[Picture]:
        """All pictures, in order."""
        return (block for section in self.sections for block in section.blocks if isinstance(block, Picture))

    def with_sections(self, *sections: Section) -> Report:
        """The report with more at its end."""
        return Report(self.title, (*self.sections, *sections))

    def html(self) -> str:
        """One page that needs no other file: pictures are part of it."""
        from alignkit.reports.html import to_html

        return to_html(self)

    def markdown(self, pictures: str = "") -> str:
        """Markdown that shows its pictures from a folder, named relative to the file."""
        from alignkit.reports.markdown import to_markdown

        return to_markdown(self, pictures)

    def write(self, path: str | Path) -> None:
        """Write the report: ``.html`` is one file, ``.md`` has its pictures in the folder `pictures_folder`.

        Every file appears whole or not at all; pictures are there before the text that shows them.

        Raises:
            ReportError: The suffix is not that of a report.
            WeightsError: The folder does not exist or cannot be written to.
        """
        path = Path(path)
        if not is_report_path(path):
            raise ReportError(f"{path}: end the name of a report in {' or '.join(HTML_SUFFIXES + MARKDOWN_SUFFIXES)}.")
        if path.suffix in HTML_SUFFIXES:
            write_text(path, self.html())
            return
        folder = pictures_folder(path)
        pictures: Sequence[Picture] = list(self.pictures)
        if pictures:
            try:
                folder.mkdir(exist_ok=True)
            except OSError as error:
                raise ReportError(f"the folder {folder} cannot be made: {error.strerror}.") from error
        for picture in pictures:
            with staged(folder / f"{picture.name}.png") as temporary:
                temporary.write_bytes(picture.png)
        write_text(path, self.markdown(folder.name))


def is_report_path(path: Path) -> bool:
    """Whether a file name is that of a report."""
    return path.suffix in HTML_SUFFIXES + MARKDOWN_SUFFIXES


def pictures_folder(path: Path) -> Path:
    """The folder of the pictures of a Markdown report: ``merge.md`` has them in ``merge_files``."""
    return path.with_name(f"{path.stem}_files")
