"""Align a zoo of 200 networks to one of them over Dask, and kill a worker on the way.

    python tests/benchmarks/bench_cluster.py

The zoo is trained on scikit-learn's digits. Half a second after the first pair is done, one of two worker processes is
killed. Dask starts another, and what the dead one had not finished is done again. All solutions are compared with those
that one process finds. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from dask.distributed import Client, LocalCluster

import alignkit
import alignkit.zoo as zoo


def main() -> None:
    """Train the zoo, solve it twice, and compare."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--networks", type=int, default=200)
    parser.add_argument("--solver", default="deepalign")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        plan = zoo.plan_set(
            zoo.Mlp(widths=(32, 32)), zoo.source("digits"), options.networks, recipe=zoo.Recipe(epochs=5)
        )
        zoo.write_set(Path(folder, "zoo"), plan)
        networks = zoo.NetworkSet.open(Path(folder, "zoo"))
        pairs = [(networks[0], networks[i]) for i in range(1, len(networks))]
        alone, alone_seconds = _timed(networks.graph, pairs, options.solver)
        with (
            LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as cluster,
            Client(cluster) as client,
        ):
            killed: list[int] = []
            there, seconds = _timed(
                networks.graph,
                pairs,
                options.solver,
                executor=client.get_executor(),
                path=Path(folder, "rows.jsonl"),
                report=lambda _: _kill_once(client, killed),
            )
        facts = {
            "pairs": len(pairs),
            "solver": options.solver,
            "workers killed": len(killed),
            "pairs without a solution": len(there.reasons),
            "solutions that differ": sum(
                ours.alignment != theirs.alignment
                for ours, theirs in zip(alone.solutions, there.solutions, strict=True)
            ),
            "seconds in one process": round(alone_seconds, 1),
            "seconds on two workers, one killed": round(seconds, 1),
        }
        print(json.dumps(facts, indent=1))


def _timed(graph: alignkit.SymmetryGraph, pairs: Any, solver: str, **how: Any) -> tuple[Any, float]:
    started = time.perf_counter()
    return alignkit.solve_many(graph, pairs, solver=solver, **how), time.perf_counter() - started


def _kill_once(client: Client, killed: list[int]) -> None:
    """Kill one worker, a moment after the first pair came back."""
    if not killed:
        killed.append(next(iter(client.run(os.getpid).values())))
        threading.Timer(0.5, os.kill, (killed[0], signal.SIGKILL)).start()


if __name__ == "__main__":
    main()
