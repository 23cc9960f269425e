"""What to choose a solver by: means of all tables of ``docs/results/paper-*.json`` that hold barriers and times."""

from __future__ import annotations

from typing import Any

from matplotlib import colormaps
from matplotlib.figure import Figure
from paper_results import RESULTS, per_pair, read


def measured() -> dict[str, dict[str, Any]]:
    """The columns of every set of networks, by the name of the set."""
    sets = {}
    for path in sorted(RESULTS.glob("paper-*.json")):
        content = read(path.stem.removeprefix("paper-"))
        timed = {k: c for k, c in content.get("columns", {}).items() if all("seconds" in r for r in c["runs"].values())}
        if timed and content.get("set") == content.get("trained_on") and "set" in content:
            sets[content["set"]] = {**content, "columns": timed}
    return sets


def table() -> str:
    """Barrier and processor seconds of every method (rows) on every set (columns)."""
    sets = measured()
    methods = list(dict.fromkeys(method for content in sets.values() for method in content["columns"]))
    lines = [
        "| method | " + " | ".join(f"{name}: barrier | CPU s" for name in sets) + " |",
        "|---|" + "---:|---:|" * len(sets),
    ]
    for method in methods:
        cells = [method]
        for content in sets.values():
            column = content["columns"].get(method)
            cells += [mean(column, "barriers", ".4f"), mean(column, "seconds", ".3f")] if column else ["", ""]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def mean(column: dict[str, Any], kind: str, form: str) -> str:
    """The mean over pairs and seeds."""
    return format(float(per_pair(column, kind).mean()), form)


def facts() -> str:
    """What each set is."""
    lines = []
    for name, content in measured().items():
        about = content["about"]
        pairs = len(content["pairs"])
        lines.append(f"- *{name}*: {about['architecture']}, {about['source']}, {pairs} pairs. `{content['command']}`")
    return "\n".join(lines)


def figure() -> Figure:
    """Barrier against time, one panel a set; identity left out."""
    sets = measured()
    rows = -(-len(sets) // 2)
    picture = Figure(figsize=(9.2, 3.2 * rows + 1.2), layout="constrained")
    panels = list(picture.subplots(rows, 2).flat)
    methods = [m for content in sets.values() for m in content["columns"] if m != "naive"]
    colours = {method: colormaps["tab20"](at % 20) for at, method in enumerate(dict.fromkeys(methods))}
    shown = panels[: len(sets)]
    for panel in panels[len(sets) :]:
        panel.axis("off")
    for panel, (name, content) in zip(shown, sets.items(), strict=True):
        for method, column in content["columns"].items():
            if method != "naive":
                place = (per_pair(column, "seconds").mean(), per_pair(column, "barriers").mean())
                panel.plot(*place, "s" if "+" in method else "o", color=colours[method], label=method)
        panel.set(title=name, xlabel="CPU seconds a pair", ylabel="barrier", xscale="log")
        panel.set_ylim(bottom=0)
        panel.grid(alpha=0.3)
    handles = {label: mark for panel in shown for mark, label in zip(*panel.get_legend_handles_labels(), strict=True)}
    picture.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=3, fontsize="small")
    return picture
