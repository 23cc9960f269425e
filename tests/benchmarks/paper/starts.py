"""Deep-Align as a start: objective against steps for weight matching, Frank-Wolfe and Sinkhorn from several starts.

    python tests/benchmarks/paper/starts.py --folder SETS --data IDX --aligners OUT --set mnist-mlp --output starts.json

Every solver starts where it does by itself, at the identity, from probes and from the trained or shipped aligners that
there are. The objective is the squared distance of the weights, and for Sinkhorn also the loss of the midpoint. A step
of weight matching is a sweep over the groups. Each curve is the best rounded alignment so far, by mean over pairs.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from time import process_time
from typing import Any

import columns
import measure
import numpy as np

import alignkit
import alignkit.zoo as zoo

OWN, IDENTITY = "own start", "identity"
FRANK_WOLFE_STEPS = (1, 2, 3, 5, 8, 13, 21, 34, 55)
SINKHORN = {"sinkhorn, distance": "distance", "sinkhorn, midpoint loss": "midpoint"}
Curve = list[tuple[int, float]]


def start_columns(aligners: Path, trained_on: str) -> list[columns.Column]:
    """Methods whose alignments are starts; of the trained ones one seed each."""
    names = ("weight matching", "probes only", "probes on data", "Deep-Align", columns.UNIVERSAL)
    return [column for column in columns.all_columns(aligners, trained_on) if column.name in names]


def weight_matching(pair: alignkit.Pair, init: alignkit.Alignment | None) -> tuple[alignkit.Solution, Curve]:
    """One run and its squared distance after each sweep."""
    solution = alignkit.solve(pair, solver="weight_matching", init=init)
    return solution, [(step.iteration, step.objective) for step in solution.history]


def frank_wolfe(pair: alignkit.Pair, init: alignkit.Alignment | None) -> tuple[alignkit.Solution, Curve]:
    """The method of [Crisostomi24], cut off after several numbers of steps and rounded; no weight matching after it."""
    curve = []
    for steps in FRANK_WOLFE_STEPS:
        solution = alignkit.solve(pair, solver="frank_wolfe", init=init, max_steps=steps, polish=False, concavity=0.0)
        curve.append((steps, solution.objective_after))
    return solution, curve


def sinkhorn(
    pair: alignkit.Pair, init: alignkit.Alignment | None, task: alignkit.Task, objective: str, steps: int
) -> tuple[alignkit.Solution, Curve]:
    """One run and the objective of the best rounded alignment."""
    solution = alignkit.solve(
        pair, solver="sinkhorn", init=init, task=task, objective=objective, max_steps=steps, patience=steps
    )
    return solution, [(step.iteration, step.objective) for step in solution.history]


def carried(curve: Curve, places: range) -> list[float]:
    """The curve at each place: its last value at or before it, NaN before the first."""
    values, steps = [], dict(curve)
    last = float("nan")
    for place in places:
        last = steps.get(place, last)
        values.append(last)
    return values


class Collected:
    """Curves, ends and barriers of one solver from one start."""

    def __init__(self) -> None:
        self.curves: list[Curve] = []
        self.barriers: list[float] = []
        self.distances: list[float] = []
        self.seconds: list[float] = []

    def facts(self) -> dict[str, Any]:
        """Means over pairs, as JSON values."""
        last = max(curve[-1][0] for curve in self.curves)
        table = np.array([carried(curve, range(last + 1)) for curve in self.curves])
        keep = [step for step in range(last + 1) if np.isfinite(table[:, step]).all()]
        keep = [step for step in keep if any(step in dict(curve) for curve in self.curves)]
        return {
            "steps": keep,
            "mean": columns.rounded([float(table[:, step].mean()) for step in keep]),
            "deviation": columns.rounded([float(table[:, step].std()) for step in keep]),
            "barriers": columns.rounded(self.barriers),
            "distances": columns.rounded(self.distances),
            "seconds": columns.rounded(self.seconds),
        }


def measured(
    networks: zoo.NetworkSet, starts: list[columns.Column], data: Path | None, pairs: int, samples: int, steps: int
) -> tuple[dict[str, Any], dict[str, Any]]:
    """What each start costs, and curves by solver and start."""
    learn, test = (networks.task(split, samples, data) for split in ("train", "test"))
    many = networks.task("train", max(samples, columns.SINKHORN_IMAGES), data)
    found: dict[str, dict[str, Collected]] = {}
    begun: dict[str, Collected] = {}

    def note(into: Collected, pair: alignkit.Pair, solution: alignkit.Solution, curve: Curve, used: float) -> None:
        into.curves.append(curve)
        into.seconds.append(used)
        into.distances.append(solution.objective_after)
        moved = solution.apply(pair.module_b)
        into.barriers.append(alignkit.interpolate(test, pair.module_a, moved, points=measure.LINE_POINTS).barrier)

    for left, right in measure.ring(networks, "test")[:pairs]:
        modules = networks.model(), networks.model()
        for module, index in zip(modules, (left, right), strict=True):
            module.load_state_dict(networks[index])
        pair = networks.graph.bind(*modules)
        inits: dict[str, alignkit.Alignment | None] = {
            OWN: None,
            IDENTITY: alignkit.Alignment.identity(networks.graph),
        }
        for column in starts:
            method = next(iter(column.methods.values()))
            clock = process_time()
            solution = method.align(pair, learn, 0)
            assert solution is not None
            note(begun.setdefault(column.name, Collected()), pair, solution, [(0, solution.objective_after)],
                 process_time() - clock)  # fmt: skip
            inits[column.name] = solution.alignment
        for name, init in inits.items():
            for solver in ("weight_matching", "frank_wolfe", *SINKHORN):
                if (solver, name) in {("weight_matching", "weight matching"), *((s, OWN) for s in SINKHORN)}:
                    continue  # nothing would move; and Sinkhorn's own start is weight matching
                clock = process_time()
                if solver == "weight_matching":
                    solution, curve = weight_matching(pair, init)
                elif solver == "frank_wolfe":
                    solution, curve = frank_wolfe(pair, init)
                else:
                    solution, curve = sinkhorn(pair, init, many, SINKHORN[solver], steps)
                used = process_time() - clock
                if init is not None and solver != "sinkhorn, midpoint loss" and curve[0][0] > 0:
                    curve = [(0, float(alignkit.matching.Objective(pair).distance2(init))), *curve]
                note(found.setdefault(solver, {}).setdefault(name, Collected()), pair, solution, curve, used)
        print(f"pair {left} {right}", flush=True)
    return (
        {name: one.facts() for name, one in begun.items()},
        {solver: {name: one.facts() for name, one in by_start.items()} for solver, by_start in found.items()},
    )


def aligned_with(starts: list[columns.Column]) -> Mapping[str, Any]:
    """What is known about the aligner of each start."""
    return {column.name: column.facts[0] for column in starts if column.facts}


def main() -> None:
    """Measure all starts."""
    parser = measure.switches(__doc__, "aligners", "output", set="mnist-mlp", pairs=8, samples=2000)
    parser.add_argument("--steps", type=int, default=200, help="steps of Sinkhorn")
    arguments = parser.parse_args()
    measure.single_thread()
    networks = zoo.NetworkSet.open(arguments.folder / arguments.set)
    starts = start_columns(arguments.aligners, arguments.set)
    begun, curves = measured(networks, starts, arguments.data, arguments.pairs, arguments.samples, arguments.steps)
    facts = {
        "command": f"python tests/benchmarks/paper/starts.py --set {arguments.set} --pairs {arguments.pairs} "
        f"--samples {arguments.samples} --steps {arguments.steps}",
        "about": columns.describe_set(networks),
        "pairs": arguments.pairs,
        "starts": begun,
        "aligners": aligned_with(starts),
        "curves": curves,
    }
    measure.write_json(arguments.output, facts)


if __name__ == "__main__":
    main()
