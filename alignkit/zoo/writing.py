"""Writing a network data set: shard after shard, each complete before it is listed in the manifest."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from time import perf_counter

import numpy as np
import torch

from alignkit.checkpoints.weights import write_weights
from alignkit.errors import ZooError
from alignkit.zoo.architectures import Architecture
from alignkit.zoo.manifest import (
    MANIFEST,
    SPLITS,
    Manifest,
    SetPlan,
    SetShard,
    SplitName,
    read_manifest,
    write_manifest,
)
from alignkit.zoo.network_set import NetworkSet
from alignkit.zoo.recipe import Recipe, default_recipe
from alignkit.zoo.sources import Source
from alignkit.zoo.training import Trained, train

SHARD = 64
Progress = Callable[[float, int], None]
"""Called with the networks done and the networks in all; those at work count by their share of the steps."""


def write_set(
    folder: str | Path,
    architecture: Architecture,
    source: Source,
    count: int,
    *,
    seed: int = 0,
    data: str | Path | None = None,
    epochs: int | None = None,
    steps: int | None = None,
    batch: int | None = None,
    lr: float | None = None,
    recipe: Recipe | None = None,
    splits: tuple[float, float, float] = (0.8, 0.1, 0.1),
    shard: int = SHARD,
    device: torch.device | str | None = None,
    chunk: int | None = None,
    progress: Progress | None = None,
) -> NetworkSet:
    """Train a data set of networks into a folder, or go on with one that was cut off.

    Shards that are complete are kept: a killed run goes on with the first that is missing, and ends with the same
    files as one that was never killed. A folder that is complete is opened as it is. Two processes on one folder do
    the same work twice and no harm.

    Args:
        folder: Where the manifest and the shards are written; created if it does not exist.
        architecture: What is trained.
        source: What is learnt.
        count: Networks in all.
        seed: Seed of everything that is random, the splits included.
        data: Where idx files are.
        epochs: As `train` takes it.
        steps: As `train` takes it.
        batch: As `train` takes it.
        lr: As `train` takes it.
        recipe: As `train` takes it.
        splits: Shares of train, validation and test in the networks; their sum is 1.
        shard: Networks in one file.
        device: As `train` takes it.
        chunk: As `train` takes it.
        progress: Told after every step how many networks are done.

    Raises:
        ZooError: As `train`; or the folder holds something else, or a data set made with other settings.
        WeightsError: The folder cannot be written to.
        MissingExtraError: scikit-learn is needed and not installed.
    """
    folder = Path(folder)
    architecture = architecture.for_source(source.shape, source.outputs)
    plan = _plan(architecture, source, count, seed, splits, shard, recipe, epochs, steps, batch, lr)
    manifest = _begun(folder, plan)
    while not manifest.complete:
        first, begun = len(manifest.networks), perf_counter()
        trained = train(
            architecture,
            source,
            min(shard, count - first),
            seed=seed,
            folder=data,
            recipe=plan.recipe,
            device=device,
            chunk=chunk,
            first=first,
            progress=_shifted(progress, first, count),
        )
        manifest = _with_shard(folder, trained, first, perf_counter() - begun)
    return NetworkSet(folder, manifest)


def _with_shard(folder: Path, trained: Trained, first: int, seconds: float) -> Manifest:
    """Write one shard, then the manifest that lists it, unless another process did so in the meantime."""
    manifest = read_manifest(folder)
    if len(manifest.networks) != first:
        return manifest
    name = f"networks-{len(manifest.shards):05d}.safetensors"
    last = first + len(trained.records) - 1
    write_weights(folder / name, trained.weights, {"alignkit.zoo": f"networks {first} to {last}"})
    shards = (*manifest.shards, SetShard(file=name, first=first, networks=trained.records))
    manifest = manifest.model_copy(update={"shards": shards, "seconds": round(manifest.seconds + seconds, 3)})
    write_manifest(folder, manifest)
    return manifest


def _shifted(progress: Progress | None, first: int, count: int) -> Callable[[float], None] | None:
    return None if progress is None else lambda done: progress(first + done, count)


def _plan(
    architecture: Architecture,
    source: Source,
    count: int,
    seed: int,
    splits: tuple[float, float, float],
    shard: int,
    recipe: Recipe | None,
    epochs: int | None,
    steps: int | None,
    batch: int | None,
    lr: float | None,
) -> SetPlan:
    if count < 1 or shard < 1:
        raise ZooError(f"count is {count} and shard is {shard}: both have to be at least 1.")
    if len(splits) != len(SPLITS) or min(splits) < 0 or not math.isclose(sum(splits), 1, abs_tol=1e-6):
        raise ZooError(f"splits is {splits}: give the shares of train, validation and test, which add up to 1.")
    recipe = recipe or default_recipe(architecture, source, epochs=epochs, steps=steps, batch=batch, lr=lr)
    return SetPlan.model_validate(
        {
            "architecture": architecture,
            "source": source,
            "recipe": recipe,
            "count": count,
            "seed": seed,
            "shard": shard,
            "shares": splits,
        }
    )


def _begun(folder: Path, plan: SetPlan) -> Manifest:
    """The manifest of a folder: that of an earlier run with this plan, or a new one.

    Raises:
        ZooError: The folder holds something else, or a data set with another plan.
    """
    if folder.is_dir() and (folder / MANIFEST).exists():
        manifest = read_manifest(folder)
        if manifest.plan != plan:
            raise ZooError(
                f"{folder} holds a data set that was made with other settings: {_differences(manifest.plan, plan)}. "
                "Choose another folder, or the same settings to go on with it."
            )
        return manifest
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ZooError(f"{folder} exists and holds no network data set. Choose a new folder or an empty one.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ZooError(f"the folder {folder} cannot be created: {error.strerror}.") from error
    manifest = Manifest(plan=plan, splits=_splits(plan))
    write_manifest(folder, manifest)
    return manifest


def _differences(there: SetPlan, wanted: SetPlan) -> str:
    return "; ".join(
        f"{name} is {getattr(there, name)!r} there and {getattr(wanted, name)!r} now"
        for name in SetPlan.model_fields
        if getattr(there, name) != getattr(wanted, name)
    )


def _splits(plan: SetPlan) -> dict[SplitName, tuple[int, ...]]:
    """Numbers of the networks of each split, drawn at random; all views of one signal fall into the same."""
    views: dict[int, list[int]] = {}
    for index in range(plan.count):
        views.setdefault(plan.source.target(index) if plan.source.own_targets else index, []).append(index)
    units = list(views.values())
    order = np.random.default_rng([plan.seed, 1]).permutation(len(units))
    ends = np.rint(np.cumsum(plan.shares) * len(units)).astype(int)
    parts = np.split(order, ends[:2])
    return {
        name: tuple(sorted(index for unit in part for index in units[unit]))
        for name, part in zip(SPLITS, parts, strict=True)
    }
