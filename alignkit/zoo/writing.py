"""Writing a network data set: shard after shard, each complete before it is listed in the manifest."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from time import perf_counter

import torch

from alignkit.arguments import check_arguments
from alignkit.checkpoints.staging import make_folder, prepare_output
from alignkit.checkpoints.weights import write_weights
from alignkit.errors import ZooError
from alignkit.zoo.manifest import MANIFEST, Manifest, SetPlan, SetShard, read_manifest, write_manifest
from alignkit.zoo.network_set import NetworkSet
from alignkit.zoo.training import train

Progress = Callable[[float, int], None]
"""Called with the networks done and the networks in all; those at work count by their share of the steps."""


@check_arguments
def write_set(
    folder: str | Path,
    plan: SetPlan,
    *,
    data: str | Path | None = None,
    device: torch.device | str | None = None,
    chunk: int | None = None,
    progress: Progress | None = None,
) -> NetworkSet:
    """Train a data set of networks into a folder, or resume one that was cut off.

    Shards that are complete are kept: a killed run resumes with the first that is missing, and ends with the same files
    as one that was never killed. A folder that is complete is opened as it is. Two processes on one folder do the same
    work twice and no harm.

    Args:
        folder: Where the manifest and the shards are written; created if it does not exist.
        plan: What is trained on what, how, and how many of them.
        data: Where idx files are.
        device: Where to train. None is the CPU.
        chunk: Networks trained together, as `train` takes it.
        progress: Called after every step with the networks that are done.

    Raises:
        ZooError: As `train`; or the folder holds something else, or a data set made with another plan.
        WeightsError: The folder cannot be written to.
        MissingExtraError: scikit-learn is needed and not installed.
    """
    folder = Path(folder)
    manifest = _begin(folder, plan)
    while not manifest.complete:
        first, started = len(manifest.networks), perf_counter()

        def report(done: float, first: int = first) -> None:
            if progress is not None:
                progress(first + done, plan.count)

        trained = train(
            plan.architecture,
            plan.source,
            min(plan.shard, plan.count - first),
            recipe=plan.recipe,
            seed=plan.seed,
            data=data,
            device=device,
            chunk=chunk,
            first=first,
            progress=report,
        )
        manifest = read_manifest(folder)
        if len(manifest.networks) != first:  # another process wrote this shard in the meantime
            continue
        name = f"networks-{len(manifest.shards):05d}.safetensors"
        last = first + len(trained.records) - 1
        write_weights(folder / name, trained.weights, {"alignkit.zoo": f"networks {first} to {last}"})
        shards = (*manifest.shards, SetShard(file=name, first=first, networks=trained.records))
        seconds = round(manifest.seconds + perf_counter() - started, 3)
        manifest = manifest.model_copy(update={"shards": shards, "seconds": seconds})
        write_manifest(folder, manifest)
    return NetworkSet(folder, manifest)


def _begin(folder: Path, plan: SetPlan) -> Manifest:
    """Return the manifest of a folder: that of an earlier run with this plan, or a new one; see `manifest_of`."""
    if (known := manifest_of(folder, plan)) is not None:
        return known
    make_folder(folder)
    manifest = Manifest(plan=plan, splits=plan.split())
    write_manifest(folder, manifest)
    return manifest


def manifest_of(folder: Path, plan: SetPlan) -> Manifest | None:
    """Return the manifest that an earlier run with a plan left in a folder; None where it may begin.

    Raises:
        ZooError: The folder holds something else, or a data set with another plan.
    """
    prepare_output(folder)
    prepare_output(folder / MANIFEST)  # a run that was killed while it wrote the first one has left a part of it
    if folder.is_dir() and (folder / MANIFEST).exists():
        manifest = read_manifest(folder)
        differences = [
            f"{name} is {getattr(manifest.plan, name)!r} there and {getattr(plan, name)!r} now"
            for name in SetPlan.model_fields
            if getattr(manifest.plan, name) != getattr(plan, name)
        ]
        if differences:
            grown = manifest.plan.model_copy(update={"count": plan.count}) == plan
            why = (
                " A set does not grow, since its splits are drawn once: train more with another seed." if grown else ""
            )
            raise ZooError(
                f"{folder} holds a data set that was made with other settings: {'; '.join(differences)}.{why} "
                "Choose another folder, or the same settings to resume it."
            )
        return manifest
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ZooError(f"{folder} exists and holds no network data set. Choose a new folder or an empty one.")
    return None
