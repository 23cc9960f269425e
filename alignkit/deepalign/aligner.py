"""Learned aligners: networks whose input is a pair of networks and whose output is a similarity of their units."""

from __future__ import annotations

import hashlib
import json
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from jaxtyping import Float
from torch import Tensor, nn

from alignkit.activations import Reading
from alignkit.deepalign.input_domain import InputDomain
from alignkit.graph import SymmetryGraph
from alignkit.tasks.batches import Batch

START_SHARPNESS = 6.0
"""Factor of standardised scores at the start of training; the larger, the harder a soft alignment."""


@dataclass(frozen=True)
class Schedule:
    """Rounds and steps that follow the scores of an aligner, and their sizes.

    The defaults were fixed on networks of the training sets of the universal encoder
    (`tests/benchmarks/paper/data.py`). Around them barriers change by less than the noise of eight pairs a set.

    Attributes:
        rounds: Rounds of consensus.
        sharpness: Factor of standardised scores before Sinkhorn; the larger, the harder the soft alignment.
        carry_over: Weight of the scores of the round before, beside the similarities of weights.
        steps: Midpoint steps.
        rate: Length of the first of them, in standard deviations of the scores.
    """

    rounds: int = 3
    sharpness: float = 6.0
    carry_over: float = 1.0
    steps: int = 8
    rate: float = 0.06


USUAL = Schedule()
"""What follows the scores where no aligner has learned better."""


@dataclass(frozen=True)
class Probing:
    """What runs both networks of a pair on the same inputs.

    Attributes:
        model: The architecture, in eval mode; its own weights are not used.
        readings: Where the units of each group are seen (`alignkit.activations.find_readings`).
        batch: The inputs.
    """

    model: nn.Module
    readings: Mapping[str, list[Reading]]
    batch: Batch


@dataclass(frozen=True)
class AlignerInput:
    """Two networks of one graph, as an aligner sees them.

    Attributes:
        graph: Their graph.
        a: Complete state dict of A, float32 or float64; gradients flow through it if it requires any.
        b: Complete state dict of B.
        probing: What runs them; None where only weights are known.
        seed: Seed of whatever the aligner draws; the same for A and B.
    """

    graph: SymmetryGraph
    a: Mapping[str, Tensor]
    b: Mapping[str, Tensor]
    probing: Probing | None = None
    seed: int = 0


class Aligner(nn.Module, ABC):
    """A network from pairs of networks to similarities of their units, after [Navon24].

    Whatever its parameters are, permuting the units of B permutes the columns of its scores, those of A the rows, and
    swapping A and B transposes them ([Navon24], proposition 3).

    Attributes:
        encoder: Name of the kind of aligner, a key of `alignkit.deepalign.aligner_file.KINDS`.
        needs_probes: Whether it works only where networks can be run.
        schedule: What follows its scores where nothing else is asked for.
        domain: What the inputs are like of the networks that it was trained for; None where it knows of none.
        log_sharpness: Logarithm of the factor that turns standardised scores into logits of Sinkhorn.
    """

    encoder: ClassVar[str]
    needs_probes: ClassVar[bool]
    schedule: Schedule = USUAL
    domain: InputDomain | None

    def __init__(self) -> None:
        super().__init__()
        self.domain = None
        self.log_sharpness = nn.Parameter(torch.tensor(math.log(START_SHARPNESS)))

    @property
    def sharpness(self) -> float:
        """The factor that turns standardised scores into logits."""
        return float(self.log_sharpness.detach().exp())

    @abstractmethod
    def forward(self, pair: AlignerInput) -> dict[str, Float[Tensor, "units units"]]:
        """Score A's units (rows) against B's (columns) of each group, over all parents; larger is more alike."""

    @torch.no_grad()
    def score(self, pair: AlignerInput) -> dict[str, Float[Tensor, "units units"]]:
        """Score a pair as `forward` does, without gradients and as float64 on the CPU."""
        return {group: matrix.cpu().double() for group, matrix in self(pair).items()}

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """Return what the constructor was called with, as JSON can hold it."""

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> Self:
        """Make an aligner from its settings, with fresh parameters."""
        return cls(**settings)

    def fits(self, graph: SymmetryGraph) -> str | None:
        """Return None where the aligner serves networks of this graph, else the reason why it does not."""
        inputs = graph.provenance.inputs
        if self.domain is None or len(inputs) != 1:  # what a model takes beside is for the caller to give
            return None
        return self.domain.differs(inputs[0].shape[1:])

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits that name settings and parameters."""
        digest = hashlib.sha256(json.dumps([self.encoder, self.settings()], sort_keys=True).encode())
        for name, tensor in sorted(self.state_dict().items()):
            digest.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]
