"""The rooms of the package: a picture and a list, from the layers in pyproject.toml and the docstrings of the rooms."""

from __future__ import annotations

import ast
import tomllib
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Polygon

ROOT = Path(__file__).parent.parent.parent
WIDTH, HEIGHT = 10.0, 0.8
"""Width of the house and height of a floor, in units of the axes."""


def floors(package: str = "alignkit") -> list[list[str]]:
    """Return the rooms of each floor, from the top to the bottom, as import-linter holds them."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    contracts = settings["tool"]["importlinter"]["contracts"]
    contract = next(c for c in contracts if c.get("containers") == [package])
    return [[room.strip() for room in layer.replace("|", ":").split(":")] for layer in contract["layers"]]


def about(room: str, package: str = "alignkit") -> str:
    """Return the first paragraph of the docstring of a room, or of a single file."""
    path = ROOT.joinpath(*package.split("."), room)
    source = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    text = ast.get_docstring(ast.parse(source.read_text(encoding="utf-8"))) or ""
    return " ".join(text.partition("\n\n")[0].split())


def table(package: str = "alignkit") -> str:
    """Return what stands in each room as Markdown, floor by floor."""
    rows = floors(package)
    lines = ["| Floor | Room | What is in it |", "|--:|---|---|"]
    for number, rooms in zip(range(len(rows) - 1, -1, -1), rows, strict=True):
        lines += [f"| {number} | `{room}` | {about(room, package).replace('``', '`')} |" for room in rooms]
    return "\n".join(lines)


def draw() -> Figure:
    """Return the picture: one row a floor, under a roof."""
    rows = floors()
    figure = Figure(figsize=(7.5, 0.48 * len(rows) + 1.2), layout="constrained")
    axes = figure.add_subplot()
    for number, rooms in enumerate(reversed(rows)):
        width = WIDTH / len(rooms)
        for at, room in enumerate(rooms):
            _box(axes, at * width, number, width, room)
    top = len(rows)
    roof = Polygon([(-0.3, top), (WIDTH + 0.3, top), (WIDTH / 2, top + 1.6)], facecolor="#c5cae9", edgecolor="#3f51b5")
    axes.add_patch(roof)
    axes.text(WIDTH / 2, top + 0.55, "import alignkit", ha="center", va="center", fontsize=11, weight="bold")
    axes.annotate("", (WIDTH + 0.7, 0.1), (WIDTH + 0.7, top - 0.1), arrowprops={"arrowstyle": "->", "color": "#333333"})
    axes.text(WIDTH + 0.95, top / 2, "imports", rotation=270, ha="center", va="center", fontsize=9)
    axes.set(xlim=(-0.5, WIDTH + 1.3), ylim=(-0.1, top + 1.7))
    axes.axis("off")
    return figure


def _box(axes: Axes, left: float, floor: int, width: float, room: str) -> None:
    box = FancyBboxPatch(
        (left + 0.12, floor + (1 - HEIGHT) / 2),
        width - 0.24,
        HEIGHT,
        boxstyle="round,pad=0.02",
        facecolor="#e8eaf6",
        edgecolor="#3f51b5",
    )
    axes.add_patch(box)
    axes.text(left + width / 2, floor + 0.5, room, ha="center", va="center", fontsize=10, family="monospace")
