"""Barriers of all methods of [Navon24] on one set of networks: its tables 1 and 2, and those out of distribution.

    python tests/benchmarks/paper/table.py --folder SETS --data IDX --aligners OUT --set mnist-mlp --output out.json

SETS is what ``paper_data.py`` made, OUT what ``aligners.py`` left. Columns that are in the output already are not
measured again, so that one can be added later. ``--trained-on`` takes aligners of another set.
"""

from __future__ import annotations

from typing import Any

import columns
import measure

import alignkit.zoo as zoo


def main() -> None:
    """Measure one set."""
    parser = measure.switches(
        __doc__, "aligners", "output", "set", "only", pairs=24, sinkhorn_pairs=8, samples=2000, images=2000,
        sinkhorn_steps=columns.SINKHORN_STEPS,
    )  # fmt: skip
    parser.add_argument("--trained-on", help="set that the aligners were trained on; the same if left out")
    arguments = parser.parse_args()
    measure.single_thread()
    networks = zoo.NetworkSet.open(arguments.folder / arguments.set)
    trained_on = arguments.trained_on or arguments.set
    foreign = f" --trained-on {trained_on}" if trained_on != arguments.set else ""
    results: dict[str, Any] = measure.read_json(arguments.output) if arguments.output.exists() else {}
    results |= {
        "command": f"python tests/benchmarks/paper/table.py --set {arguments.set}{foreign} --pairs {arguments.pairs} "
        f"--sinkhorn-pairs {arguments.sinkhorn_pairs} --samples {arguments.samples} --images {arguments.images} "
        f"--sinkhorn-steps {arguments.sinkhorn_steps}",
        "set": arguments.set,
        "trained_on": trained_on,
        "about": columns.describe_set(networks),
        "samples": arguments.samples,
        "images": arguments.images,
        "sinkhorn_images": columns.SINKHORN_IMAGES,
        "points": measure.LINE_POINTS,
        "sinkhorn_steps": arguments.sinkhorn_steps,
    }
    wanted = columns.all_columns(arguments.aligners, trained_on, arguments.sinkhorn_steps)
    if arguments.only:
        wanted = [column for column in wanted if column.name in arguments.only]
    columns.run(
        arguments.set,
        networks,
        wanted,
        results,
        arguments.output,
        data=arguments.data,
        pairs=arguments.pairs,
        sinkhorn_pairs=arguments.sinkhorn_pairs,
        samples=arguments.samples,
        images=arguments.images,
    )


if __name__ == "__main__":
    main()
