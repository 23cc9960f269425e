"""Learned aligners: networks whose input is a pair of networks and whose output is a similarity of their units."""

from __future__ import annotations

import hashlib
import json
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import safetensors
import safetensors.torch
import torch
from jaxtyping import Float
from torch import Tensor, nn

from alignkit.activations.readings import Reading
from alignkit.checkpoints.weights import write_weights
from alignkit.errors import AlignkitError, WeightsError
from alignkit.graph.symmetry_graph import SymmetryGraph
from alignkit.tasks.batches import Batch
from alignkit.text import did_you_mean

FORMAT = "alignkit.aligner"
VERSION = 1
START_SHARPNESS = 6.0
"""Factor of standardised scores at the start of training; the larger, the harder a soft alignment."""


@dataclass(frozen=True)
class Probing:
    """What runs both networks of a pair on the same inputs.

    Attributes:
        model: The architecture, in eval mode; its own weights are not used.
        readings: Places where the units of each group are seen (`alignkit.activations.readings.find_readings`).
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
        encoder: Name of the kind of aligner.
        needs_probes: Whether it works only where networks can be run.
        log_sharpness: Logarithm of the factor that turns standardised scores into logits of Sinkhorn.
    """

    encoder: ClassVar[str]
    needs_probes: ClassVar[bool]

    def __init__(self) -> None:
        super().__init__()
        self.log_sharpness = nn.Parameter(torch.tensor(math.log(START_SHARPNESS)))

    @property
    def sharpness(self) -> float:
        """The factor that turns standardised scores into logits."""
        return float(self.log_sharpness.detach().exp())

    @abstractmethod
    def forward(self, pair: AlignerInput) -> dict[str, Float[Tensor, "units units"]]:
        """Scores of A's units (rows) and B's (columns) of each group, over all parents; larger is more alike."""

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """What the constructor was called with, as JSON can hold it."""

    @classmethod
    def rebuilt(cls: type[AlignerT], settings: Mapping[str, Any]) -> AlignerT:
        """An aligner from its settings, with fresh parameters."""
        return cls(**settings)

    def fits(self, graph: SymmetryGraph) -> str | None:
        """None where the aligner serves networks of this graph, else the reason why it does not."""
        return None

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits that name settings and parameters."""
        digest = hashlib.sha256(json.dumps([self.encoder, self.settings()], sort_keys=True).encode())
        for name, tensor in sorted(self.state_dict().items()):
            digest.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]


AlignerT = TypeVar("AlignerT", bound=Aligner)

ALIGNERS: dict[str, type[Aligner]] = {}
"""Kinds of aligners by the name of their encoder."""


def aligner_kind(kind: type[AlignerT]) -> type[AlignerT]:
    """Register a kind of aligner under the name of its encoder. A class decorator."""
    ALIGNERS[kind.encoder] = kind
    return kind


def save_aligner(path: str | Path, aligner: Aligner, card: Mapping[str, str] | None = None) -> None:
    """Write an aligner and its model card to one safetensors file; the whole file appears or nothing.

    Args:
        path: File to write, ``.safetensors``.
        aligner: The aligner.
        card: What a reader should know: data, shapes, command, results, limits.

    Raises:
        WeightsError: The file cannot be written.
    """
    header = {"encoder": aligner.encoder, "settings": aligner.settings(), "version": VERSION}
    write_weights(path, aligner.state_dict(), {FORMAT: json.dumps(header), "card": json.dumps(dict(card or {}))})


def load_aligner(path: str | Path) -> Aligner:
    """Read an aligner that `save_aligner` wrote, in eval mode.

    Raises:
        WeightsError: The file is damaged, holds no aligner, or one of a newer version.
    """
    path = Path(path)
    # Kinds register when their modules are imported, which import this one.
    from alignkit.deepalign import dws, encoder  # noqa: F401

    header, tensors = _opened(path, _read)
    if header.get("version", 0) > VERSION:
        raise WeightsError(f"{path} was written by a newer alignkit (format {header['version']}). Upgrade alignkit.")
    kind = ALIGNERS.get(str(header.get("encoder")))
    if kind is None:
        near = did_you_mean(str(header.get("encoder")), ALIGNERS)
        raise WeightsError(f"{path} holds an aligner with the unknown encoder {header.get('encoder')!r}.{near}")
    try:
        aligner = kind.rebuilt(header["settings"])
        aligner.load_state_dict(tensors)
    except (AlignkitError, RuntimeError, TypeError, KeyError, ValueError) as error:
        raise WeightsError(f"{path}: its parameters do not fit its settings: {error}") from error
    if not all(bool(torch.isfinite(tensor).all()) for tensor in tensors.values()):
        raise WeightsError(f"{path} holds NaN or infinity. Train it again, or take an earlier checkpoint.")
    return aligner.eval()


def read_card(path: str | Path) -> dict[str, str]:
    """The model card of an aligner's file.

    Raises:
        WeightsError: As in `load_aligner`.
    """
    return _opened(Path(path), lambda file: dict(json.loads((file.metadata() or {}).get("card", "{}"))))


Found = TypeVar("Found")


def _opened(path: Path, read: Callable[[Any], Found]) -> Found:
    if not path.is_file():
        raise WeightsError(f"{path} does not exist. Give the file of an aligner, or leave the shipped one.")
    try:
        with safetensors.safe_open(path, "pt") as file:
            if FORMAT not in (file.metadata() or {}):
                raise WeightsError(f"{path} holds no aligner. Aligners are written by alignkit train-deepalign.")
            return read(file)
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        if isinstance(error, AlignkitError):
            raise
        raise WeightsError(f"{path} cannot be read as an aligner: {error}.") from error


def _read(file: Any) -> tuple[dict[str, Any], dict[str, Tensor]]:
    header = json.loads(file.metadata()[FORMAT])
    return header, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, not a mapping
