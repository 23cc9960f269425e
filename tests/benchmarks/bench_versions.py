"""Permutation solvers of an older version beside today's, on the same pairs: what each leaves.

    git worktree add OLDER 4871e20    # the sources of 0.1.0
    python tests/benchmarks/bench_versions.py --older OLDER --json docs/results/versions.json

Each version solves in a process of its own, with default options and seed 0. What comes out is measured here, in
float64: squared distances, or for solvers that follow a loss that loss in the middle, on the samples that they learn
from.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import alignkit
from alignkit import testing

HERE = Path(__file__).resolve()
TODAY = HERE.parents[2]
DISTANCE, LOSS = "squared distance", "loss in the middle"
SAMPLES = 256
SAME = 1e-6
"""Values that differ by less than this part of what was there before are rounding of float32 weights."""


class Run(NamedTuple):
    """One way to solve: a solver, whether it gets a task, and what it is measured by."""

    solver: str
    data: bool
    measure: str

    @property
    def title(self) -> str:
        """Its name in the table."""
        return f"{self.solver}, with data" if self.data else self.solver


RUNS = (
    Run("weight_matching", False, DISTANCE),
    Run("frank_wolfe", False, DISTANCE),
    Run("sinkhorn", False, DISTANCE),
    Run("deepalign", False, DISTANCE),
    Run("activation_matching", True, DISTANCE),
    Run("deepalign", True, LOSS),
    Run("sinkhorn", True, LOSS),
    Run("straight_through", True, LOSS),
)
ARCHITECTURES = {
    "MLP": lambda: testing.mlp(16, 32, 24, 8),
    "CNN": lambda: testing.convnet(8, 12),
    "residual network": lambda: testing.residual(8, 16, 24, 2),
    "transformer block": lambda: testing.attention(12, 3, 4, 16),
}
DIGITS = (64, 64, 64, 10)


def samples(name: str, pair: Any) -> tuple[tuple[Tensor, Tensor], str]:
    """Return inputs, targets and the loss of a pair: digits, or what two networks do on average on normal inputs."""
    if name == "digits MLP":
        images, labels = digits()
        return (images[:SAMPLES], labels[:SAMPLES]), "cross_entropy"
    inputs = pair.architecture.inputs(SAMPLES, seed=5)
    with torch.no_grad():
        return (inputs, (pair.a(inputs) + pair.b(inputs)) / 2), "mse"


def digits() -> tuple[Tensor, Tensor]:
    """Return scikit-learn's images of digits, ``[1797, 64]`` between 0 and 1, and their labels."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    return torch.tensor(images, dtype=torch.float32) / 16, torch.tensor(labels)


def trained(seed: int) -> dict[str, Tensor]:
    """Train an MLP on digits, and return its weights."""
    torch.manual_seed(seed)
    model, (images, labels) = testing.mlp(*DIGITS).model, digits()
    for layer in model:
        if isinstance(layer, nn.Linear):
            layer.reset_parameters()
    optimiser = torch.optim.Adam(model.parameters(), 2e-3)
    for _ in range(300):
        batch = torch.randint(len(images), (64,))
        optimiser.zero_grad()
        nn.functional.cross_entropy(model(images[batch]), labels[batch]).backward()
        optimiser.step()
    return {name: tensor.detach() for name, tensor in model.state_dict().items()}


def pairs(folder: Path, seeds: int) -> Iterator[tuple[str, str, Any]]:
    """Yield every pair with the name of its architecture and of itself: random, planted with noise, and trained."""
    for name, build in ARCHITECTURES.items():
        for seed in range(seeds):
            yield name, f"unrelated {seed}", testing.independent_pair(build(), seed=seed)
            yield name, f"planted {seed}", testing.planted_pair(build(), seed=seed, noise=0.5)
    for seed in range(seeds):
        pair = testing.independent_pair(testing.mlp(*DIGITS), seed=seed)
        for model, at in ((pair.a, 2 * seed), (pair.b, 2 * seed + 1)):
            model.load_state_dict(torch.load(folder / f"{at}.pt", weights_only=True))
        yield "digits MLP", f"seeds {2 * seed} and {2 * seed + 1}", pair


