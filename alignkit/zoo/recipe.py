"""How the networks of a data set are trained: batches, steps and learning rate."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import Field

from alignkit.zoo.architectures import Architecture
from alignkit.zoo.frozen import Frozen
from alignkit.zoo.sources import Source

Count = Annotated[int, Field(ge=1)]
FINAL_SHARE = 0.01
"""The learning rate of the last step, as a share of the highest."""


class Recipe(Frozen):
    """Settings of one training run: Adam with decoupled weight decay; its rate rises, then falls by a cosine.

    What trains networks by a recipe takes what suits the family and the source in place of fields that were not given
    (`complete_recipe`): ``Recipe(epochs=10)`` changes the epochs only.
    """

    epochs: Count | None = None
    """Passes over the training split, each in an order of the network's own. None where ``steps`` is given."""
    steps: Count | None = None
    """Steps in all; the samples of a step are drawn with new orders as long as needed."""
    batch_size: Count = 128
    """Samples of a step; all of them where there are fewer."""
    learning_rate: Annotated[float, Field(gt=0)] = 3e-3
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
        """Count the steps of the whole run on this many samples."""
        return self.steps or (self.epochs or 1) * max(samples // self.batch_size, 1)

    def rate(self, step: int, total: int) -> float:
        """Return the learning rate of a step, counted from 0."""
        rising = max(round(self.warmup * total), 1)
        if step < rising:
            return self.learning_rate * (step + 1) / rising
        progress = (step - rising + 1) / max(total - rising, 1)
        return self.learning_rate * (FINAL_SHARE + (1 - FINAL_SHARE) * (1 + math.cos(math.pi * progress)) / 2)


DEFAULTS: dict[str, dict[str, object]] = {
    "mlp": {"epochs": 4},
    "cnn": {"epochs": 3, "learning_rate": 5e-3},
    "resnet": {"epochs": 3, "learning_rate": 1e-2},
    "vit": {"epochs": 8, "learning_rate": 3e-3, "clip": 1.0},
    "gpt": {"epochs": 8, "learning_rate": 3e-3, "clip": 1.0},
    "siren": {"epochs": 4, "learning_rate": 1e-3},
    "lstm": {"epochs": 5, "learning_rate": 1e-2, "clip": 1.0},
}
"""What trains each family well on MNIST."""


def complete_recipe(recipe: Recipe | None, architecture: Architecture, source: Source) -> Recipe:
    """Fill the fields of a recipe that were not given with what trains this family on this kind of source well."""
    fields = dict(DEFAULTS[architecture.family])
    if source.own_targets:
        fields |= {"epochs": None, "steps": 2000, "batch_size": 512}
    elif source.name == "digits":  # few and small images
        fields |= {"epochs": 60, "batch_size": 64}
    chosen = {} if recipe is None else recipe.model_dump(exclude_unset=True)
    if "epochs" in chosen or "steps" in chosen:
        fields |= {"epochs": None, "steps": None}
    return Recipe.model_validate(fields | chosen)
