"""Weight matching on pairs of MNIST MLPs: ours, the published algorithm written plainly, and two packages.

    ALIGNKIT_DATA=... python tests/benchmarks/bench_weight_matching.py [--pairs 15] [--json out.json]

Set ALIGNKIT_BENCH_REBASIN and ALIGNKIT_BENCH_SINKHORN to folders that hold the packages (see third_party.py) to have
them in the table. Everything runs in one thread. Seconds are CPU seconds of the call; for ours that holds binding,
checks and applying, but not the graph, which is built once for an architecture. Imports are left out for all. Barriers
are of the test loss on the line between A and aligned B, at 25 points.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

import alignkit
import networks
from alignkit import builders

State = dict[str, Tensor]


def plain_reference(a: State, b: State, seed: int) -> State:
    """[Ainsworth23], Algorithm 1, for a linear chain: layers in random order, each in full, until none moves."""
    weights = [n for n in a if n.endswith("weight")]
    biases = [n.replace("weight", "bias") for n in weights]
    elements = [np.arange(len(a[n])) for n in weights[:-1]]
    rng = np.random.default_rng(seed)
    left = [a[n].numpy() for n in weights]
    right = [b[n].numpy() for n in weights]
    progress = True
    while progress:
        progress = False
        for k in rng.permutation(len(elements)):
            before = right[k] if k == 0 else right[k][:, elements[k - 1]]
            after = right[k + 1] if k + 1 == len(elements) else right[k + 1][elements[k + 1]]
            gain = left[k] @ before.T + left[k + 1].T @ after
            gain += np.outer(a[biases[k]].numpy(), b[biases[k]].numpy())
            found = linear_sum_assignment(gain, maximize=True)[1]
            rows = np.arange(len(found))
            if gain[rows, found].sum() > gain[rows, elements[k]].sum() + 1e-12:
                elements[k], progress = found, True
    out = dict(b)
    for k, element in enumerate(elements):
        out[weights[k]] = out[weights[k]][element]
        out[biases[k]] = out[biases[k]][element]
        out[weights[k + 1]] = out[weights[k + 1]][:, element]
    return out


def distance2(a: State, b: State) -> float:
    return sum(float((a[n].double() - b[n].double()).square().sum()) for n in a)


@dataclass
class Row:
    """One method over all pairs."""

    method: str
    distance2: list[float]
    barrier: list[float]
    seconds: list[float]


def ours(model: nn.Module, **options: Any) -> Callable[[nn.Module, nn.Module], State]:
    graph = builders.mlp(model)

    def run(a: nn.Module, b: nn.Module) -> State:
        solution = alignkit.solve(graph, a, b, solver="weight_matching", **options)
        return solution.apply(b.state_dict())

    return run


def in_process(method: str, run: Callable[[nn.Module, nn.Module], State], pairs: list[Any], task: Any) -> Row:
    run(*pairs[0])
    row = Row(method, [], [], [])
    for a, b in pairs:
        start = time.process_time()
        aligned = run(a, b)
        row.seconds.append(time.process_time() - start)
        row.distance2.append(distance2(a.state_dict(), aligned))
        row.barrier.append(alignkit.interpolate(task, a, aligned).barrier)
    return row


def other_process(package: str, folder: str, pairs: list[Any], task: Any) -> Row:
    """A third-party package; what it returns is checked to compute what B computes."""
    with tempfile.TemporaryDirectory() as scratch:
        paths = []
        for at, pair in enumerate(pairs):
            for side, model in zip("ab", pair, strict=True):
                paths.append(str(Path(scratch) / f"{at}{side}.safetensors"))
                safetensors.torch.save_file(model.state_dict(), paths[-1])
        script = Path(__file__).with_name("third_party.py")
        done = subprocess.run(
            [sys.executable, str(script), package, folder, *paths], check=True, capture_output=True, text=True
        )
        row = Row(package, [], [], [])
        probe = torch.randn(64, 784, generator=torch.Generator().manual_seed(0))
        for (a, b), found in zip(pairs, json.loads(done.stdout.splitlines()[-1]), strict=True):
            aligned = safetensors.torch.load_file(found["aligned"])
            out = torch.func.functional_call(b, aligned, probe)
            if not torch.allclose(out, b(probe), atol=1e-3):
                print(f"{package}: a returned network computes something else than B", file=sys.stderr)
            row.seconds.append(found["seconds"])
            row.distance2.append(distance2(a.state_dict(), aligned))
            row.barrier.append(alignkit.interpolate(task, a, aligned).barrier)
        return row


def rows(pairs: list[Any], task: Any) -> Iterator[Row]:
    def unaligned(a: nn.Module, b: nn.Module) -> State:
        return b.state_dict()

    yield in_process("identity", unaligned, pairs, task)
    yield in_process(
        "reference, written plainly",
        lambda a, b: plain_reference(a.state_dict(), b.state_dict(), 0),
        pairs,
        task,
    )
    yield in_process("weight_matching", ours(pairs[0][0]), pairs, task)
    yield in_process("weight_matching, 10 restarts", ours(pairs[0][0], restarts=10), pairs, task)
    yield in_process("weight_matching, 100 restarts", ours(pairs[0][0], restarts=100, patience=100), pairs, task)
    for package in ("rebasin", "sinkhorn"):
        folder = os.environ.get(f"ALIGNKIT_BENCH_{package.upper()}")
        if folder:
            yield other_process(package, folder, pairs, task)


def planted() -> None:
    """Planted permutations of residual networks with 30 inputs and two blocks of hidden size 50: how many are found."""
    spec: dict[str, str] = {}
    for block in "12":
        spec |= {f"{block}.fc1.weight": f"h{block} s", f"{block}.fc1.bias": f"h{block}"}
        spec |= {f"{block}.fc2.weight": f"s h{block}", f"{block}.fc2.bias": "s"}
    spec |= {"out.weight": ". s", "out.bias": "."}
    shapes = {"out.weight": (10, 30), "out.bias": (10,)}
    for block in "12":
        shapes |= {f"{block}.fc1.weight": (50, 30), f"{block}.fc1.bias": (50,)}
        shapes |= {f"{block}.fc2.weight": (30, 50), f"{block}.fc2.bias": (30,)}
    for label, options in {
        "started at the identity": {"start": "identity"},
        "default": {},
        "identity, 5 restarts": {"start": "identity", "restarts": 5},
    }.items():
        found, start = 0, time.process_time()
        for seed in range(100):
            generator = torch.Generator().manual_seed(seed)
            a = {n: torch.randn(s, generator=generator) / s[-1] ** 0.5 for n, s in shapes.items()}
            graph = alignkit.SymmetryGraph.from_spec(spec, a)
            b = alignkit.Alignment.random(graph, seed).apply(a)
            solution = alignkit.solve(graph, a, b, solver="weight_matching", **options)
            found += solution.objective_after <= 1e-9 * solution.objective_before
        print(f"planted residual nets, {label}: {found} of 100, {(time.process_time() - start) * 10:.1f} ms each")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--pairs", type=int, default=15)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    models = [m for m in map(networks.mnist_mlp, range(8)) if networks.accuracy(m) >= 0.975][:6]
    pairs = list(itertools.combinations(models, 2))[: options.pairs]
    lowest = min(map(networks.accuracy, models))
    print(f"{len(pairs)} pairs of {len(models)} networks, test accuracy {lowest:.4f} or more")
    task = alignkit.Task(models[0], [networks.mnist("t10k")], loss="cross_entropy")
    table = []
    print(f"{'method':32} {'squared distance':>24} {'barrier':>10} {'CPU s a pair':>13} {'time ratio':>11}")
    for row in rows(pairs, task):
        table.append(row)
        base = next((float(np.mean(r.seconds)) for r in table if r.method.startswith("reference")), float("nan"))
        d = row.distance2
        print(
            f"{row.method:32} {np.mean(d):9.1f} ({min(d):.1f} - {max(d):.1f}) {np.mean(row.barrier):10.4f} "
            f"{np.mean(row.seconds):13.4f} {np.mean(row.seconds) / base:11.2f}"
        )
    planted()
    if options.json:
        options.json.write_text(json.dumps([asdict(row) for row in table], indent=1))


if __name__ == "__main__":
    main()
