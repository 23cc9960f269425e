"""Draw how a trace gets from one run to groups and families."""

from __future__ import annotations

from itertools import pairwise

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

STEPS = (
    ("one run", "list of ATen ops"),
    ("labels", "one for each position\nof each axis"),
    ("rules", "one for each op"),
    ("closure and\nrefinement", "atoms that move together"),
    ("groups and\nfamilies", "units that may change places"),
    ("notation", "a word an axis"),
)
PLACES = ((0, 0), (1, 0), (2, 0), (2, 1), (1, 1), (0, 1))
BETWEEN = ("", "", "merge, relate, colour", "", "")
WIDTH, HEIGHT = 2.1, 0.9


def draw() -> Figure:
    """Return the picture: six boxes, three to the right and three back to the left."""
    figure = Figure(figsize=(7.5, 2.9), layout="constrained")
    axes = figure.add_subplot()
    for (title, text), (column, row) in zip(STEPS, PLACES, strict=True):
        x, y = column * 3, -row * 1.7
        shape = FancyBboxPatch(
            (x, y), WIDTH, HEIGHT, boxstyle="round,pad=0.1", facecolor="#e8eaf6", edgecolor="#3f51b5"
        )
        axes.add_patch(shape)
        axes.text(x + WIDTH / 2, y + HEIGHT * 0.68, title, ha="center", va="center", fontsize=10, weight="bold")
        axes.text(x + WIDTH / 2, y + HEIGHT * 0.2, text, ha="center", va="center", fontsize=8)
    for (start, end), text in zip(pairwise(PLACES), BETWEEN, strict=True):
        _arrow(axes, start, end, text)
    axes.set(xlim=(-0.2, 8.3), ylim=(-1.9, 1.1))
    axes.axis("off")
    return figure


def _arrow(axes: Axes, start: tuple[int, int], end: tuple[int, int], text: str) -> None:
    if start[1] == end[1]:
        step = 1 if end[0] > start[0] else -1
        y = -start[1] * 1.7 + HEIGHT / 2
        left, right = min(start[0], end[0]) * 3 + WIDTH + 0.12, max(start[0], end[0]) * 3 - 0.12
        tail, head = ((left, y), (right, y)) if step > 0 else ((right, y), (left, y))
    else:
        x = start[0] * 3 + WIDTH / 2
        tail, head = (x, -0.12), (x, -1.7 + HEIGHT + 0.12)
        axes.text(x - 0.1, (tail[1] + head[1]) / 2, text, ha="right", va="center", fontsize=8)
    axes.annotate("", head, tail, arrowprops={"arrowstyle": "->", "color": "#333333"})
