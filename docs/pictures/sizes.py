"""Table and figure of weight matching at many sizes, drawn from ``docs/results/sizes.json``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from alignkit.plotting.pictures import PALETTE

ROWS: list[dict[str, Any]] = json.loads(
    (Path(__file__).parents[1] / "results" / "sizes.json").read_text(encoding="utf-8")
)
NAMES = {
    "mlp": "MLP 784-128-128-128-10",
    "resnet18": "ResNet18",
    "resnet50": "ResNet50",
    "vit_b_16": "ViT-B/16",
    "gpt2": "GPT-2 small",
    "vgg11": "VGG11",
}
PROGRAMS = {"alignkit": "alignkit", "plain": "written plainly", "rebasin": "rebasin", "sinkhorn": "sinkhorn-rebasin"}
BY_KEY = {(row["network"], row["program"]): row for row in ROWS}


def table() -> str:
    """CPU seconds, memory and the limit, a row a network."""
    lines = [
        f"| networks | weights of both | sweeps | CPU s: alignkit | limit: products + assignments "
        f"| {' | '.join(PROGRAMS[name] for name in list(PROGRAMS)[1:])} | peak | peak, written plainly |",
        "|---|" + "---:|" * 9,
    ]
    for network, name in NAMES.items():
        if "seconds" not in BY_KEY[network, "alignkit"]:
            continue
        own = BY_KEY[network, "alignkit"]
        others = [_seconds(BY_KEY.get((network, program))) for program in list(PROGRAMS)[1:]]
        plain = BY_KEY.get((network, "plain"), {}).get("peak_gb")
        limit = f"{own['products']:.3g} + {own['assignments']:.2g}"
        lines.append(
            f"| {name} | {2 * own['weights_gb']:.2g} GB | {own['sweeps']} | {own['seconds']:.3g} | {limit} "
            f"| {' | '.join(others)} | {own['peak_gb']:.2f} GB "
            f"| {'-' if plain is None else f'{plain:.2f} GB'} |"
        )
    return "\n".join(lines)


def distances() -> str:
    """Squared distances that are left, a row a network."""
    lines = [f"| networks | as given | {' | '.join(PROGRAMS.values())} |", "|---|" + "---:|" * (1 + len(PROGRAMS))]
    for network, name in NAMES.items():
        if "seconds" not in BY_KEY[network, "alignkit"]:
            continue
        rows = [BY_KEY.get((network, program), {}) for program in PROGRAMS]
        cells = [f"{row['after']:.6g}" if "after" in row else "-" for row in rows]
        lines.append(f"| {name} | {rows[0]['before']:.6g} | {' | '.join(cells)} |")
    return "\n".join(lines)


def parts() -> str:
    """Where the time goes, in percent of a call under a profiler, a row a part."""
    profiled = {network: own for network in NAMES if (own := BY_KEY[network, "alignkit"].get("parts"))}
    lines = [f"| % of the call | {' | '.join(NAMES[network] for network in profiled)} |"]
    lines.append("|---|" + "---:|" * len(profiled))
    for part in (part for part in next(iter(profiled.values())) if part != "whole"):
        shares = [f"{100 * own[part] / own['whole']:.0f}" for own in profiled.values()]
        lines.append(f"| {part} | {' | '.join(shares)} |")
    return "\n".join(lines)


def times_of_the_limit() -> str:
    """How many times the limit each network takes, in a sentence."""
    rows = [row for row in ROWS if row["program"] == "alignkit" and "seconds" in row and row["network"] != "mlp"]
    times = {NAMES[row["network"]]: row["seconds"] / (row["products"] + row["assignments"]) for row in rows}
    return ", ".join(f"{name} {ratio:.1f}" for name, ratio in sorted(times.items(), key=lambda item: item[1])) + "."


def reasons() -> str:
    """Why numbers are missing, in words, by reason."""
    lines: dict[str, list[str]] = {}
    for row in (row for row in ROWS if "why_not" in row):
        lines.setdefault(row["why_not"], []).append(f"{NAMES[row['network']]} {PROGRAMS[row['program']]}")
    return "\n".join(f"- {', '.join(missing)}: {reason}." for reason, missing in lines.items())


def draw() -> Figure:
    """CPU seconds, and peak memory, against the weights of both networks."""
    figure, (time, memory) = plt.subplots(1, 2, figsize=(9.2, 4.2), layout="constrained")
    for colour, marker, (program, label) in zip(PALETTE[1:], "osD^", PROGRAMS.items(), strict=False):
        rows = sorted(
            (row for row in ROWS if row["program"] == program and "seconds" in row), key=lambda row: row["weights_gb"]
        )
        sizes = [2 * row["weights_gb"] for row in rows]
        for axes, quantity in ((time, "seconds"), (memory, "peak_gb")):
            axes.plot(sizes, [row[quantity] for row in rows], marker=marker, color=colour, label=label, lw=1.2, ms=5)
    measured = [row for row in ROWS if row["program"] == "alignkit" and "seconds" in row]
    own = sorted(measured, key=lambda row: row["weights_gb"])
    sizes = [2 * row["weights_gb"] for row in own]
    time.plot(
        sizes,
        [row["products"] + row["assignments"] for row in own],
        "k--",
        lw=1,
        label="limit; on the right, weights of both",
    )
    memory.plot(sizes, sizes, "k--", lw=1)
    for axes, title in ((time, "CPU seconds"), (memory, "peak memory of the process (GB)")):
        axes.set(xscale="log", yscale="log", xlabel="weights of both networks (GB)", title=title)
        axes.grid(alpha=0.3)
        lowest = axes.get_ylim()[0]
        for row in own:  # names stand along the lower edge, where the networks of one size are below each other
            size, name = 2 * row["weights_gb"], NAMES[row["network"]].split(" 784")[0]
            side = "left" if row is own[-1] else "right"
            axes.text(size, lowest * 1.2, f" {name} ", rotation=90, fontsize=7, ha=side, va="bottom")
            axes.axvline(size, color="0.8", lw=0.6, zorder=0)
    figure.legend(*time.get_legend_handles_labels(), loc="outside lower center", ncols=5, fontsize=8)
    return figure


def _seconds(row: dict[str, Any] | None) -> str:
    if row is not None and "stopped_after" in row:
        return f"> {row['stopped_after']}"
    return "-" if row is None or "seconds" not in row else f"{row['seconds']:.3g}"
