"""Weight matching on networks of many sizes, beside other programs and the physical limit: CPU seconds and memory.

    python tests/benchmarks/bench_sizes.py [--networks mlp resnet18 ...] [--against FOLDER] [--profile] [--json FILE]

Two random networks of each architecture are matched on one thread, each time in a process of its own. CPU seconds are
those of the call; for alignkit with binding and checks. Imports are left out, and so is the graph, which is built once
for an architecture. Memory is the peak of the process, with torch and both networks. "plain" is the published algorithm
written plainly (plain_matching.py). FOLDER holds another version of alignkit, which is measured in the same run.
ALIGNKIT_BENCH_REBASIN and ALIGNKIT_BENCH_SINKHORN are folders with the packages (see third_party.py).

The limit is one product at every use of every group, in float32 at the speed that a large product reaches here, and
one linear assignment of each group. With ``--profile`` alignkit matches each pair once more, under a profiler, and the
CPU seconds of the parts of that call are printed. Other programs are given up after ``--patience`` CPU seconds.
"""

from __future__ import annotations

import argparse
import cProfile
import importlib
import itertools
import json
import os
import pstats
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import third_party

sys.path.insert(0, str(Path(__file__).parents[1]))

NETWORKS = ("mlp", "resnet18", "resnet50", "vit_b_16", "gpt2", "vgg11")
PEERS = {"rebasin": "ALIGNKIT_BENCH_REBASIN", "sinkhorn": "ALIGNKIT_BENCH_SINKHORN"}
"""Packages, and the variables that name their folders."""
PATIENCE = 120
"""CPU seconds, set-up included, after which another program than alignkit is given up, unless told otherwise."""
PARTS = {
    "multiplying": ("products.add_product",),
    "bringing what is multiplied into form": ("products._factor",),
    "linear assignment": ("assignment.linear_assignment",),
    "gains of steps in float64": ("objective.gain",),
    "sums over all weights": ("objective.sums", "objective.distances2"),
    "checks of input and solver": ("symmetry_graph.bind", "outcome_check._state"),
    "moving B": ("alignment.apply",),
}
"""Parts of a call, each with the functions of alignkit, by module, that do it and do not call each other."""


def network(name: str, seed: int) -> tuple[nn.Module, Tensor]:
    """A random network and an example of its input."""
    torch.manual_seed(seed)
    if name == "mlp":
        sizes = (784, 128, 128, 128)
        hidden = [layer for i, j in itertools.pairwise(sizes) for layer in (nn.Linear(i, j), nn.ReLU())]
        return nn.Sequential(*hidden, nn.Linear(sizes[-1], 10)).eval(), torch.zeros(1, sizes[0])
    from helpers import torchvision_shim

    torchvision_shim.install()
    if name == "gpt2":
        import transformers

        return transformers.GPT2LMHeadModel(transformers.GPT2Config()).eval(), torch.arange(16)[None]
    import torchvision

    return getattr(torchvision.models, name)().eval(), torch.zeros(1, 3, 224, 224)


# ---------------------------------------------------------------------- one process


