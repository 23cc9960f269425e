"""Networks of width 64 merged into networks of width 128: widened exactly first, then aligned in every way.

    python tests/benchmarks/bench_widths.py mlp --json docs/results/widths.json
    python tests/benchmarks/bench_widths.py gpt2 --folder NETWORKS --json docs/results/widths.json

The MLPs classify scikit-learn's digits; `seed_networks` says what the transformers do. The narrow network is widened by
`alignkit.widen`: it computes the same. Optimal transport is that of the plugin `alignkit-ot`, where it is installed:
`fuse`, which carries weights to other widths by itself and takes no heads with units inside, and the solver `ot` on
widened networks. The excess is the held-out loss of the average less the mean of its parents'.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from time import process_time
from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy

import alignkit
from alignkit.solvers.sinkhorn import Sinkhorn
from bench_seeds import Averages, permuting
from bench_versions import digits
from networks import mlp
from seed_networks import Data, keep, new_model, trained

WIDTHS = 64, 128
LAYERS = {"gpt2": 2, "llama": 2, "llama-tied": 2, "vit": 3}
NARROW, WIDE = (64, 64, 64, 10), (64, 128, 128, 10)
HELD_OUT = 450
SOLVERS = ("weight_matching", "frank_wolfe", "activation_matching", "deepalign", "sinkhorn")
WITH_DATA = ("activation_matching", "deepalign", "sinkhorn")


def trained_mlp(widths: tuple[int, ...], seed: int) -> nn.Sequential:
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


def loss_of_mlp(model: nn.Module) -> float:
    """Return the loss on held-out digits."""
    images, labels = (part[-HELD_OUT:] for part in digits())
    with torch.no_grad():
        return float(cross_entropy(model(images), labels))


@dataclass(frozen=True)
class Merging:
    """Pairs of a wide network and a narrow one, and the ways to average them.

    Attributes:
        pairs: The networks of each pair, as they were trained.
        widen: Makes a narrow network as wide as the wide one beside it.
        rows: By the name of a row, what averages a wide network, a widened one, and the narrow one that it was.
        loss: The held-out loss of a network.
    """

    pairs: Sequence[tuple[Any, Any]]
    widen: Callable[[Any, Any], Any]
    rows: Mapping[str, Callable[[Any, Any, Any], Any]]
    loss: Callable[[Any], float]


def mlps(pairs: int) -> Merging:
    """Return pairs of MLPs."""
    example = torch.zeros(2, WIDE[0])
    wide, narrow = trained_mlp(WIDE, 0), trained_mlp(NARROW, 100)
    graph, of_narrow = alignkit.trace(wide, example), alignkit.trace(narrow, example)
    whole, whole_of_narrow = (alignkit.trace(network, example, symmetries="all") for network in (wide, narrow))
    task = alignkit.Task(wide, tuple(part[:-HELD_OUT] for part in digits()), "cross_entropy")

    def permuted(solver: str) -> Callable[[Any, Any, Any], Any]:
        data = task if solver in WITH_DATA else None
        return lambda a, b, _: alignkit.average([a, alignkit.solve(graph, a, b, solver=solver, task=data).apply(b)])

    def balanced(a: Any, b: Any, _: Any) -> Any:
        left, right = (alignkit.fold(network, whole).network for network in (a, b))
        return alignkit.average([left, alignkit.solve(whole, left, right).apply(right)])

    rows = {"widened, not aligned": lambda a, b, _: alignkit.average([a, b])}
    rows |= {f"widened, {s}{', with data' if s in WITH_DATA else ''}": permuted(s) for s in SOLVERS}
    rows["widened, balanced, weight_matching"] = balanced
    if importlib.util.find_spec("alignkit_ot"):
        from alignkit_ot import fuse

        rows["fused by optimal transport (alignkit-ot)"] = lambda a, _, b: with_weights(
            a, fuse(graph, a, of_narrow, b).merged()
        )
    return Merging(
        [(trained_mlp(WIDE, seed), trained_mlp(NARROW, 100 + seed)) for seed in range(pairs)],
        lambda a, b: alignkit.widen(b, whole_of_narrow, a, whole, digits()[0][:64]).network,
        rows,
        loss_of_mlp,
    )


def transformers(kind: str, pairs: int, folder: Path) -> Merging:
    """Return pairs of transformers, folded; the narrow one of each has the next seed."""
    data, layers = Data(kind), LAYERS[kind]
    every = Averages(kind, WIDTHS[1], layers, data)
    whole, few, many = every.whole, 2, 50 if data.is_text else 200
    of_narrow = alignkit.trace(new_model(kind, WIDTHS[0], layers, 0), symmetries="all", **data.example())
    model = alignkit.fold(every.model, whole).network
    graph = alignkit.trace(model, **data.example())

    def permuted(solver: str, batches: int = 0) -> Callable[[Any, Any, Any], Any]:
        task = every.task(model, batches) if batches else None
        return lambda a, b, _: alignkit.average([a, alignkit.solve(graph, a, b, solver=solver, task=task).apply(b)])

    def turned(*arguments: Any, **options: Any) -> Callable[[Any, Any, Any], Any]:
        average = every.turned(*arguments, **options)
        return lambda a, b, _: average(a, b)

    def widen(wide: Any, narrow: Any) -> Any:
        return alignkit.fold(alignkit.widen(narrow, of_narrow, wide, whole).network, whole).network

    streams = [name for name in whole.roots if whole.rotates(name)]
    weights, unlabelled = ["weight_matching"], every.steps(Sinkhorn, objective="outputs")
    rows = {"widened, not aligned": lambda a, b, _: alignkit.average([a, b])}
    rows["widened, permutations"] = permuted("weight_matching")
    if importlib.util.find_spec("alignkit_ot"):
        from alignkit_ot import OptimalTransport

        rows["widened, permutations in shares, optimal transport (alignkit-ot)"] = lambda a, b, _: alignkit.average(
            [a, with_weights(b, alignkit.solve(graph, a, b, solver=OptimalTransport()).soft.apply(b.state_dict()))]
        )
    rows["widened, all symmetries"] = turned(weights)
    rows["widened, all symmetries, residual permuted"] = turned(weights, graph=permuting(whole, streams))
    rows["widened, permutations, activation_matching, with data"] = permuted("activation_matching", few)
    rows["widened, all symmetries, from activations, with data"] = turned(["activation_matching"], batches=few)
    rows["widened, all symmetries, then 200 steps without labels, with data"] = turned(
        [*weights, unlabelled], batches=many
    )
    networks = [
        [trained(kind, width, layers, (seed + later) % pairs, folder, data) for later, width in enumerate(WIDTHS[::-1])]
        for seed in range(pairs)
    ]
    folded = [(alignkit.fold(wide, whole).network, narrow) for wide, narrow in networks]
    return Merging(folded, widen, rows, lambda network: data.quick_task(network).evaluate(network).loss)


def with_weights(network: nn.Module, weights: Mapping[str, torch.Tensor]) -> nn.Module:
    """Return a copy of a network with other weights."""
    copied = copy.deepcopy(network)
    copied.load_state_dict(weights)
    return copied


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table of one kind; put it into a JSON file, row by row. Rows that are there with as many pairs stay."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=("mlp", *LAYERS))
    parser.add_argument("--pairs", type=int, default=4)
    parser.add_argument("--rows", default="", help="only rows with this regular expression in their names")
    parser.add_argument("--folder", type=Path, help="where the transformers are, or are put")
    parser.add_argument("--json", type=Path, required=True)
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    if given.kind != "mlp" and given.folder is None:
        parser.error("--folder says where the transformers are, or are put")
    merging = mlps(given.pairs) if given.kind == "mlp" else transformers(given.kind, given.pairs, given.folder)
    about = {"kind": given.kind, "width": WIDTHS[1], "narrow": WIDTHS[0], "layers": LAYERS.get(given.kind, 2)}
    tables = json.loads(given.json.read_text()) if given.json.exists() else []
    known = next((table for table in tables if about.items() <= table.items()), {})
    rows = {row["row"]: row for row in known.get("rows", [])}
    parents = known.get("parents", [])
    if len(parents) < given.pairs:
        parents = [[merging.loss(network) for network in pair] for pair in merging.pairs]
    widened = [merging.widen(*pair) for pair in merging.pairs]
    for name, average in merging.rows.items():
        if not re.search(given.rows, name) or rows.get(name, {}).get("pairs", 0) >= given.pairs:
            continue
        triples = [(wide, other, narrow) for (wide, narrow), other in zip(merging.pairs, widened, strict=True)]
        began = process_time()
        merged = [average(*triple) for triple in triples]
        seconds = (process_time() - began) / given.pairs
        excess = [merging.loss(one) - mean(losses) for one, losses in zip(merged, parents, strict=False)]
        rows[name] = {"row": name, "excess": mean(excess), "low": min(excess), "high": max(excess)}
        rows[name] |= {"pairs": given.pairs, "cpu_seconds": seconds}
        print(rows[name], flush=True)
        ordered = [rows[name] for name in merging.rows if name in rows]
        keep(given.json, {**about, "parents": parents, "rows": ordered})


if __name__ == "__main__":
    main()
