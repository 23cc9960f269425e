"""How the networks of a data set are trained: batches, steps and learning rate."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from alignkit.zoo.architectures import Architecture
from alignkit.zoo.sources import Source

Count = Annotated[int, Field(ge=1)]
FINAL_SHARE = 0.01
"""The learning rate of the last step, as a share of the highest."""


class Recipe(BaseModel):
    """Settings of one training run: Adam with decoupled weight decay; its rate rises, then falls by a cosine."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)
    epochs: Count | None = None
    """Passes over the training split, each in an order of the network's own. None where ``steps`` is given."""
    steps: Count | None = None
    """Steps in all; the samples of a step are drawn with new orders as long as needed."""
    batch: Count = 128
    """Samples of a step; all of them where there are fewer."""
    lr: Annotated[float, Field(gt=0)] = 3e-3
    """Highest learning rate."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """Decay of all weights in a step, in units of the learning rate."""
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of the steps in which the learning rate rises."""
    clip: Annotated[float, Field(gt=0)] | None = None
    """Largest norm of one network's gradient, None for no limit."""
    precision: Literal["float32", "bf16"] = "float32"
    """Of matrix products and convolutions; weights and the optimiser are always float32."""

    def total_steps(self, samples: int) -> int:
        """Steps of the whole run on this many samples."""
        return self.steps or (self.epochs or 1) * max(samples // self.batch, 1)

    def rate(self, step: int, total: int) -> float:
        """Learning rate of a step, counted from 0."""
        rising = max(round(self.warmup * total), 1)
        if step < rising:
            return self.lr * (step + 1) / rising
        progress = (step - rising + 1) / max(total - rising, 1)
        return self.lr * (FINAL_SHARE + (1 - FINAL_SHARE) * (1 + math.cos(math.pi * progress)) / 2)


def default_recipe(
    architecture: Architecture,
    source: Source,
    *,
    epochs: int | None = None,
    steps: int | None = None,
    batch: int | None = None,
    lr: float | None = None,
) -> Recipe:
    """What trains this family on this kind of source well, with the settings that were given in its place."""
    found = dict(_DEFAULTS[architecture.family])
    if source.own_targets:
        found |= {"epochs": None, "steps": 2000, "batch": 512}
    elif source.name == "digits":
        found |= {"epochs": 60, "batch": 64}
    if epochs is not None or steps is not None:
        found |= {"epochs": epochs, "steps": steps}
    given = {"batch": batch, "lr": lr}
    return Recipe.model_validate(found | {key: value for key, value in given.items() if value is not None})


_DEFAULTS: dict[str, dict[str, object]] = {
    "mlp": {"epochs": 4},
    "cnn": {"epochs": 3, "lr": 5e-3},
    "resnet": {"epochs": 3, "lr": 1e-2},
    "vit": {"epochs": 8, "lr": 3e-3, "clip": 1.0},
    "siren": {"epochs": 4, "lr": 1e-3},
    "lstm": {"epochs": 5, "lr": 1e-2, "clip": 1.0},
}
