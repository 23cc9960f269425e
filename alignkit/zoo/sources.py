"""What the networks of a data set learn: images and their classes, sine waves, or single images as functions."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field, TypeAdapter, ValidationError, field_validator, model_validator
from torch import Tensor
from torch.nn import functional

from alignkit.arguments import check_arguments
from alignkit.errors import ZooChoiceError, ZooError
from alignkit.text import describe_validation
from alignkit.zoo.frozen import Frozen
from alignkit.zoo.idx import read_images

Split = Literal["train", "test"]
Folder = str | Path | None
CLASSES = 10
NATIVE = {"digits": 8, "mnist": 28, "fashion-mnist": 28}
"""Pixels of a side."""
MOMENTS = {"digits": (0.3053, 0.3760), "mnist": (0.1307, 0.3081), "fashion-mnist": (0.2860, 0.3530)}
"""Mean and standard deviation of the pixels of the training split, at full size."""


@dataclass(frozen=True)
class Data:
    """What some networks are trained on or judged by.

    Attributes:
        inputs: ``[n, ...]``, the same for all networks.
        targets: ``[n, ...]`` for all networks, or ``[networks, n, ...]`` if each has targets of its own.
        own_targets: Whether each network has its own.
    """

    inputs: Tensor
    targets: Tensor
    own_targets: bool = False

    def to(self, device: torch.device) -> Data:
        """Move the samples to a device."""
        return Data(self.inputs.to(device), self.targets.to(device), self.own_targets)

    def of_first(self) -> tuple[Tensor, Tensor]:
        """Return inputs ``[n, ...]`` and targets ``[n, ...]`` of the first network."""
        return self.inputs, self.targets[0] if self.own_targets else self.targets

    def gather(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Pick samples for every network: rows ``[k, batch]`` give inputs and targets ``[k, batch, ...]``."""
        inputs = self.inputs.index_select(0, rows.flatten()).view(*rows.shape, *self.inputs.shape[1:])
        if not self.own_targets:
            return inputs, self.targets[rows]
        return inputs, self.targets[torch.arange(len(rows), device=rows.device)[:, None], rows]


class Source(Frozen, ABC):
    """What the networks of a data set learn. `source` makes one by name."""

    name: str
    loss: ClassVar[Literal["cross_entropy", "mse"]]
    metric: ClassVar[Literal["accuracy"] | None]
    outputs: ClassVar[int]
    """Size of the output."""
    own_targets: ClassVar[bool] = False
    """Whether networks have targets of their own, so that only views of one target can be compared by a task."""

    @property
    @abstractmethod
    def shape(self) -> tuple[int, ...]:
        """Shape of one input."""

    @abstractmethod
    def data(self, folder: Folder, split: Split, targets: Sequence[int], seed: int) -> Data:
        """Return inputs and targets of some networks.

        Args:
            folder: Where idx files are, see `alignkit.zoo.idx.read_images`.
            split: Which part of the samples.
            targets: The target of each network, see `target`. Without meaning where all share one.
            seed: The seed of the data set: which signals there are.

        Raises:
            ZooError: Files are missing or damaged.
            MissingExtraError: scikit-learn is needed and not installed.
        """

    @abstractmethod
    def describe(self) -> str:
        """Return a short name, such as ``"mnist 14x14"``."""

    def target(self, index: int) -> int:
        """Return the target that network ``index`` of a data set learns; networks of one target are views of it."""
        return 0

    def load(self, folder: Folder = None, split: Split = "train") -> tuple[Tensor, Tensor]:
        """Return inputs ``[n, ...]`` and targets ``[n, ...]`` (of the first target of seed 0, if there are several).

        Raises:
            ZooError: Files are missing or damaged.
            MissingExtraError: scikit-learn is needed and not installed.
        """
        return self.data(folder, split, [0], 0).of_first()


