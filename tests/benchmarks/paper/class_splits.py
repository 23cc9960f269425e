"""Merging networks that were trained on disjoint splits of the classes ([Navon24], appendix).

    python tests/benchmarks/paper/class_splits.py --folder SETS --data IDX --aligners OUT --output splits.json

Network A saw 95 % of the images of classes 0 to 4 and 5 % of the others, network B the rest. Aligned B and A are
averaged and judged on the test images of all classes. Aligners come from ``--trained-on``, whose networks saw all
classes. Methods that take data have training images of all classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import columns
import measure

import alignkit
import alignkit.zoo as zoo

MIDDLE = measure.LINE_POINTS // 2
KINDS = ("barriers", "losses", "accuracies")


def tasks(networks: zoo.NetworkSet, data: Path | None, images: int) -> tuple[alignkit.Task, alignkit.Task]:
    """Training images of all classes, and all test images."""
    plan = networks.manifest.plan
    assert isinstance(plan.source, zoo.ImageSource)
    source = plan.source.model_copy(update={"classes": None, "share": 1.0})
    inputs, targets = source.load(data, "train")
    model = networks.model()
    return (
        alignkit.Task(model, (inputs[:images], targets[:images]), source.loss, source.metric),
        alignkit.Task(model, source.load(data, "test"), source.loss, source.metric),
    )


def merged(
    method: measure.Method, sets: Sequence[zoo.NetworkSet], count: int, learn: alignkit.Task, test: alignkit.Task
) -> dict[str, list[float]]:
    """Barrier, loss and accuracy of the averages of ``count`` pairs, one network of each set."""
    found: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for number in range(count):
        modules = [networks.model() for networks in sets]
        for module, networks in zip(modules, sets, strict=True):
            module.load_state_dict(networks[number])
        pair = sets[0].graph.bind(*modules)
        solution = method.align(pair, learn, number)
        aligned = modules[1] if solution is None else solution.apply(modules[1])
        line = alignkit.interpolate(test, modules[0], aligned, points=measure.LINE_POINTS)
        found["barriers"].append(line.barrier)
        found["losses"].append(line.losses[MIDDLE])
        assert line.metrics is not None
        found["accuracies"].append(line.metrics[MIDDLE])
    return {kind: columns.rounded(values) for kind, values in found.items()}


def parents(sets: Sequence[zoo.NetworkSet], count: int, test: alignkit.Task) -> dict[str, list[float]]:
    """Loss and accuracy of the networks themselves on all classes."""
    results = [test.evaluate(networks[number]) for networks in sets for number in range(count)]
    return {
        "losses": columns.rounded([result.loss for result in results]),
        "accuracies": columns.rounded([float(result.metric or 0.0) for result in results]),
    }


def main() -> None:
    """Measure what is not in the output yet."""
    parser = measure.switches(
        __doc__, "aligners", "output", "only", pairs=6, images=2000, sinkhorn_steps=columns.SINKHORN_STEPS
    )
    parser.add_argument("--trained-on", default="mnist-mlp", help="set that the aligners were trained on")
    arguments = parser.parse_args()
    measure.single_thread()
    sets = [zoo.NetworkSet.open(arguments.folder / name) for name in ("split-a", "split-b")]
    arguments.pairs = min(arguments.pairs, *map(len, sets))
    few, test = tasks(sets[0], arguments.data, arguments.images)
    many, _ = tasks(sets[0], arguments.data, columns.SINKHORN_IMAGES)
    results: dict[str, Any] = measure.read_json(arguments.output) if arguments.output.exists() else {}
    results |= {
        "command": f"python tests/benchmarks/paper/class_splits.py --trained-on {arguments.trained_on} --pairs "
        f"{arguments.pairs} --images {arguments.images} --sinkhorn-steps {arguments.sinkhorn_steps}",
        "trained_on": arguments.trained_on,
        "about": [columns.describe_set(networks) for networks in sets],
        "pairs": arguments.pairs,
        "images": arguments.images,
        "sinkhorn_images": columns.SINKHORN_IMAGES,
        "sinkhorn_steps": arguments.sinkhorn_steps,
        "parents": parents(sets, arguments.pairs, test),
    }
    for column in columns.all_columns(arguments.aligners, arguments.trained_on, arguments.sinkhorn_steps):
        if arguments.only and column.name not in arguments.only:
            continue
        entry = results.setdefault("columns", {}).setdefault(column.name, {})
        runs = entry.setdefault("runs", {})
        for (seed, method), print_of in zip(column.methods.items(), columns.fingerprints(column), strict=True):
            key = "-" if seed is None else str(seed)
            if key in runs and runs[key]["fingerprint"] == print_of:
                continue
            learn = few if columns.images_for(method, arguments.images) == arguments.images else many
            values = merged(method, sets, arguments.pairs, learn, test)
            runs[key] = {"fingerprint": print_of, **values}
            entry.update(columns.described(column))
            measure.write_json(arguments.output, results)
            shown = {kind: round(sum(found) / len(found), 4) for kind, found in values.items()}
            print(f"{column.name} {key}: {shown}", flush=True)


if __name__ == "__main__":
    main()
