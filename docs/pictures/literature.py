"""Figures that the literature is known for, from docs/results/figures.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

LABELS = {
    "identity": "not aligned",
    "none": "not aligned",
    "weight_matching": "weight matching",
    "activation_matching": "activation matching",
}
COLOURS = {
    "identity": "#888888",
    "none": "#888888",
    "weight_matching": "#4051b5",
    "activation_matching": "#e8710a",
    "reference": "#e8710a",
    "merge_many": "#188038",
    "universe": "#4051b5",
}


def rows(figure: str) -> list[dict[str, Any]]:
    """What the benchmark measured for one figure."""
    return json.loads(Path("docs/results/figures.json").read_text())[figure]


def width() -> Figure:
    """Excess of the average against width, one panel a family."""
    families = list(dict.fromkeys(row["family"] for row in rows("width")))
    picture = Figure(figsize=(8.4, 3.2), layout="constrained")
    for panel, family in zip(picture.subplots(1, len(families)), families, strict=True):
        _lines(panel, [row for row in rows("width") if row["family"] == family], "solver", "width", "excess")
        panel.set(title=family, xlabel="width", ylabel="loss of the average above its parents")
        panel.set_xscale("log", base=2)
    return _with_legend(picture)


def repair() -> Figure:
    """Excess of the average against depth, before repair (dashed) and after it."""
    picture = Figure(figsize=(6.4, 3.2), layout="constrained")
    panel = picture.subplots()
    _lines(panel, rows("repair"), "solver", "depth", "excess", "--", " ")
    _lines(panel, rows("repair"), "solver", "depth", "repaired", "-", ", repaired")
    panel.set(xlabel="hidden layers", ylabel="loss of the average above its parents")
    return _with_legend(picture)


def many() -> Figure:
    """Accuracy of the mean against the number of networks."""
    picture = Figure(figsize=(6.4, 3.2), layout="constrained")
    panel = picture.subplots()
    _lines(panel, rows("many"), "method", "networks", "accuracy")
    panel.set_xscale("log", base=2)
    panel.set(xlabel="networks", ylabel="test accuracy of their mean")
    return _with_legend(picture)


def _lines(
    panel: Any, table: list[dict[str, Any]], name: str, x: str, y: str, style: str = "-", more: str = ""
) -> None:
    """One line for each method."""
    for method in dict.fromkeys(row[name] for row in table):
        of_method = [row for row in table if row[name] == method]
        label = LABELS.get(method, method) + more
        places = [row[x] for row in of_method], [row[y] for row in of_method]
        panel.plot(*places, style, marker="o", markersize=4, color=COLOURS[method], label=label)
    panel.grid(alpha=0.3)


def _with_legend(picture: Figure) -> Figure:
    """Name the lines of the first panel beside or below the panels."""
    lines, labels = picture.axes[0].get_legend_handles_labels()
    wide = len(picture.axes) > 1
    picture.legend(lines, labels, loc=f"outside {'lower center' if wide else 'right upper'}", ncols=3 if wide else 1)
    return picture
