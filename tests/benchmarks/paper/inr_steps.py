"""Barrier of views of one signal against the number of Sinkhorn steps, from several starts ([Navon24], figure 3).

    python tests/benchmarks/paper/inr_steps.py --folder SETS --data IDX --aligners OUT --set sine-inr --output out.json

Zero steps are the start itself. Sinkhorn plans its temperature for the number of steps, so each number is a run.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import columns
import measure

import alignkit.zoo as zoo

STEPS = (0, 25, 50, 100, 200)
STARTS = (
    "weight matching",
    "activation matching",
    "probes only",
    "probes on data",
    "Deep-Align",
    "probe encoder, trained",
    columns.UNIVERSAL,
)


def after_steps(column: columns.Column, steps: int) -> columns.Column:
    """The methods of a column followed by Sinkhorn; as they are for no steps."""
    if not steps:
        return column
    if column.name == "naive":
        return columns.plain("Sinkhorn", "sinkhorn", data=True, start="identity", max_steps=steps)
    return columns.with_sinkhorn(column, steps)


def main() -> None:
    """Measure what is not in the output yet."""
    parser = measure.switches(__doc__, "aligners", "output", set="sine-inr", pairs=12, samples=512)
    parser.add_argument("--steps", type=int, nargs="*", default=STEPS)
    arguments = parser.parse_args()
    measure.single_thread()
    networks = zoo.NetworkSet.open(arguments.folder / arguments.set)
    results: dict[str, Any] = measure.read_json(arguments.output) if arguments.output.exists() else {}
    results |= {
        "command": f"python tests/benchmarks/paper/inr_steps.py --set {arguments.set} --pairs {arguments.pairs} "
        f"--samples {arguments.samples} --steps {' '.join(map(str, arguments.steps))}",
        "set": arguments.set,
        "about": columns.describe_set(networks),
        "samples": arguments.samples,
    }
    wanted = [
        column for column in columns.all_columns(arguments.aligners, arguments.set) if column.name in ("naive", *STARTS)
    ]
    by_steps = results.setdefault("steps", {})
    for steps in arguments.steps:
        columns_now = [replace(after_steps(column, steps), name=column.name) for column in wanted]
        part = by_steps.setdefault(str(steps), {})
        columns.run(
            f"{arguments.set}, {steps} steps",
            networks,
            columns_now,
            part,
            arguments.output,
            whole=results,
            data=arguments.data,
            pairs=arguments.pairs,
            samples=arguments.samples,
            images=arguments.samples,
        )


if __name__ == "__main__":
    main()
