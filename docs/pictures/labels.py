"""Draw the labels that a trace gives to a small network, coloured by what moves together."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from torch import nn

from alignkit.tracing import RuleTable
from alignkit.tracing.interpreter import live_steps
from alignkit.tracing.recording.run import record
from alignkit.tracing.rules.built_in import BUILT_IN
from alignkit.tracing.solving.orbits import Symmetry
from alignkit.tracing.tracer import interpret

SHOWN = (("0.weight", 0), ("0.bias", 0), ("3.weight", 1), ("3.weight", 0), ("3.bias", 0))
TITLES = ("conv.weight, rows", "conv.bias", "linear.weight, columns", "linear.weight, rows", "linear.bias")


def network() -> nn.Sequential:
    """Return three convolution channels, flattened into a linear layer."""
    return nn.Sequential(nn.Conv2d(1, 3, 1), nn.ReLU(), nn.Flatten(), nn.Linear(3 * 4, 2))


def draw() -> plt.Figure:
    """Return the picture: one strip of positions for each axis; a colour for each unit, grey for fixed."""
    model = network()
    run = record(model, (torch.zeros(1, 1, 2, 2),), {})
    steps = live_steps(run.steps, [ref for _, ref in run.results])
    traced, labels, _ = interpret(model, run.results, RuleTable(BUILT_IN), steps, run.state, {})
    figure, rows = plt.subplots(len(SHOWN), 1, figsize=(7.5, 4.2), layout="constrained")
    for row, (name, dim), title in zip(rows, SHOWN, TITLES, strict=True):
        block = labels[name].owner[dim]
        _strip(row, traced.closed.classes[block.atoms].ravel(), traced.symmetry, title)
    return figure


def _strip(row: Axes, classes: np.ndarray, symmetry: Symmetry, title: str) -> None:
    for position, name in enumerate(classes.tolist()):
        unit = _unit(symmetry, name)
        colour = "0.85" if unit is None else plt.colormaps["Set2"](unit % 8)
        row.add_patch(plt.Rectangle((position, 0), 1, 1, facecolor=colour, edgecolor="white", linewidth=2))
        row.text(position + 0.5, 0.5, str(name), ha="center", va="center", fontsize=8)
    row.set(xlim=(0, 12), ylim=(0, 1))
    row.set_title(title, loc="left", fontsize=9)
    row.axis("off")


def _unit(symmetry: Symmetry, name: int) -> int | None:
    """Return the unit with which a class moves, None if it is fixed."""
    key = int(symmetry.orbit_of[name])
    if key < 0:
        return None
    orbit = symmetry.orbits[key]
    if orbit.group:
        return name
    owners = next(iter(orbit.coordinates.values()))
    return int(owners[np.flatnonzero(orbit.members == name)[0]])
