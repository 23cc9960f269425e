"""A network of width 64 merged into one of width 128: an exact expansion first, then every way to align; fusion beside.

    python tests/benchmarks/bench_widths.py --json docs/results/widths.json

The networks are MLPs on scikit-learn's digits. An expanded network has each unit twice, and halves of its outgoing
weights: it computes the same. Fusion (`alignkit_ot.fuse`, where the plugin is installed) carries weights to other
widths by optimal transport. The excess is the loss of the average on held-out digits less the mean of its parents'.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy

import alignkit
from bench_versions import digits
from networks import mlp

NARROW, WIDE = (64, 64, 64, 10), (64, 128, 128, 10)
HELD_OUT = 450
SOLVERS = ("weight_matching", "frank_wolfe", "activation_matching", "deepalign", "sinkhorn")
WITH_DATA = ("activation_matching", "deepalign", "sinkhorn")


def trained(widths: tuple[int, ...], seed: int) -> nn.Sequential:
    """Train an MLP on digits that are not held out."""
    torch.manual_seed(seed)
    images, labels = (part[:-HELD_OUT] for part in digits())
    model = mlp(widths)
    optimiser = torch.optim.Adam(model.parameters(), 2e-3)
    for _ in range(600):
        batch = torch.randint(len(images), (64,))
        optimiser.zero_grad()
        cross_entropy(model(images[batch]), labels[batch]).backward()
        optimiser.step()
    return model.eval()


def expanded(narrow: nn.Sequential) -> nn.Sequential:
    """Return an MLP of twice the width that computes the same."""
    layers = [layer for layer in narrow if isinstance(layer, nn.Linear)]
    model = mlp((layers[0].in_features, *(2 * layer.out_features for layer in layers[:-1]), layers[-1].out_features))
    wide = [layer for layer in model if isinstance(layer, nn.Linear)]
    with torch.no_grad():
        for at, (source, target) in enumerate(zip(layers, wide, strict=True)):
            rows = 1 if source is layers[-1] else 2
            weight = source.weight.repeat_interleave(2, 1) / 2 if at else source.weight
            target.weight.copy_(weight.repeat_interleave(rows, 0))
            target.bias.copy_(source.bias.repeat_interleave(rows, 0))
    return model.eval()


def loss(model: nn.Module) -> float:
    """Return the loss on held-out digits."""
    images, labels = (part[-HELD_OUT:] for part in digits())
    with torch.no_grad():
        return float(cross_entropy(model(images), labels))


def averages(wide: nn.Sequential, narrow: nn.Sequential) -> Iterator[tuple[str, Any]]:
    """Average a network and a narrow one in every way; yield the name of each and the average."""
    example = torch.zeros(2, WIDE[0])
    graph = alignkit.trace(wide, example)
    whole = alignkit.trace(wide, example, symmetries="all")
    other = expanded(narrow)
    task = alignkit.Task(wide, tuple(part[:-HELD_OUT] for part in digits()), "cross_entropy")
    yield "expanded, not aligned", alignkit.average([wide, other])
    for solver in SOLVERS:
        data = task if solver in WITH_DATA else None
        moved = alignkit.solve(graph, wide, other, solver=solver, task=data).apply(other)
        yield f"expanded, {solver}{', with data' if data else ''}", alignkit.average([wide, moved])
    left, right = (alignkit.fold(network, whole).network for network in (wide, other))
    moved = alignkit.solve(whole, left, right).apply(right)
    yield "expanded, balanced, weight_matching", alignkit.average([left, moved])
    if importlib.util.find_spec("alignkit_ot"):
        from alignkit_ot import fuse

        merged = copy.deepcopy(wide)
        merged.load_state_dict(fuse(graph, wide, alignkit.trace(narrow, example), narrow).merged())
        yield "fused by optimal transport (alignkit-ot)", merged


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table; write it to a JSON file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=6)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    excess: dict[str, list[float]] = {}
    parents: list[tuple[float, float]] = []
    for seed in range(given.seeds):
        wide, narrow = trained(WIDE, seed), trained(NARROW, 100 + seed)
        parents.append((loss(wide), loss(narrow)))
        for name, merged in averages(wide, narrow):
            excess.setdefault(name, []).append(loss(merged) - mean(parents[-1]))
    rows = [
        {"row": name, "excess": mean(values), "low": min(values), "high": max(values)}
        for name, values in excess.items()
    ]
    for row in rows:
        print(row)
    if given.json is not None:
        given.json.write_text(json.dumps({"pairs": given.seeds, "parents": parents, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