class ImageSource(Source):
    """Images and their classes: MNIST and Fashion-MNIST from idx files, or scikit-learn's digits.

    Inputs are ``[n, 1, size, size]``, less the mean and divided by the standard deviation of the data set's pixels.
    """

    name: Literal["digits", "mnist", "fashion-mnist"]
    loss: ClassVar[Literal["cross_entropy", "mse"]] = "cross_entropy"
    metric: ClassVar[Literal["accuracy"] | None] = "accuracy"
    outputs: ClassVar[int] = CLASSES
    """Ten, also when fewer classes are learnt."""
    size: Annotated[int, Field(ge=2)] | None = None
    """Pixels of a side, by average pooling: 28 or 14 for MNIST, 8 or 4 for the digits. None is the full size."""
    rotate: Annotated[float, Field(ge=0, le=180)] = 0.0
    """Every image is turned by its own angle, uniform between minus and plus this many degrees, always the same."""
    classes: tuple[Annotated[int, Field(ge=0, lt=CLASSES)], ...] | None = None
    """The classes that are learnt, None for all. Labels keep their numbers, and networks their ten outputs."""
    share: Annotated[float, Field(gt=0.5, le=1)] = 1.0
    """Of every class in ``classes`` this share of the training images, and of every other class the rest. The same
    share with the other classes is the disjoint other part."""

    @field_validator("classes")
    @classmethod
    def _sorted(cls, classes: tuple[int, ...] | None) -> tuple[int, ...] | None:
        return None if classes is None else tuple(sorted(set(classes)))

    @model_validator(mode="after")
    def _fits(self) -> ImageSource:
        native = NATIVE[self.name]
        if self.size is not None and native % self.size:
            raise ValueError(f"size {self.size} does not divide {native}, the side of {self.name} images")
        if self.share < 1 and self.classes is None:
            raise ValueError("share needs classes: say which classes it is a share of")
        if self.classes is not None and not self.classes:
            raise ValueError("classes is empty")
        return self

    @property
    def shape(self) -> tuple[int, ...]:
        """``(1, size, size)``."""
        side = self.size or NATIVE[self.name]
        return (1, side, side)

    def describe(self) -> str:
        """Return a name such as ``"mnist 14x14 rotated by up to 45, 95 % of classes 0 1 2 3 4"``."""
        side = self.shape[1]
        text = f"{self.name} {side}x{side}" + (f" rotated by up to {self.rotate:g}" if self.rotate else "")
        if self.classes is None:
            return text
        return f"{text}, {100 * self.share:g} % of classes {' '.join(map(str, self.classes))}"

    def data(self, folder: Folder, split: Split, targets: Sequence[int], seed: int) -> Data:
        """Return images and classes, the same for all networks."""
        return Data(*_images(self, None if folder is None else str(folder), split))


class Signals(Source, ABC):
    """Functions from coordinates to one number, one for some networks; consecutive networks are views of one."""

    loss: ClassVar[Literal["cross_entropy", "mse"]] = "mse"
    metric: ClassVar[Literal["accuracy"] | None] = None
    outputs: ClassVar[int] = 1
    own_targets: ClassVar[bool] = True
    coordinates: ClassVar[int]
    """Numbers that say where a value is asked for."""
    views: Annotated[int, Field(ge=1)]
    """Networks that learn the same signal from different initial weights."""

    @property
    def shape(self) -> tuple[int, ...]:
        """One number for each coordinate."""
        return (self.coordinates,)

    def target(self, index: int) -> int:
        """Return the signal of a network."""
        return index // self.views


class SineSource(Signals):
    """Sine waves ``f(x) = sin(a x)`` on ``[-pi, pi]``, ``a`` uniform in 0.5..10 ([Navon24])."""

    name: Literal["sine"] = "sine"
    coordinates: ClassVar[int] = 1
    views: Annotated[int, Field(ge=1)] = 2
    """Networks that learn the same wave from different initial weights."""
    points: Annotated[int, Field(ge=8)] = 512
    """Coordinates of the training split, evenly spaced; the test split lies in the middles between them."""

    def describe(self) -> str:
        """Return a name such as ``"sine waves, 2 views"``."""
        return f"sine waves, {self.views} views"

    def frequency(self, target: int, seed: int) -> float:
        """Draw ``a`` of one wave."""
        return float(np.random.default_rng([seed, target]).uniform(0.5, 10))

    def data(self, folder: Folder, split: Split, targets: Sequence[int], seed: int) -> Data:
        """Return coordinates ``[n, 1]`` and values ``[networks, n, 1]``."""
        points = torch.linspace(-math.pi, math.pi, self.points)[:, None]
        if split == "test":
            points = (points[1:] + points[:-1]) / 2
        frequencies = torch.tensor([self.frequency(target, seed) for target in targets])
        return Data(points, torch.sin(frequencies[:, None, None] * points), own_targets=True)


