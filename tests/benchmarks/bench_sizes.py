"""Weight matching on networks of many sizes: CPU seconds, memory, and what one pass of the products alone would take.

    python tests/benchmarks/bench_sizes.py [--against FOLDER] [--networks mlp resnet18 ...] [--json out.json]

Two random networks of each architecture are matched on one thread, each in a process of its own. FOLDER holds another
version of alignkit, which is measured in the same run. CPU seconds are those of ``alignkit.solve``, binding and checks
included; imports and the graph, which is built once for an architecture, are left out. Memory is the peak of the
process, with torch and both networks. The limit is one product at every use of every group, in
float32 at the speed that a large product reaches here.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import resource
import subprocess
import sys
import time
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1]))

NETWORKS = ("mlp", "resnet18", "resnet50", "vgg11", "vit_b_16")


def network(name: str, seed: int) -> tuple[nn.Module, Tensor]:
    """A random network and an example of its input."""
    torch.manual_seed(seed)
    if name == "mlp":
        sizes = (784, 128, 128, 128)
        hidden = [layer for i, j in itertools.pairwise(sizes) for layer in (nn.Linear(i, j), nn.ReLU())]
        return nn.Sequential(*hidden, nn.Linear(sizes[-1], 10)).eval(), torch.zeros(1, sizes[0])
    from helpers import torchvision_shim

    torchvision_shim.install()
    import torchvision

    return getattr(torchvision.models, name)().eval(), torch.zeros(1, 3, 224, 224)


def measure(name: str) -> dict[str, Any]:
    """Solve one pair here; the first solve of a process counts, of small networks also the median of 20 more."""
    import alignkit

    (a, example), (b, _) = network(name, 0), network(name, 1)
    graph = alignkit.trace(a, example)
    alignkit.solve(graph, a, a, solver="identity")  # what is imported at the first use is left out

    def solve() -> tuple[float, Any]:
        start = time.process_time()
        solution = alignkit.solve(graph, a, b, solver="weight_matching")
        return time.process_time() - start, solution

    seconds, solution = solve()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    numbers = 0
    for block in (block for node in graph.tensors.values() for block in node.blocks):
        numbers += sum(prod(d.size for d in block.dims) * d.size for d in block.dims if d.group is not None)
    matrix = torch.randn(1024, 1024)
    start = time.process_time()
    for _ in range(10):
        matrix @ matrix
    speed = 10 * 1024**3 / (time.process_time() - start)
    return {
        "network": name,
        "seconds": seconds,
        "later": sorted(solve()[0] for _ in range(20))[10] if name == "mlp" else None,
        "limit": numbers / speed,
        "sweeps": len(solution.history),
        "before": solution.objective_before,
        "after": solution.objective_after,
        "peak_gb": peak / 1e6,
        "weights_gb": 4e-9 * sum(p.numel() for p in a.parameters()),
    }


def in_process(name: str, folder: str) -> dict[str, Any]:
    """Measure with the alignkit of a folder."""
    environment = {**os.environ, "PYTHONPATH": folder, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, "--one", name]
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    """Print one line for each network and version."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=NETWORKS)
    parser.add_argument("--against", type=Path)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.one:
        print(json.dumps(measure(given.one)))
        return
    here = str(Path(__file__).parents[2])
    rows = []
    for name in given.networks:
        for version, folder in (("this", here), ("other", given.against)):
            if folder is None:
                continue
            rows.append({"version": version, **in_process(name, str(folder))})
            row = rows[-1]
            print(
                f"{name:9} {version:5} {row['seconds']:8.3f} s (one pass {row['limit']:.3f} s), {row['sweeps']} sweeps "
                f"{row['peak_gb']:5.2f} GB (weights {2 * row['weights_gb']:.2f})  {row['after']:.10g}",
                flush=True,
            )
            if given.json:
                given.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