def solve_all(folder: Path, seeds: int, output: Path) -> None:
    """Solve every pair in every way with the version that is on the path, and write the elements; for a process."""
    torch.set_num_threads(1)
    result: dict[str, Any] = {"version": alignkit.__version__, "file": alignkit.__file__, "solved": {}}
    for name, which, pair in pairs(folder, seeds):
        sums = [float(sum(t.double().abs().sum() for t in m.state_dict().values())) for m in (pair.a, pair.b)]
        for run in RUNS:
            task = alignkit.Task(pair.a, *samples(name, pair)) if run.data else None
            alignment = alignkit.solve(pair.bind(), solver=run.solver, task=task, seed=0).alignment
            elements = alignment.elements if hasattr(alignment, "elements") else alignment.perms
            listed = {group: element.tolist() for group, element in elements.items()}
            result["solved"][f"{name}/{which}/{run.title}"] = {"weights": sums, "elements": listed}
    output.write_text(json.dumps(result))


def solved_by(source: Path, folder: Path, seeds: int) -> dict[str, Any]:
    """Run `solve_all` with the sources in a folder."""
    output = folder / "solved.json"
    command = [sys.executable, "-W", "ignore", str(HERE), "--solve", str(output), "--pairs", str(folder), "--seeds"]
    environment = {**os.environ, "PYTHONPATH": str(source), "OMP_NUM_THREADS": "1"}
    subprocess.run([*command, str(seeds)], check=True, env=environment)
    result: dict[str, Any] = json.loads(output.read_text())
    print(f"version {result['version']} of {result['file']}", flush=True)
    if not Path(result["file"]).is_relative_to(source):
        raise SystemExit(f"{source} was to be measured, and {result['file']} was imported.")
    return result


def value(run: Run, name: str, pair: Any, elements: Mapping[str, Any] | None) -> float:
    """Measure what an alignment leaves, in float64; None is the identity."""
    graph = pair.graph
    identity = alignkit.Alignment.identity(graph)
    given = {group: torch.tensor(element) for group, element in (elements or {}).items()}
    alignment = identity if elements is None else alignkit.Alignment(graph, given)
    a, b = ({n: t.double() for n, t in model.state_dict().items()} for model in (pair.a, alignment.apply(pair.b)))
    if run.measure == DISTANCE:
        return float(sum((a[n] - b[n]).square().sum() for n in a if pair.a.state_dict()[n].is_floating_point()))
    middle = copy.deepcopy(pair.a).double()
    middle.load_state_dict({n: (a[n] + b[n]) / 2 for n in a})
    (inputs, targets), loss = samples(name, pair)
    with torch.no_grad():
        outputs = middle(inputs.double())
    if loss == "cross_entropy":
        return float(nn.functional.cross_entropy(outputs, targets))
    return float(nn.functional.mse_loss(outputs, targets.double()))


def compare(older: Path, seeds: int) -> list[dict[str, Any]]:
    """Return a row for each architecture and way to solve, with the means of both versions over all pairs."""
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        for seed in range(2 * seeds):
            torch.save(trained(seed), folder / f"{seed}.pt")
        versions = [solved_by(source.resolve(), folder, seeds) for source in (older, TODAY)]
        every = list(pairs(folder, seeds))
    for name in (*ARCHITECTURES, "digits MLP"):
        of_name = [(which, pair) for each, which, pair in every if each == name]
        for run in RUNS:
            values, before = [], []
            for which, pair in of_name:
                both = [version["solved"][f"{name}/{which}/{run.title}"] for version in versions]
                assert both[0]["weights"] == both[1]["weights"], "the versions were given different networks"
                values.append([value(run, name, pair, each["elements"]) for each in both])
                before.append(value(run, name, pair, None))
            allowed = [SAME * size for size in before]
            rows.append(
                {
                    "network": name,
                    "solver": run.title,
                    "measure": run.measure,
                    "pairs": len(values),
                    "before": mean(before),
                    "older": mean(old for old, _ in values),
                    "today": mean(new for _, new in values),
                    "better": sum(new < old - least for (old, new), least in zip(values, allowed, strict=True)),
                    "worse": sum(new > old + least for (old, new), least in zip(values, allowed, strict=True)),
                }
            )
            print(rows[-1], flush=True)
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table of both versions; write it to a JSON file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--older", type=Path, help="a checkout of the older version")
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--solve", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--pairs", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.solve is not None:
        solve_all(given.pairs, given.seeds, given.solve)
        return
    rows = compare(given.older, given.seeds)
    if given.json is not None:
        given.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
