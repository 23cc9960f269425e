"""Average clients that trained on unequal data, with and without alignment.

    python tests/benchmarks/federated/bench_federated.py --json docs/results/federated.json

Clients train on Dask's LocalCluster (`--workers`), or in this process (`--workers 0`), with the same numbers. They
start from weights of their own or from those of the server. Rounds go on from the average. The server has no data.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import clients
from torch import Tensor

import alignkit

Map = Callable[..., list[dict[str, Tensor]]]


def main() -> None:
    """Fill the table and write it."""
    options = _options()
    with _cluster(options.workers) as cluster:
        rows = [
            _row(lambda *jobs: _everywhere(cluster, jobs), count, alpha, start, options)
            for count in options.clients
            for alpha in options.alpha
            for start in ("own", "shared")
        ]
    for row in rows:
        print(row)
    if options.json:
        command = "python tests/benchmarks/federated/bench_federated.py"
        options.json.write_text(json.dumps({"command": command, "rows": rows}, indent=1) + "\n")


def _row(run: Map, count: int, alpha: float, start: str, options: argparse.Namespace) -> dict[str, Any]:
    """One line of the table: mean accuracies over seeds, by round."""
    seeds = range(options.seeds)
    plain = [rounds(run, count, alpha, start, seed, options, align=False) for seed in seeds]
    aligned = [rounds(run, count, alpha, start, seed, options, align=True) for seed in seeds]

    def mean(columns: list[tuple[list[float], list[float]]], part: int) -> list[float]:
        return [round(statistics.fmean(values), 3) for values in zip(*(c[part] for c in columns), strict=True)]

    facts = {"clients": count, "alpha": alpha, "start": start, "seeds": options.seeds, "epochs": options.epochs}
    return {**facts, "alone": mean(plain, 0)[0], "plain": mean(plain, 1), "aligned": mean(aligned, 1)}


def rounds(
    run: Map, count: int, alpha: float, start: str, seed: int, options: argparse.Namespace, *, align: bool
) -> tuple[list[float], list[float]]:
    """Mean accuracy of the clients, and that of the average of the server, after each round."""
    rows = clients.shares(count, alpha, seed)
    sent = [clients.network(100 * seed + (i if start == "own" else 0)).state_dict() for i in range(count)]
    graph = alignkit.trace(clients.network(0), clients.TEST_X[:2])
    alone, global_ = [], []
    for number in range(options.rounds):
        jobs = [(sent[i], rows[i], options.epochs, 1000 * seed + 100 * number + i) for i in range(count)]
        trained = run(*zip(*jobs, strict=True))
        if align:
            trained = alignkit.align_many(graph, *trained).apply(trained)
        average = alignkit.average(trained, [len(own) for own in rows])
        alone.append(statistics.fmean(map(clients.accuracy, trained)))
        global_.append(clients.accuracy(average))
        sent = [average] * count
    return alone, global_


def _cluster(workers: int) -> AbstractContextManager[Any]:
    if not workers:
        return nullcontext()
    from dask.distributed import Client, LocalCluster

    return Client(LocalCluster(n_workers=workers, threads_per_worker=1))


def _everywhere(cluster: Any, jobs: Sequence[Sequence[Any]]) -> list[dict[str, Tensor]]:
    """Train every client, each on a worker if there is a cluster."""
    if cluster is None:
        return list(map(clients.train, *jobs))
    return cluster.gather(cluster.map(clients.train, *jobs))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, nargs="+", default=[2, 8])
    parser.add_argument("--alpha", type=float, nargs="+", default=[100.0, 1.0, 0.3])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()
