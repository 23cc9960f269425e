"""Settings of the training of aligners, with those of [Navon24] and those of the universal aligner."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from alignkit.deepalign.aligner import USUAL
from alignkit.training.augment import Augmentations

ProbeInputs = Literal["data", "random", "mixed"]


class TrainingSettings(BaseModel):
    """Everything that decides what a training run gives, but for the sets of networks and the aligner."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    seed: int = Field(default=0, ge=0)
    """Seed of pairs, augmentations, minibatches, probes and lambdas."""
    steps: int = Field(default=1000, ge=1)
    """Steps of the optimizer."""
    pairs: int = Field(default=4, ge=1)
    """Pairs of networks in a step, all from one set."""
    pairs_at_once: int | None = Field(default=None, ge=1)
    """Pairs whose gradients are computed together; gradients of the others of a step are added to theirs. Fewer take
    less memory. None: all."""
    set_weights: tuple[float, ...] | None = None
    """How often each set is drawn, relative to the others. None: sets in turn."""

    learning_rate: float = Field(default=3e-3, gt=0)
    """Learning rate of AdamW at the start."""
    final_rate: float = Field(default=0.05, ge=0, le=1)
    """Learning rate of the last step as a share of the first, reached along half a cosine. 1 keeps it constant."""
    weight_decay: float = Field(default=5e-4, ge=0)
    """Weight decay of AdamW."""
    clip: float = Field(default=1.0, gt=0)
    """Largest norm of the gradient."""

    supervised: float = Field(default=0.5, ge=0)
    """Weight of the cross-entropy on labelled pairs."""
    alignment: float = Field(default=0.5, ge=0)
    """Weight of the squared distance on unlabelled pairs."""
    interpolation: float = Field(default=2.0, ge=0)
    """Weight of the loss of the task between two networks of an unlabelled pair."""
    rounds: int = Field(default=0, ge=0)
    """Rounds of consensus that the losses of unlabelled pairs look through. 0 judges the aligner's own scores."""
    supervised_every: int = Field(default=3, ge=1)
    """Steps from one with labelled pairs to the next; they come in addition to the unlabelled ones."""
    augmentations: Augmentations = Augmentations()
    """How labelled pairs are made."""

    samples: int = Field(default=10_000, ge=1)
    """Samples of each task to learn from."""
    batch_size: int = Field(default=128, ge=1)
    """Samples on which the loss of the task is measured for one pair."""
    probes: int = Field(default=48, ge=2)
    """Inputs that both networks of a pair are run on, for aligners that need it."""
    probe_inputs: ProbeInputs = "mixed"
    """What these inputs are: "data" of the task, "random" ones, or "mixed", each for half of the pairs."""

    validate_every: int = Field(default=100, ge=1)
    """Steps between two looks at held-out pairs."""
    validation_pairs: int = Field(default=6, ge=0)
    """Held-out pairs of each set. 0: the last step is kept, and nothing stops early."""
    validation_samples: int = Field(default=512, ge=1)
    """Held-out samples of the task on which barriers are measured."""
    validation_points: int = Field(default=5, ge=3)
    """Places on the line on which barriers are measured, odd."""
    validation_rounds: int = Field(default=USUAL.rounds, ge=0)
    """Rounds of consensus between an aligner's scores and the assignment, as the solver will do."""
    patience: int | None = Field(default=None, ge=1)
    """Stop when this many looks in a row were no better than the best. None: never."""
    checkpoint_every: int = Field(default=50, ge=1)
    """Steps between two checkpoints."""

    device: Literal["cpu", "cuda", "auto"] = "cpu"
    """Where to train."""
    precision: Literal["32-true", "bf16-mixed"] = "32-true"
    """Numbers that the aligner computes with. Sinkhorn and losses stay in float32."""


RECOMMENDED: Mapping[str, TrainingSettings] = MappingProxyType(
    {
        "learned": TrainingSettings(rounds=2, supervised=0.1, learning_rate=2e-3),
        "dws": TrainingSettings(
            learning_rate=5e-4,
            final_rate=1.0,
            pairs=32,
            pairs_at_once=8,
            supervised=1.0,
            alignment=1.0,
            interpolation=1.0,
            supervised_every=1,
            validation_rounds=0,
        ),
    }
)
"""Settings to start from, by encoder. Those of "dws" are the paper's ([Navon24], appendix)."""