def measure(name: str, method: str, folder: str, patience: int, profiles: bool) -> dict[str, Any]:
    """Match one pair here; the first call of a process counts, of small networks also the median of 20 more."""
    if folder:
        sys.path.insert(0, folder)
    if method != "alignkit":
        resource.setrlimit(resource.RLIMIT_CPU, (patience, patience + 5))
    (a, example), (b, _) = network(name, 0), network(name, 1)
    match = METHODS[method](a, b, example)
    start = time.process_time()
    aligned, facts = match()
    seconds = time.process_time() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    repeats = 20 if name == "mlp" and method in ("alignkit", "plain") else 0
    later = []
    for _ in range(repeats):
        start = time.process_time()
        match()
        later.append(time.process_time() - start)
    return {
        "network": name,
        "seconds": seconds,
        "later": sorted(later)[repeats // 2] if later else None,
        "before": distance2(a.state_dict(), b.state_dict()),
        "after": distance2(a.state_dict(), aligned),
        "peak_gb": peak / 1e6,
        "weights_gb": 1e-9 * sum(t.nbytes for t in {t.data_ptr(): t for t in a.state_dict().values()}.values()),
        **facts(),
        **({"parts": parts(match)} if profiles and method == "alignkit" else {}),
    }


def parts(match: Match) -> dict[str, float]:
    """CPU seconds of the parts of one call, under a profiler, which slows Python down."""
    profile = cProfile.Profile(time.process_time)
    profile.runcall(match)
    stats: dict[tuple[str, int, str], Any] = pstats.Stats(profile).stats  # type: ignore[attr-defined]
    spent = {f"{Path(file).stem}.{name}": cumulative for (file, _, name), (*_, cumulative, _) in stats.items()}
    seconds = {part: sum(spent.get(function, 0.0) for function in functions) for part, functions in PARTS.items()}
    whole = max(spent.values())
    return {**seconds, "everything else": whole - sum(seconds.values()), "whole": whole}


def distance2(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> float:
    """Squared distance of all weights; tied ones count once."""
    once = {tensor.data_ptr(): (name, tensor) for name, tensor in a.items() if tensor.is_floating_point()}
    return sum(float((tensor.double() - b[name].detach().double()).square().sum()) for name, tensor in once.values())


Match = Callable[[], tuple[Mapping[str, Tensor], Callable[[], dict[str, Any]]]]
"""Matches; returns aligned B, and what is worked out about it after the clock has stopped."""


def alignkit_matching(a: nn.Module, b: nn.Module, example: Tensor) -> Match:
    import alignkit

    graph = alignkit.trace(a, example)
    alignkit.solve(graph, a, a, solver="identity")  # what is imported at the first use is left out

    def match() -> tuple[Mapping[str, Tensor], Callable[[], dict[str, Any]]]:
        solution = alignkit.solve(graph, a, b, solver="weight_matching")
        return solution.apply(b.state_dict()), lambda: {
            "sweeps": len(solution.history),
            "products": products(graph),
            "assignments": assignments(graph, a, b, solution.alignment),
        }

    return match


def plain(a: nn.Module, b: nn.Module, example: Tensor) -> Match:
    import alignkit
    from plain_matching import plain_matching

    graph = alignkit.trace(a, example)
    weights = [dict(model.state_dict()) for model in (a, b)]
    return lambda: (plain_matching(graph, *weights).apply(weights[1]), dict)


def package(name: str) -> Callable[[nn.Module, nn.Module, Tensor], Match]:
    def prepared(a: nn.Module, b: nn.Module, example: Tensor) -> Match:
        importlib.import_module("rebasin.loss" if name == "sinkhorn" else "rebasin")
        return lambda: (third_party.RUNS[name](a, b, example).state_dict(), dict)

    return prepared


METHODS: dict[str, Callable[[nn.Module, nn.Module, Tensor], Match]] = {
    "alignkit": alignkit_matching,
    "plain": plain,
    **{name: package(name) for name in PEERS},
}


# ---------------------------------------------------------------------- the limit


def products(graph: Any) -> float:
    """Seconds of one product at every use of every group, at the speed of a large one."""
    numbers = 0
    for block in (block for node in graph.tensors.values() for block in node.blocks):
        numbers += sum(prod(d.size for d in block.dims) * d.size for d in block.dims if d.group is not None)
    matrix = torch.randn(2048, 2048)
    best = float("inf")
    for multiply in (lambda: matrix @ matrix, lambda: nn.functional.linear(matrix.to_mkldnn(), matrix).to_dense()):
        for _ in range(4):
            start = time.process_time()
            multiply()
            best = min(best, time.process_time() - start)
    return numbers * best / 2048**3


def assignments(graph: Any, a: nn.Module, b: nn.Module, alignment: Any) -> float:
    """Seconds of one linear assignment of each group, with the similarities where matching ended."""
    from alignkit.matching import Objective, linear_assignment

    objective, seconds = Objective(graph.bind(a, b), products="auto"), 0.0
    for group in graph.groups:
        similarity = objective.similarity(group, dict(alignment.elements))
        start = time.process_time()
        linear_assignment(similarity)
        seconds += time.process_time() - start
    return seconds


# ---------------------------------------------------------------------- all of them


def in_process(name: str, method: str, folder: str, packages: str, given: argparse.Namespace) -> dict[str, Any]:
    """Measure with the alignkit of a folder; a program that does not run says why."""
    environment = {**os.environ, "PYTHONPATH": folder, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, "--one", name, method, packages, "--patience", str(given.patience)]
    command += ["--profile"] * given.profile
    done = subprocess.run(command, env=environment, check=False, capture_output=True, text=True, errors="replace")
    if done.returncode == -signal.SIGXCPU:
        return {"network": name, "stopped_after": given.patience}
    if done.returncode == -signal.SIGKILL:
        return {"network": name, "why_not": "killed by the system, which had no memory left"}
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        reason = lines[-1][:200] if lines else f"exit code {done.returncode}"
        return {"network": name, "why_not": reason if " " in reason else f"{reason} in the package"}
    measured: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return measured


def main() -> None:
    """Print one line for each network and program."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=NETWORKS)
    parser.add_argument("--programs", nargs="+", help="default: all that are there")
    parser.add_argument("--against", type=Path)
    parser.add_argument("--patience", type=int, default=PATIENCE, help="CPU seconds of another program than alignkit")
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--json", type=Path, help="rows that are measured anew replace those that are there")
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.one:
        print(json.dumps(measure(*given.one, given.patience, given.profile)))
        return
    here = str(Path(__file__).parents[2])
    programs = [("alignkit", "alignkit", here, ""), ("plain", "plain", here, "")]
    if given.against:
        programs.append(("other", "alignkit", str(given.against), ""))
    programs += [(name, name, here, os.environ[folder]) for name, folder in PEERS.items() if folder in os.environ]
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    if given.json and given.json.exists():
        rows = {(row["network"], row["program"]): row for row in json.loads(given.json.read_text())}
    programs = [program for program in programs if given.programs is None or program[0] in given.programs]
    for name in given.networks:
        for program, method, folder, packages in programs:
            row = {"program": program, **in_process(name, method, folder, packages, given)}
            rows[name, program] = row
            if "seconds" not in row:
                why = f"not done after {given.patience} CPU s" if "stopped_after" in row else row["why_not"]
                print(f"{name:9} {program:9} {why}", flush=True)
            else:
                limit = f", limit {row['products']:.3f} + {row['assignments']:.3f} s" if "products" in row else ""
                print(
                    f"{name:9} {program:9} {row['seconds']:8.3f} s  {row['peak_gb']:5.2f} GB "
                    f"(weights {2 * row['weights_gb']:.2f})  {row['after']:.10g}{limit}",
                    flush=True,
                )
                for part, spent in row.get("parts", {}).items():
                    print(f"    {part:40} {spent:9.4f} s", flush=True)
            if given.json:
                given.json.write_text(json.dumps([*rows.values()], indent=1) + "\n")


if __name__ == "__main__":
    main()