class SignalSource(Signals):
    """Single images as functions from coordinates in ``[-1, 1]^2`` to grey values (image INRs, [Navon24])."""

    name: Literal["image-inr"] = "image-inr"
    coordinates: ClassVar[int] = 2
    images: ImageSource = ImageSource(name="mnist")
    """Where the images are drawn from, without repeats (its training split)."""
    views: Annotated[int, Field(ge=1)] = 5
    """Networks that learn the same image from different initial weights."""

    def describe(self) -> str:
        """Return a name such as ``"single images of mnist 28x28, 5 views"``."""
        return f"single images of {self.images.describe()}, {self.views} views"

    def data(self, folder: Folder, split: Split, targets: Sequence[int], seed: int) -> Data:
        """Return coordinates ``[pixels, 2]`` and grey values ``[networks, pixels, 1]``, normalised, for any split."""
        images, _ = self.images.load(folder, "train")
        order = np.random.default_rng(seed).permutation(len(images))
        wanted = max(targets) + 1
        if wanted > len(images):
            raise ZooError(f"{self.images.describe()} has {len(images)} images, too few for {wanted} signals.")
        pixels = torch.cartesian_prod(*(torch.linspace(-1, 1, side) for side in images.shape[2:]))
        chosen = torch.stack([images[order[target]].flatten() for target in targets])
        return Data(pixels, chosen[..., None], own_targets=True)


AnySource = Annotated[ImageSource | SineSource | SignalSource, Field(discriminator="name")]
_ADAPTER: TypeAdapter[Source] = TypeAdapter(AnySource)


@check_arguments
def source(name: str, **fields: Any) -> Source:
    """Make a source by its name.

    Args:
        name: ``"digits"``, ``"mnist"``, ``"fashion-mnist"``, ``"sine"`` or ``"image-inr"``.
        fields: As `ImageSource`, `SineSource` or `SignalSource` takes them.

    Raises:
        ZooChoiceError: There is no such source, or a field is unknown or out of range.
    """
    try:
        return _ADAPTER.validate_python({"name": name, **fields})
    except ValidationError as error:
        raise ZooChoiceError(f"no source {name!r} can be made: {describe_validation(error)}") from error


@lru_cache(maxsize=4)
def _images(source: ImageSource, folder: str | None, split: Split) -> tuple[Tensor, Tensor]:
    images, labels = read_images(source.name, folder, split)
    if source.classes is not None:
        is_chosen = torch.isin(labels, torch.tensor(source.classes))
        keep = is_chosen | (source.share < 1)  # With a share, the test split keeps all classes.
        if source.share < 1 and split == "train":
            for label in range(CLASSES):
                rows = (labels == label).nonzero().flatten()
                cut = round(source.share * len(rows))
                keep[rows[cut:] if label in source.classes else rows[:cut]] = False
        images, labels = images[keep], labels[keep]
    if source.rotate:
        draws = torch.rand(len(images), generator=torch.Generator().manual_seed(0))
        angles = (2 * draws - 1) * math.radians(source.rotate)
        zero = torch.zeros_like(angles)
        turns = torch.stack([angles.cos(), -angles.sin(), zero, angles.sin(), angles.cos(), zero], 1).view(-1, 2, 3)
        grid = functional.affine_grid(turns, list(images.shape), align_corners=False)
        images = functional.grid_sample(images, grid, align_corners=False)
    if source.size is not None and source.size != images.shape[-1]:
        images = functional.avg_pool2d(images, images.shape[-1] // source.size)
    mean, deviation = MOMENTS[source.name]
    return (images - mean) / deviation, labels
