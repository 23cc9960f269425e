"""The manifest of a network data set: what was trained, how, and what came out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal, Self

import numpy as np
from pydantic import Field, ValidationError, field_validator, model_validator

from alignkit.arguments import check_arguments
from alignkit.checkpoints.documents import Format
from alignkit.errors import ZooError
from alignkit.text import describe_validation
from alignkit.zoo.architectures import AnyArchitecture, Architecture
from alignkit.zoo.frozen import Frozen
from alignkit.zoo.recipe import Recipe, complete_recipe
from alignkit.zoo.sources import AnySource, Source

MANIFEST = "manifest.json"
SplitName = Literal["train", "validation", "test"]
SPLITS: tuple[SplitName, ...] = ("train", "validation", "test")


class NetworkRecord(Frozen):
    """One network of a data set."""

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


class SetShard(Frozen):
    """One file of stacked weights."""

    file: str
    first: int
    """Number of its first network."""
    networks: tuple[NetworkRecord, ...]


class SetPlan(Frozen):
    """Everything that decides the weights of a data set: equal plans give equal networks. `plan_set` makes one."""

    architecture: AnyArchitecture
    source: AnySource
    recipe: Recipe
    count: Annotated[int, Field(ge=1)]
    """Networks in all."""
    seed: Annotated[int, Field(ge=0)]
    shard: Annotated[int, Field(ge=1)]
    """Networks in one file."""
    shares: tuple[float, float, float]
    """Of train, validation and test in the count of networks."""

    @field_validator("shares")
    @classmethod
    def _add_up(cls, shares: tuple[float, float, float]) -> tuple[float, float, float]:
        if min(shares) < 0 or not math.isclose(sum(shares), 1, abs_tol=1e-6):
            raise ValueError("give the shares of train, validation and test, which add up to 1")
        return shares

    @check_arguments
    def split(self) -> dict[SplitName, tuple[int, ...]]:
        """Draw the numbers of the networks of each split; all views of one signal fall into the same."""
        views: dict[int, list[int]] = {}
        for index in range(self.count):
            views.setdefault(self.source.target(index) if self.source.own_targets else index, []).append(index)
        units = list(views.values())
        order = np.random.default_rng([self.seed, 1]).permutation(len(units))
        ends = np.rint(np.cumsum(self.shares) * len(units)).astype(int)
        parts = np.split(order, ends[:2])
        return {
            name: tuple(sorted(index for unit in part for index in units[unit]))
            for name, part in zip(SPLITS, parts, strict=True)
        }


@check_arguments
def plan_set(
    architecture: Architecture,
    source: Source,
    count: int,
    *,
    recipe: Recipe | None = None,
    seed: int = 0,
    shard: int = 64,
    shares: Sequence[float] = (0.8, 0.1, 0.1),
) -> SetPlan:
    """Plan a data set of networks.

    Args:
        architecture: What is trained; its shape and outputs are taken from the source.
        source: What is learnt.
        count: Networks in all.
        recipe: How they are trained; fields that are not given, and None, take what suits the family and the source.
        seed: Seed of everything that is random, the splits included.
        shard: Networks in one file.
        shares: Shares of train, validation and test in the networks; their sum is 1.

    Raises:
        ZooError: A value is out of range, or the architecture does not fit the source.
    """
    architecture = architecture.for_source(source.shape, source.outputs)
    recipe = complete_recipe(recipe, architecture, source)
    fields = {"architecture": architecture, "source": source, "recipe": recipe}
    try:
        return SetPlan.model_validate({**fields, "count": count, "seed": seed, "shard": shard, "shares": tuple(shares)})
    except ValidationError as error:
        raise ZooError(f"this set of networks cannot be planned: {describe_validation(error)}") from error


class Manifest(Frozen):
    """What stands in ``manifest.json``."""

    plan: SetPlan
    splits: dict[SplitName, tuple[int, ...]]
    """Numbers of the networks of each split. All views of one signal are in the same."""
    shards: tuple[SetShard, ...] = ()
    """The files that are complete, in order."""
    seconds: float = 0.0
    """Time of the training."""

    @model_validator(mode="after")
    def _number_all(self) -> Self:
        numbers = [record.index for record in self.networks]
        firsts = [shard.networks[0].index for shard in self.shards if shard.networks]
        if numbers != list(range(len(numbers))) or firsts != [shard.first for shard in self.shards]:
            raise ValueError("the files have to hold the networks 0, 1, 2, ... in order")
        if len(numbers) > self.plan.count or any(
            not 0 <= i < self.plan.count for part in self.splits.values() for i in part
        ):
            raise ValueError(f"networks are numbered from 0 to {self.plan.count - 1}, as many as are planned")
        return self

    @property
    def complete(self) -> bool:
        """Whether every network is there."""
        return sum(len(shard.networks) for shard in self.shards) == self.plan.count

    @property
    def networks(self) -> tuple[NetworkRecord, ...]:
        """All networks that are there, in order."""
        return tuple(record for shard in self.shards for record in shard.networks)


FORMAT = Format("alignkit.zoo", "manifest of a network data set", "alignkit zoo", ZooError, Manifest)


@check_arguments
def read_manifest(folder: Path) -> Manifest:
    """Read the manifest of a data set.

    Raises:
        ZooError: There is none, or it is damaged or of another version.
    """
    return FORMAT.read(folder / MANIFEST)


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write the manifest; either the whole file appears or nothing changes.

    Raises:
        WeightsError: The folder cannot be written to.
    """
    FORMAT.write(folder / MANIFEST, manifest.model_dump(mode="json"))
