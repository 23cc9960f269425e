"""Networks without numbers that are trained, or of zeros: no order of units is better than another, in any job."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

import alignkit
from alignkit import SymmetryGraph
from helpers.small_pairs import SPECS

JOBS: dict[str, Callable[..., object]] = {
    "solve": lambda graph, *sides: alignkit.solve(graph, *sides[:2]),
    "distance": lambda graph, *sides: alignkit.distance(graph, *sides[:2]),
    "merge": lambda graph, *sides: alignkit.merge(graph, *sides),
    "transport": lambda graph, *sides: alignkit.transport(graph, *sides[:2], tuned=sides[2]),
    "canonicalize": lambda graph, *sides: alignkit.canonicalize(graph, sides[1:], sides[0]),
    "compare": lambda graph, *sides: alignkit.compare(graph, *sides[:2]),
}
JOBS |= {
    f"align_many by {method}": lambda graph, *sides, method=method: alignkit.align_many(graph, *sides, method=method)
    for method in ("reference", "merge_many", "universe")
}


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.float32])
@pytest.mark.parametrize("job", JOBS)
@pytest.mark.parametrize("name", ["two layers", "heads"])
def test_jobs_on_networks_that_tell_nothing_about_orders(name: str, job: str, dtype: torch.dtype) -> None:
    spec, shapes, sizes = SPECS[name]
    graph = SymmetryGraph.from_spec(spec, shapes, sizes=sizes)
    sides = [{n: torch.zeros(shape, dtype=dtype) for n, shape in shapes.items()} for _ in range(3)]
    JOBS[job](graph, *sides)
