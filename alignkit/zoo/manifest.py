"""The manifest of a network data set: what was trained, how, and what came out."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from alignkit.checkpoints.documents import Format
from alignkit.errors import ZooError
from alignkit.zoo.architectures import AnyArchitecture
from alignkit.zoo.recipe import Recipe
from alignkit.zoo.sources import AnySource

MANIFEST = "manifest.json"
FORMAT = Format("alignkit.zoo", "manifest of a network data set", "alignkit zoo", ZooError)
SplitName = Literal["train", "validation", "test"]
SPLITS: tuple[SplitName, ...] = ("train", "validation", "test")


class NetworkRecord(BaseModel):
    """One network of a data set."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)
    index: int
    """Number in the data set."""
    seed: int
    """Seed of its initial weights; the next number seeds its order of samples."""
    target: int
    """What it learnt; networks with the same target are views of one signal. 0 where all learn the same."""
    loss: float
    """Mean loss on the test split of the source."""
    accuracy: float | None
    """Share of the test split that is classified right, None for signals."""


class SetShard(BaseModel):
    """One file of stacked weights."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)
    file: str
    first: int
    """Number of its first network."""
    networks: tuple[NetworkRecord, ...]


class SetPlan(BaseModel):
    """Everything that decides the weights of a data set: equal plans give equal networks."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)
    architecture: AnyArchitecture
    source: AnySource
    recipe: Recipe
    count: int
    """Networks in all."""
    seed: int
    shard: int
    """Networks in one file."""
    shares: tuple[float, float, float]
    """Of train, validation and test in the count of networks."""


class Manifest(BaseModel):
    """What stands in ``manifest.json``."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)
    plan: SetPlan
    splits: dict[SplitName, tuple[int, ...]]
    """Numbers of the networks of each split. All views of one signal are in the same."""
    shards: tuple[SetShard, ...] = ()
    """The files that are complete, in order."""
    seconds: float = 0.0
    """Time of the training."""

    @property
    def complete(self) -> bool:
        """Whether every network is there."""
        return sum(len(shard.networks) for shard in self.shards) == self.plan.count

    @property
    def networks(self) -> tuple[NetworkRecord, ...]:
        """All networks that are there, in order."""
        return tuple(record for shard in self.shards for record in shard.networks)


def read_manifest(folder: Path) -> Manifest:
    """Read the manifest of a data set.

    Raises:
        ZooError: There is none, or it is damaged or of another version.
    """
    path = folder / MANIFEST
    values = FORMAT.read(path)
    with FORMAT.rebuilding(path):
        return Manifest.model_validate(values)


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write the manifest; either the whole file appears or nothing changes.

    Raises:
        WeightsError: The folder cannot be written to.
    """
    FORMAT.write(folder / MANIFEST, manifest.model_dump(mode="json"))
