"""Sinkhorn from soft alignments in half the steps, beside Sinkhorn from alignments.

    python tests/benchmarks/paper/soft_starts.py --folder SETS --data IDX --set mnist-mlp --steps 1000 --output OUT

The curve of a start is the objective in the middle of the best rounded alignment so far, mean over pairs: the loss, or
how far outputs are from the mean of both. Sets that the output holds already are not measured again.
"""

from __future__ import annotations

from pathlib import Path
from time import process_time
from typing import Any

import columns
import measure
import numpy as np
from starts import carried

import alignkit
import alignkit.zoo as zoo
from alignkit.solvers.sinkhorn import SOFT_BATCH

PROBES, ON_DATA = "probes only", "probes on data"
WITHOUT_LABELS = f"{ON_DATA}, soft, by outputs"
"""Sinkhorn sees the same samples as from the others, without their labels: the middle is to do what both do."""


def from_starts(
    networks: zoo.NetworkSet, data: Path | None, pairs: int, samples: int, images: int, steps: int
) -> dict[str, Any]:
    """Barriers, seconds and curves of Sinkhorn by its start."""
    few, many = (networks.task("train", count, data) for count in (images, max(images, columns.SINKHORN_IMAGES)))
    test, found = networks.task("test", samples, data), dict[str, dict[str, list[Any]]]()
    for left, right in measure.ring(networks, "test")[:pairs]:
        a, b = networks.model(), networks.model()
        for module, index in ((a, left), (b, right)):
            module.load_state_dict(networks[index])
        pair = networks.graph.bind(a, b)
        probed = alignkit.solve(pair, solver="deepalign", inputs="random", midpoint_steps=0, task=few)
        seen = alignkit.solve(pair, solver="deepalign", task=few)
        starts: dict[str, tuple[alignkit.Alignment | alignkit.Solution, int, str]] = {
            "weight matching": (alignkit.solve(pair).alignment, steps, "midpoint"),
            ON_DATA: (seen.alignment, steps, "midpoint"),
            f"{PROBES}, soft": (probed, steps // 2, "midpoint"),
            f"{ON_DATA}, soft": (seen, steps // 2, "midpoint"),
            WITHOUT_LABELS: (seen, steps // 2, "outputs"),
        }
        for name, (init, most, objective) in starts.items():
            clock, options = process_time(), {"objective": objective, "max_steps": most, "patience": most}
            solution = alignkit.solve(pair, solver="sinkhorn", init=init, task=many, **options)
            entry = found.setdefault(name, {"barriers": [], "seconds": [], "curves": []})
            entry["seconds"].append(process_time() - clock)
            line = alignkit.interpolate(test, a, solution.apply(b), points=measure.LINE_POINTS)
            entry["barriers"].append(line.barrier)
            entry["curves"].append([(step.iteration, step.objective) for step in solution.history])
        print(f"pair {left} {right}", {name: entry["barriers"][-1] for name, entry in found.items()}, flush=True)
    return {name: summary(**entry) for name, entry in found.items()}


def summary(barriers: list[float], seconds: list[float], curves: list[list[tuple[int, float]]]) -> dict[str, Any]:
    """Numbers of each pair, and the mean curve at the steps at which all were looked at."""
    steps = sorted(set.intersection(*({step for step, _ in curve} for curve in curves)))
    values = np.array([carried(curve, range(steps[-1] + 1)) for curve in curves]).mean(0)
    mean = [float(values[step]) for step in steps]
    return {
        "steps": steps,
        **{n: columns.rounded(v) for n, v in (("mean", mean), ("barriers", barriers), ("seconds", seconds))},
    }


def main() -> None:
    """Measure one set."""
    parser = measure.switches(__doc__, "output", "set", pairs=6, samples=2000, images=2000)
    parser.add_argument("--steps", type=int, default=columns.SINKHORN_STEPS, help="steps from alignments")
    arguments = parser.parse_args()
    measure.single_thread()
    results: dict[str, Any] = measure.read_json(arguments.output) if arguments.output.exists() else {}
    if arguments.set not in results:
        counts = {name: getattr(arguments, name) for name in ("pairs", "samples", "images", "steps")}
        networks = zoo.NetworkSet.open(arguments.folder / arguments.set)
        switches = " ".join(f"--{name} {value}" for name, value in counts.items())
        results[arguments.set] = {
            "command": f"python tests/benchmarks/paper/soft_starts.py --set {arguments.set} {switches}",
            "about": f"{networks.manifest.plan.architecture.describe()}, {networks.manifest.plan.source.describe()}",
            **counts,
            "soft_samples": SOFT_BATCH,
            "starts": from_starts(networks, arguments.data, **counts),
        }
        measure.write_json(arguments.output, results)


if __name__ == "__main__":
    main()
