"""Linear assignment: scipy and the solvers of lapx, on similarities of units and on matrices that are hard.

    python tests/benchmarks/bench_assignment.py [--sizes 8 32 128 512 1024 2048 4096] [--json out.json]

Milliseconds of CPU time for one matrix, one thread, the best of several calls; the negation that lapx needs counts. A
``!`` marks a total below that of scipy by more than 1e-12 of it. The last column is `linear_assignment` itself.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import lap
import numpy as np
import torch
from scipy.optimize import linear_sum_assignment

from alignkit.matching import linear_assignment

Solve = Callable[[np.ndarray], np.ndarray]


def of_lapx(name: str, similarity: np.ndarray, **options: object) -> np.ndarray:
    return getattr(lap, name)(-similarity, return_cost=False, **options)[1]


SOLVERS: dict[str, Solve] = {
    "scipy": lambda similarity: linear_sum_assignment(similarity, maximize=True)[1],
    "lapjvc": partial(of_lapx, "lapjvc"),
    "lapjvx": partial(of_lapx, "lapjvx"),
    "lapjvs float32": partial(of_lapx, "lapjvs"),
    "lapjvs": partial(of_lapx, "lapjvs", prefer_float32=False),
    "lapjvh": partial(of_lapx, "lapjvh"),
    "lapjvr": partial(of_lapx, "lapjvr"),
    "alignkit": lambda similarity: linear_assignment(torch.from_numpy(similarity)).numpy(),
}


def matrices(size: int) -> Iterator[tuple[str, np.ndarray]]:
    """Similarities of two layers with ``size`` units and half as many weights each, and hard ones."""
    rng = np.random.default_rng(size)
    a, b = rng.standard_normal((2, size, size // 2))
    yield "unrelated", a @ b.T
    yield "related", a @ (a[rng.permutation(size)] + 0.5 * b).T
    yield "ReLU", np.maximum(a, 0) @ np.maximum(b, 0).T
    yield "tied", rng.integers(0, 10, (size, size)).astype(float)
    copies = rng.integers(0, max(1, size // 10), (2, size))
    yield "noisy copies", a[copies[0]] @ a[copies[1]].T + 1e-9 * rng.standard_normal((size, size))
    yield "rank one", np.outer(a[:, 0], b[:, 0])


def milliseconds(solve: Solve, similarity: np.ndarray) -> float:
    calls, best = max(1, min(200, 2_000_000 // similarity.size)), float("inf")
    for _ in range(5 if similarity.size < 1_000_000 else 2):
        start = time.process_time()
        for _ in range(calls):
            solve(similarity)
        best = min(best, (time.process_time() - start) / calls)
    return 1000 * best


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[8, 32, 128, 512, 1024, 2048, 4096])
    parser.add_argument("--skip", nargs="*", default=[], help="kinds of matrices to leave out")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    print(f"{'n':>5} {'kind':12} " + " ".join(f"{name:>15}" for name in SOLVERS))
    for size in options.sizes:
        for kind, similarity in matrices(size):
            if kind in options.skip:
                continue
            spent, totals = {}, {}
            for name, solve in SOLVERS.items():
                totals[name] = float(similarity[np.arange(size), solve(similarity)].sum())
                spent[name] = milliseconds(solve, similarity)
            worse = {name: totals["scipy"] - total > 1e-12 * abs(totals["scipy"]) for name, total in totals.items()}
            cells = (f"{spent[name]:>14.4g}{'!' if worse[name] else ' '}" for name in SOLVERS)
            print(f"{size:>5} {kind:12} {' '.join(cells)}", flush=True)
            rows.append({"size": size, "kind": kind, "milliseconds": spent, "totals": totals})
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
