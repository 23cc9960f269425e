"""Pictures of the page on symmetries: which spaces a transformer has, and what a fold does."""

from __future__ import annotations

from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

COLOURS = {
    "rotated": "#4477aa",
    "rotated in planes": "#66ccee",
    "permuted": "#ccbb44",
}
INK = "#222222"


def _box(axes, place, size, text, colour="white"):
    axes.add_patch(FancyBboxPatch(place, *size, "round,pad=0.02,rounding_size=0.08", facecolor=colour, edgecolor=INK))
    axes.text(place[0] + size[0] / 2, place[1] + size[1] / 2, text, ha="center", va="center", fontsize=9, color=INK)


def _line(axes, start, end, kind, label="", above=0.13):
    arrow = {"arrowstyle": "-|>", "mutation_scale": 12, "linewidth": 3.5, "color": COLOURS[kind]}
    axes.add_patch(FancyArrowPatch(start, end, shrinkA=0, shrinkB=0, **arrow))
    if label:
        axes.text((start[0] + end[0]) / 2, (start[1] + end[1]) / 2 + above, label, ha="center", fontsize=8, color=INK)


def _empty(width, height, size):
    figure = Figure(figsize=size, layout="constrained", facecolor="white")
    axes = figure.subplots()
    axes.set(xlim=(0, width), ylim=(0, height), aspect="equal")
    axes.axis("off")
    return figure, axes


def spaces():
    """One layer of a decoder: boxes are weights, lines the spaces between them, by kind."""
    figure, axes = _empty(13, 5.4, (10, 4.2))
    _box(axes, (0.1, 0.6), (1.5, 0.7), "embedding")
    _box(axes, (11.4, 0.6), (1.5, 0.7), "head")
    _line(axes, (1.65, 0.95), (11.35, 0.95), "rotated", "residual stream: one space for the whole network", -0.35)
    for x, text in ((2.6, "norm"), (7.6, "norm")):
        _box(axes, (x, 1.6), (1.1, 0.55), text)
        _line(axes, (x + 0.55, 1.02), (x + 0.55, 1.56), "rotated")
    _box(axes, (2.1, 2.7), (1.0, 0.6), "q, k")
    _box(axes, (3.3, 2.7), (0.8, 0.6), "v")
    _line(axes, (2.9, 2.2), (2.6, 2.66), "rotated")
    _line(axes, (3.4, 2.2), (3.7, 2.66), "rotated")
    _box(axes, (2.1, 4.1), (2.0, 0.6), "attention")
    _line(axes, (2.6, 3.35), (2.6, 4.06), "rotated in planes")
    _line(axes, (3.7, 3.35), (3.7, 4.06), "rotated")
    axes.text(1.95, 3.65, "in each head,\nrotary planes", ha="right", va="center", fontsize=8, color=INK)
    axes.text(3.9, 3.65, "values in each head", va="center", fontsize=8, color=INK)
    _box(axes, (5.0, 4.1), (1.3, 0.6), "output")
    _line(axes, (4.15, 4.4), (4.95, 4.4), "rotated")
    _line(axes, (5.65, 4.05), (5.65, 1.02), "rotated")
    _box(axes, (7.3, 2.7), (1.7, 0.6), "gate, up")
    _line(axes, (8.15, 2.2), (8.15, 2.66), "rotated")
    _box(axes, (10.0, 2.7), (1.0, 0.6), "down")
    _line(axes, (9.05, 3.0), (9.95, 3.0), "permuted", "units")
    _line(axes, (10.5, 2.65), (10.5, 1.02), "rotated")
    for at, kind in enumerate(("rotated", "rotated in planes", "permuted")):
        _line(axes, (7.3, 5.0 - 0.4 * at), (8.0, 5.0 - 0.4 * at), kind)
        axes.text(8.15, 5.0 - 0.4 * at, kind, va="center", fontsize=9, color=INK)
    return figure


def fold():
    """A gain between a norm and what reads it, before and after the fold."""
    figure, axes = _empty(13, 2.6, (10, 2.0))
    for y, last, words in ((1.6, "W", "given"), (0.3, "W g", "folded")):
        axes.text(0.1, y + 0.3, words, va="center", fontsize=9, color=INK)
        _box(axes, (3.0, y), (1.6, 0.6), "x / |x|")
        _box(axes, (6.2, y), (1.6, 0.6), "gain g" if words == "given" else "gain 1")
        _box(axes, (9.4, y), (1.6, 0.6), last)
        kind = "permuted" if words == "given" else "rotated"
        for start, end in ((1.4, 2.95), (4.65, 6.15), (7.85, 9.35)):
            _line(axes, (start, y + 0.3), (end, y + 0.3), kind)
        told = "each unit has a factor: no rotation passes" if words == "given" else "every rotation passes"
        axes.text(11.15, y + 0.3, told, va="center", fontsize=8, color=INK)
    axes.set_xlim(0, 15.5)
    return figure
