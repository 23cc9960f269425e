"""Seconds for 1,000 pairs of MLPs: every method one pair after the other, then in a pool and in batches.

    python tests/benchmarks/paper/runtime.py --folder SETS --data IDX --aligners OUT --output runtime.json

CPU seconds of one thread, without reading networks. ``--pairs`` counts what the cheap methods align; Sinkhorn aligns
``--sinkhorn-pairs``, and its number for 1,000 is marked as computed from those. The pool aligns ``--pool-pairs``.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import columns
import measure
import torch
from measure import Method

import alignkit
import alignkit.zoo as zoo
from alignkit.deepalign import DwsAligner, load_aligner
from alignkit.matching.families import best_element

WORKERS = 2
BATCH = 16
Pairs = Sequence[tuple[int, int]]


def drawn(networks: zoo.NetworkSet, count: int) -> list[tuple[int, int]]:
    """Random pairs of different networks, the same at every call."""
    generator = torch.Generator().manual_seed(0)
    return [tuple(torch.randperm(len(networks), generator=generator)[:2].tolist()) for _ in range(count)]  # type: ignore[misc]


def bound(networks: zoo.NetworkSet, weights: Sequence[dict[str, torch.Tensor]], left: int, right: int) -> Any:
    """Two networks bound to the graph with their modules."""
    modules = networks.model(), networks.model()
    for module, index in zip(modules, (left, right), strict=True):
        module.load_state_dict(weights[index])
    return networks.graph.bind(*modules)


def one_by_one(networks: zoo.NetworkSet, method: Method, pairs: Pairs, task: alignkit.Task) -> float:
    """CPU seconds of solving all pairs, without binding them."""
    weights, seconds = list(networks), 0.0
    for left, right in pairs:
        pair = bound(networks, weights, left, right)
        clock = process_time()
        method.align(pair, task, 0)
        seconds += process_time() - clock
    return seconds


def in_batches(networks: zoo.NetworkSet, checkpoint: Path, pairs: Pairs) -> float:
    """CPU seconds of the weight-space aligner on stacks of pairs: encoding, then assignment."""
    aligner = load_aligner(checkpoint)
    assert isinstance(aligner, DwsAligner)
    weights, seconds = networks.stack(range(len(networks))), 0.0
    for first in range(0, len(pairs), BATCH):
        lefts, rights = zip(*pairs[first : first + BATCH], strict=True)
        clock = process_time()
        a, b = ({name: tensor[list(side)] for name, tensor in weights.items()} for side in (lefts, rights))
        with torch.no_grad():
            scores = aligner.scores(a, b)
        for at in range(len(lefts)):
            best_element(networks.graph, {group: matrix[at] for group, matrix in scores.items()})
        seconds += process_time() - clock
    return seconds


def _part(folder: Path, data: Path | None, images: int, method: Method, pairs: Pairs) -> float:
    measure.single_thread()
    networks = zoo.NetworkSet.open(folder)
    return one_by_one(networks, method, pairs, networks.task("train", images, data))


def in_a_pool(folder: Path, data: Path | None, images: int, method: Method, pairs: Pairs) -> dict[str, float]:
    """Wall-clock seconds in worker processes, their start included, and their CPU seconds of solving."""
    parts = [pairs[worker::WORKERS] for worker in range(WORKERS)]
    clock = perf_counter()
    # Forked workers cannot run autograd, which probes need.
    with ProcessPoolExecutor(WORKERS, mp_context=get_context("spawn")) as pool:
        found = list(pool.map(_part, *zip(*((folder, data, images, method, part) for part in parts), strict=True)))
    return {"wall_seconds": perf_counter() - clock, "cpu_seconds": sum(found)}


def main() -> None:
    """Time what is not in the output yet."""
    parser = measure.switches(
        __doc__, "aligners", "output", "only", set="mnist-mlp", pairs=1000, sinkhorn_pairs=10, images=2000,
        sinkhorn_steps=columns.SINKHORN_STEPS,
    )  # fmt: skip
    parser.add_argument("--pool-pairs", type=int, default=200, help="pairs that a pool of processes aligns; 0: no pool")
    arguments = parser.parse_args()
    measure.single_thread()
    folder = arguments.folder / arguments.set
    networks = zoo.NetworkSet.open(folder)
    few, many = (networks.task("train", n, arguments.data) for n in (arguments.images, columns.SINKHORN_IMAGES))
    pairs = drawn(networks, arguments.pairs)
    results: dict[str, Any] = measure.read_json(arguments.output) if arguments.output.exists() else {}
    results |= {
        "command": f"python tests/benchmarks/paper/runtime.py --set {arguments.set} --pairs {arguments.pairs} "
        f"--sinkhorn-pairs {arguments.sinkhorn_pairs} --pool-pairs {arguments.pool_pairs} "
        f"--sinkhorn-steps {arguments.sinkhorn_steps} --images {arguments.images}",
        "about": columns.describe_set(networks),
        "cores": os.cpu_count(),
        "images": arguments.images,
        "sinkhorn_images": columns.SINKHORN_IMAGES,
        "sinkhorn_steps": arguments.sinkhorn_steps,
        "workers": WORKERS,
        "batch": BATCH,
    }
    for column in columns.all_columns(arguments.aligners, arguments.set, arguments.sinkhorn_steps):
        method = next(iter(column.methods.values()))
        if method.solver is None or (arguments.only and column.name not in arguments.only):
            continue
        entry = results.setdefault("methods", {}).setdefault(column.name, {})
        slow = columns.is_slow(method)
        if "cpu_seconds" not in entry:
            chosen, task = (pairs[: arguments.sinkhorn_pairs], many) if slow else (pairs, few)
            one_by_one(networks, method, chosen[:1], task)  # reads checkpoints and fills caches
            entry |= {"pairs": len(chosen), "cpu_seconds": round(one_by_one(networks, method, chosen, task), 4)}
            entry |= columns.described(column)
            measure.write_json(arguments.output, results)
            print(f"{column.name}: {entry['cpu_seconds']:.1f} CPU s for {len(chosen)} pairs", flush=True)
        if "batched_cpu_seconds" not in entry and column.name == "Deep-Align":
            checkpoint = Path(method.options["checkpoint"])
            in_batches(networks, checkpoint, pairs[:BATCH])
            entry["batched_cpu_seconds"] = round(in_batches(networks, checkpoint, pairs), 4)
            measure.write_json(arguments.output, results)
        if "pool" not in entry and not slow and arguments.pool_pairs:
            chosen = pairs[: arguments.pool_pairs]
            entry["pool"] = {"pairs": len(chosen)} | in_a_pool(folder, arguments.data, arguments.images, method, chosen)
            measure.write_json(arguments.output, results)


if __name__ == "__main__":
    main()
