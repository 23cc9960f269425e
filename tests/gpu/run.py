"""Every solver on the device and on the CPU: do they agree, how long do they take, what crosses between the two?

    python tests/gpu/run.py                      CUDA if there is one; else the CPU at small size, and it says so
    python tests/gpu/run.py --device pretended   no GPU needed: a device that only checks and counts (see pretended.py)

Prints one line for each solver and problem. Exit code 1 if one fails on the device or disagrees with the CPU:

- a planted pair (B is A reordered, with little noise): both find the same order;
- a pair of unrelated networks: the squared distances that are left differ by less than ``--tolerance``.

Seconds are wall-clock times of the solver. On CUDA everything is run once before it is timed, and the device is waited
for. Transfers are counted in a run of their own.
"""

from __future__ import annotations

import argparse
import json
import sys
from contextlib import ExitStack, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

import alignkit
import pretended
from alignkit.solver.solution import Solution
from alignkit.testing import ProblemPair, attention, convnet, independent_pair, mlp, planted_pair

STEPS = {"small": 30, "large": 200}
"""``max_steps`` of every solver: enough to see each part of it at work."""


@dataclass
class Line:
    """One solver on one problem."""

    solver: str
    problem: str
    reason: str = ""
    same_order: bool = False
    difference: float = float("nan")
    seconds_cpu: float = float("nan")
    seconds_device: float = float("nan")
    to_device: int = 0
    to_host: int = 0
    scalars: int = 0
    megabytes: float = 0.0


def problems(size: str) -> list[ProblemPair]:
    """Planted and unrelated pairs of an MLP, a CNN with BatchNorm and a transformer block."""
    if size == "small":
        kinds = [mlp(8, 16, 12, 3), convnet(4, 5), attention(6, 3, 4, 7)]
    else:
        kinds = [mlp(784, 1024, 1024, 10), convnet(256, 512), attention(256, 8, 32, 1024)]
    return [build(kind) for kind in kinds for build in (_planted, independent_pair)]


def _planted(kind: Any) -> ProblemPair:
    return planted_pair(kind, noise=0.02)


def task(pair: ProblemPair, device: torch.device | str, rows: int = 64) -> alignkit.Task:
    """Reproduce what A computes."""
    inputs = pair.architecture.inputs(rows, seed=5)
    with torch.no_grad():
        outputs = pair.a(inputs)
    return alignkit.Task(pair.a, (inputs, outputs), "mse", device=device)


def solved(pair: ProblemPair, solver: str, device: torch.device | str, steps: int) -> Solution:
    limit = {"max_steps": steps} if "max_steps" in alignkit.list_solvers()[solver].options.model_fields else {}
    return alignkit.solve(pair.bind(), solver=solver, task=task(pair, device), device=device, **limit)


def timed(pair: ProblemPair, solver: str, device: torch.device | str, steps: int) -> tuple[Solution, float]:
    start = perf_counter()
    solution = solved(pair, solver, device, steps)
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()
    return solution, perf_counter() - start


def check(pair: ProblemPair, solver: str, device: torch.device, steps: int) -> Line:
    """Run one solver on one problem, on the CPU and on the device."""
    line = Line(solver, pair.name)
    there = pretended.pretended() if device.type == pretended.NAME else nullcontext()
    where = "cpu"
    try:
        on_cpu, line.seconds_cpu = timed(pair, solver, where, steps)
        where = str(device)
        with there:
            if device.type == "cuda":
                solved(pair, solver, device, steps)
            on_device, line.seconds_device = timed(pair, solver, device, steps)
            with ExitStack() as stack:
                counted = stack.enter_context(pretended.Transfers())
                solved(pair, solver, device, steps)
    except Exception as error:  # what this script looks for; the other solvers are checked all the same
        line.reason = f"on {where}: {type(error).__name__}: {str(error).splitlines()[0][:300]}"
        return line
    line.same_order = on_cpu.alignment == on_device.alignment
    scale = max(on_cpu.objective_after, 1e-12 * on_cpu.objective_before, 1e-300)
    line.difference = abs(on_device.objective_after - on_cpu.objective_after) / scale
    line.to_device, line.to_host, line.scalars = counted.to_device, counted.to_host, counted.scalars
    line.megabytes = counted.bytes / 2**20
    return line


def judged(line: Line, pair: ProblemPair, tolerance: float) -> str:
    """What is wrong with a line, or nothing."""
    if line.reason:
        return line.reason
    if pair.answer is not None and not line.same_order:
        return "another order than on the CPU"
    if pair.answer is None and not line.difference <= tolerance:
        return f"squared distance differs by {line.difference:.2g}"
    return ""


def chosen(wanted: str | None) -> torch.device:
    if wanted is not None:
        return torch.device(wanted)
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def main(arguments: list[str] | None = None) -> int:
    """Check all solvers; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", help="cuda, cpu, pretended; default: cuda if there is one")
    parser.add_argument("--size", choices=tuple(STEPS), help="default: large on CUDA, small elsewhere")
    parser.add_argument("--steps", type=int, help=f"max_steps of the solvers; default: {STEPS}")
    parser.add_argument("--solvers", nargs="+", help="default: all that are registered")
    parser.add_argument("--tolerance", type=float, default=0.02)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    if options.device == pretended.NAME and not pretended.registered():
        print(f"torch {torch.__version__} cannot have devices that are written in Python")
        return 1
    device = chosen(options.device)
    size = options.size or ("large" if device.type == "cuda" else "small")
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
    print(f"device: {name}; size: {size}; torch {torch.__version__}; {torch.get_num_threads()} threads")
    if device.type == "cpu":
        print("There is no CUDA device here: this run shows that the script works, and nothing about a GPU.")
    print(
        f"{'solver':22}{'problem':40}{'CPU s':>8}{'device s':>9}{'order':>7}{'differs':>9}  transfers in/out, reads, MB"
    )
    lines, failures = [], 0
    for solver in options.solvers or alignkit.list_solvers():
        for pair in problems(size):
            line = check(pair, solver, device, options.steps or STEPS[size])
            wrong = judged(line, pair, options.tolerance)
            failures += bool(wrong)
            lines.append({**asdict(line), "wrong": wrong})
            print(
                f"{solver:22}{pair.name:40}{line.seconds_cpu:8.3f}{line.seconds_device:9.3f}"
                f"{'same' if line.same_order else 'other':>7}{line.difference:9.1e}  "
                f"{line.to_device}/{line.to_host}, {line.scalars}, {line.megabytes:.2f}  {wrong}".rstrip(),
                flush=True,
            )
    print(f"{len(lines)} checks, {failures} failed")
    if options.json:
        facts = {"device": name, "size": size, "torch": torch.__version__}
        options.json.write_text(json.dumps({**facts, "lines": lines}, indent=1))
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
