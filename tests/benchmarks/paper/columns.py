"""The columns of the paper's tables: its methods, those of this package, and trained aligners of several seeds."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import aligners
import measure
from measure import Method

import alignkit.zoo as zoo
from alignkit.deepalign import SHIPPED_CHECKPOINT, load_aligner
from alignkit.deepalign.aligner import USUAL

SINKHORN_STEPS = 300
SINKHORN_IMAGES = 10_000
"""Training samples of Sinkhorn, which draws minibatches; other methods see each of theirs in every call."""
UNIVERSAL, WITH_MIDPOINT = "universal", "Deep-Align + consensus + midpoint"


@dataclass(frozen=True)
class Column:
    """One column: a method, or one method for each seed of the training of its aligner.

    Attributes:
        name: Its name.
        methods: By the seed of the training; one with seed None where nothing is trained.
        facts: What is known about the training, in the same order; empty where nothing is trained.
    """

    name: str
    methods: dict[int | None, Method]
    facts: tuple[dict[str, Any], ...] = ()


def plain(name: str, solver: str | None, *, data: bool = False, **options: Any) -> Column:
    """A column without training."""
    return Column(name, {None: Method(name, solver, options, data)})


def with_sinkhorn(column: Column, steps: int) -> Column:
    """The same followed by Sinkhorn, which always has data."""
    methods = {
        seed: replace(
            method,
            name=f"{method.name} + Sinkhorn",
            solver=f"{method.solver} > sinkhorn",
            options={**method.options, "max_steps": steps},
            data=True,
        )
        for seed, method in column.methods.items()
    }
    return Column(f"{column.name} + Sinkhorn", methods, column.facts)


def on_data(column: Column) -> Column:
    """The same with data of the task, which brings midpoint steps."""
    return replace(column, methods={seed: replace(method, data=True) for seed, method in column.methods.items()})


def of_aligners(name: str, folder: Path, trained_on: str, encoder: str, **options: Any) -> Column:
    """A column of the aligners of one encoder that were trained on a set; without methods if there are none."""
    found = aligners.checkpoints(folder, trained_on, encoder)
    methods = {
        facts["seed"]: Method(name, "deepalign", {"encoder": encoder, "checkpoint": path, **options})
        for facts, path in found
    }
    return Column(name, methods, tuple(facts for facts, _ in found))


def universal() -> Column:
    """The shipped aligner; without methods where the package has none."""
    path = SHIPPED_CHECKPOINT
    if not path.exists():
        return Column(UNIVERSAL, {})
    facts = {"fingerprint": load_aligner(path).fingerprint}
    return Column(
        UNIVERSAL,
        {None: Method(UNIVERSAL, "deepalign", {"encoder": "learned", "inputs": "random", "midpoint_steps": 0})},
        (facts,),
    )


def all_columns(folder: Path, trained_on: str, steps: int = SINKHORN_STEPS) -> list[Column]:
    """Every column that can be measured now.

    Args:
        folder: Trained aligners.
        trained_on: The set that the aligners were trained on.
        steps: Steps of Sinkhorn.
    """
    weights = plain("weight matching", "weight_matching")
    trained = of_aligners("Deep-Align", folder, trained_on, "dws")
    probed_on_data = plain("probes on data", "deepalign", data=True, encoder="probes")
    unseen = {"inputs": "random", "midpoint_steps": 0}
    probed = of_aligners("probe encoder, trained", folder, trained_on, "learned", **unseen)
    found = [
        plain("naive", None),
        weights,
        plain("activation matching", "activation_matching", data=True),
        plain("probes only", "deepalign", encoder="probes", **unseen),
        plain("probes, stand-ins", "deepalign", encoder="probes", inputs="random"),
        probed_on_data,
        trained,
        of_aligners("Deep-Align + consensus", folder, trained_on, "dws", consensus_rounds=USUAL.rounds),
        on_data(
            of_aligners(
                WITH_MIDPOINT, folder, trained_on, "dws", consensus_rounds=USUAL.rounds, midpoint_steps=USUAL.steps
            )
        ),
        probed,
        on_data(of_aligners("probe encoder, trained, on data", folder, trained_on, "learned")),
        universal(),
        plain("Sinkhorn", "sinkhorn", data=True, start="identity", max_steps=steps),
        with_sinkhorn(weights, steps),
        with_sinkhorn(probed_on_data, steps),
        with_sinkhorn(trained, steps),
        with_sinkhorn(probed, steps),
        with_sinkhorn(universal(), steps),
    ]
    return [column for column in found if column.methods]


def described(column: Column) -> dict[str, Any]:
    """The settings of a column without paths, as JSON values."""
    method = next(iter(column.methods.values()))
    options = {name: value for name, value in method.options.items() if name != "checkpoint"}
    return {"solver": method.solver, "options": options, "data": method.data, "training": list(column.facts)}


def describe_set(networks: zoo.NetworkSet) -> dict[str, Any]:
    """What a set of networks holds, without paths."""
    plan = networks.manifest.plan
    right = [record.accuracy for record in networks.manifest.networks if record.accuracy is not None]
    losses = [record.loss for record in networks.manifest.networks]
    return {
        "architecture": plan.architecture.describe(),
        "source": plan.source.describe(),
        "seed": plan.seed,
        "recipe": plan.recipe.model_dump(mode="json", exclude_none=True),
        "networks": {split: len(networks.indices(split)) for split in ("train", "validation", "test")},
        "mean_test_loss": sum(losses) / len(losses),
        "mean_test_accuracy": sum(right) / len(right) if right else None,
    }


def run(
    name: str,
    networks: zoo.NetworkSet,
    columns: list[Column],
    results: dict[str, Any],
    output: Path,
    whole: Any = None,
    sinkhorn_pairs: int | None = None,
    **settings: Any,
) -> None:
    """Measure what is not in the results yet; they are written after every method.

    Args:
        name: Name of the set.
        networks: The set.
        columns: What is wanted. Columns are told apart by name and seed, trained ones also by their fingerprint.
        results: What is there already; it is added to.
        output: JSON file.
        whole: What is written there, if the results are a part of it.
        sinkhorn_pairs: Pairs of methods that end in Sinkhorn, the first ones; None is all.
        settings: As `measure.measure` takes them.
    """
    table = results.setdefault("columns", {})
    for column in columns:
        entry = table.setdefault(column.name, {})
        runs = entry.setdefault("runs", {})
        for (seed, method), print_of in zip(column.methods.items(), fingerprints(column), strict=True):
            key = "-" if seed is None else str(seed)
            if key in runs and runs[key]["fingerprint"] == print_of:
                continue
            own = settings | {"images": images_for(method, settings["images"])}
            if is_slow(method) and sinkhorn_pairs is not None:
                own["pairs"] = min(sinkhorn_pairs, settings["pairs"])
            found = asdict(measure.measure(name, networks, [method], **own))
            results["pairs"] = max(results.get("pairs", []), found.pop("pairs"), key=len)
            values = {kind: rounded(by_method[method.name]) for kind, by_method in found.items() if kind != "name"}
            runs[key] = {"fingerprint": print_of, **values}
            entry.update(described(column))
            measure.write_json(output, whole or results)
            barrier = sum(values["barriers"]) / len(values["barriers"])
            seconds = sum(values["seconds"]) / len(values["seconds"])
            print(f"{name}, {column.name} {key}: barrier {barrier:.4f}, {seconds:.3f} CPU s a pair", flush=True)
        if not runs:
            del table[column.name]


def images_for(method: Method, images: int) -> int:
    """Training samples of a method: as many as are wanted, and more for Sinkhorn."""
    return max(images, SINKHORN_IMAGES) if is_slow(method) else images


def is_slow(method: Method) -> bool:
    """Whether Sinkhorn, which takes seconds a pair, is a part of a method."""
    return "sinkhorn" in (method.solver or "")


def fingerprints(column: Column) -> list[str | None]:
    """The fingerprint of the aligner behind each method."""
    return [facts["fingerprint"] for facts in column.facts] or [None] * len(column.methods)


def rounded(values: list[float]) -> list[float]:
    """Six digits are plenty."""
    return [float(f"{value:.6g}") for value in values]
