"""Tables and the figure of the universal aligner, drawn from ``docs/results/universal.json``."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np

RESULTS = json.loads((Path(__file__).parents[1] / "results" / "universal.json").read_text(encoding="utf-8"))
SHOWN = {
    "naive": "naive",
    "weight matching, from the identity": "WM from the identity",
    "weight matching, best of 10": "WM, best of 10",
    "activation matching": "AM",
    "activation, then weight matching": "AM, WM",
    "probes": "S",
    "learned": "P",
    "probes, data": "S, data",
    "learned, data": "P, data",
    "probes, midpoint": "S, data, midpoint",
    "learned, midpoint": "P, data, midpoint",
    "Sinkhorn, 100 steps": "Sinkhorn",
}


def barriers() -> str:
    """Mean barriers of the columns, a row a shape; the best of each row but for Sinkhorn is bold."""
    lines = [f"| shape | {' | '.join(SHOWN.values())} |", "|---|" + "---:|" * len(SHOWN)]
    for name, measured in RESULTS.items():
        row = [measured["barrier"].get(column) for column in SHOWN]
        best = min(value for value in row[:-1] if value is not None)
        cells = ["" if v is None else f"**{v:.4g}**" if v == best else f"{v:.4g}" for v in row]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    means = []
    for column in SHOWN:
        values = [measured["barrier"][column] for measured in RESULTS.values() if column in measured["barrier"]]
        means.append(f"{np.exp(np.mean(np.log(values))):.4g}" if len(values) == len(RESULTS) else "")
    lines.append(f"| geometric mean | {' | '.join(means)} |")
    return "\n".join(lines)


def geometric(name: str) -> float:
    """Geometric mean of the mean barriers of a method over the shapes."""
    return float(np.exp(np.mean([np.log(measured["barrier"][name]) for measured in RESULTS.values()])))


def in_short() -> str:
    """What the encoders that need no training of their own are worth, in a sentence."""
    probes, data, weights, activations = map(
        geometric, ("probes", "probes, midpoint", "weight matching, best of 10", "activation matching")
    )
    return (
        f"Over {len(RESULTS)} shapes on which no setting was chosen the mean barrier of probes is {probes:.3f}, and "
        f"{data:.3f} with 512 unlabelled inputs; weight matching (best of 10) has {weights:.3f}, activation matching "
        f"{activations:.3f}."
    )


def seeds() -> str:
    """Geometric means over the shapes of the encoder trained from several seeds, in words."""
    names = ["learned", *(name for name in next(iter(RESULTS.values()))["barrier"] if name.startswith("learned, seed"))]
    means = [np.exp(np.mean([np.log(measured["barrier"][name]) for measured in RESULTS.values()])) for name in names]
    return (
        f"P trained from {len(means)} seeds: geometric means {', '.join(f'{mean:.4f}' for mean in means)}, deviation "
        f"{np.std(means, ddof=1):.4f}."
    )


def ratios() -> str:
    """Ratios of mean barriers with 95 % intervals."""
    names = list(next(iter(RESULTS.values()))["ratios"])
    lines = [f"| shape | {' | '.join(names)} |", "|---|" + "---:|" * len(names)]
    for name, measured in RESULTS.items():
        cells = [_interval(measured["ratios"][ratio]) for ratio in names]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _interval(measured: list[float]) -> str:
    value, low, high = measured
    return f"{value:.2f} [{low:.2f}, {high:.2f}]"


def seconds() -> str:
    """CPU milliseconds a pair on one thread."""
    columns = {name: text for name, text in SHOWN.items() if name != "naive"}
    lines = [f"| shape | {' | '.join(columns.values())} |", "|---|" + "---:|" * len(columns)]
    for name, measured in RESULTS.items():
        cells = [f"{measured['milliseconds'][c]:.0f}" if c in measured["milliseconds"] else "" for c in columns]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def counts() -> str:
    """How many networks and pairs."""
    networks, pairs = (
        " to ".join(dict.fromkeys([f"{min(counted)}", f"{max(counted)}"]))
        for counted in zip(*((measured["networks"], measured["pairs"]) for measured in RESULTS.values()), strict=True)
    )
    return f"{networks} held-out networks a shape, {pairs} pairs"


def figure() -> str:
    """Ratios to weight matching, a row a shape, as SVG."""
    drawn: dict[str, Any] = {
        "probes / weight matching": "C0",
        "learned / weight matching": "C1",
        "probes, midpoint / weight matching": "C2",
    }
    size, panel = plt.subplots(figsize=(7.5, 0.4 * len(RESULTS) + 1.2), layout="constrained")
    for shift, (ratio, colour) in enumerate(drawn.items()):
        for at, measured in enumerate(RESULTS.values()):
            value, low, high = measured["ratios"][ratio]
            place = at + 0.2 * (shift - 1)
            panel.plot([low, high], [place, place], color=colour)
            panel.plot(value, place, "o", color=colour, label=ratio if at == 0 else None)
    panel.axvline(1, color="0.6", linewidth=1)
    panel.set_yticks(range(len(RESULTS)), list(RESULTS))
    panel.invert_yaxis()
    panel.set_xlabel("mean barrier relative to weight matching, best of 10")
    size.legend(loc="outside lower center", ncols=3, fontsize="small")
    stream = io.StringIO()
    size.savefig(stream, format="svg")
    plt.close(size)
    return stream.getvalue()[stream.getvalue().index("<svg") :]
