"""Architectures of the networks in a data set: frozen descriptions that build modules."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import OrderedDict
from itertools import pairwise
from typing import Annotated, Any, ClassVar, Literal, Self

import torch
from pydantic import Field, TypeAdapter, ValidationError
from torch import nn

from alignkit.arguments import check_arguments
from alignkit.errors import ZooChoiceError, ZooError
from alignkit.text import describe_validation
from alignkit.zoo.frozen import Frozen
from alignkit.zoo.modules import ResidualBlock, RowReader, RowTransformer, Sine, VisionTransformer

Positive = Annotated[int, Field(ge=1)]
Widths = Annotated[tuple[Positive, ...], Field(min_length=1)]
Activation = Literal["relu", "gelu", "tanh", "sin"]
ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "gelu": nn.GELU, "tanh": nn.Tanh, "sin": Sine}


class Architecture(Frozen, ABC):
    """What the networks of a data set look like. One subclass a family; `architecture` makes one by name."""

    family: str
    shape: tuple[Positive, ...] | None = None
    """Shape of one input, such as ``(1, 28, 28)``. None until a source is chosen, see `for_source`."""
    outputs: Positive | None = None
    """Size of the output. None until a source is chosen."""
    cpu_chunk: ClassVar[int] = 32
    """Networks that are best trained together on one core: fewer where the activations of one fill its cache."""

    @abstractmethod
    def _module(self, shape: tuple[int, ...], outputs: int) -> nn.Module:
        """Make a network with fresh weights from torch's global random numbers."""

    @abstractmethod
    def describe(self) -> str:
        """Return a short name, such as ``"mlp 128-128-128 relu"``."""

    def for_source(self, shape: tuple[int, ...], outputs: int) -> Self:
        """Fix the shape of one input (without the axis of samples) and the size of the output.

        Raises:
            ZooError: Shape or outputs were fixed before, to something else.
        """
        if self.shape not in (None, shape) or self.outputs not in (None, outputs):
            raise ZooError(
                f"{self.describe()}: shape {self.shape} and outputs {self.outputs} were given, but the source needs "
                f"shape {shape} and outputs {outputs}. Leave both out to have them filled in."
            )
        return self.model_copy(update={"shape": shape, "outputs": outputs})

    def build(self, seed: int = 0) -> nn.Module:
        """Make a network with the initial weights of this seed. Torch's global random numbers are left as they are.

        Raises:
            ZooError: Shape or outputs are not known, or the inputs are too small for the architecture.
        """
        if self.shape is None or self.outputs is None:
            raise ZooError(f"the architecture {self.describe()} has no shape or outputs yet: give both, or for_source.")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            try:
                return self._module(self.shape, self.outputs)
            except (RuntimeError, ValueError, IndexError, TypeError) as error:
                raise ZooError(f"{self.describe()} cannot be built for inputs {self.shape}: {error}") from error

    def example(self, samples: int = 4) -> torch.Tensor:
        """Draw random inputs ``[samples, *shape]``, always the same."""
        return torch.randn(samples, *(self.shape or ()), generator=torch.Generator().manual_seed(0))


class Mlp(Architecture):
    """Linear layers with an activation between them; images are flattened first."""

    family: Literal["mlp"] = "mlp"
    widths: Widths = (128, 128, 128)
    """Units of the hidden layers."""
    activation: Activation = "relu"
    norm: Literal["none", "layernorm"] = "none"
    """What normalises a hidden layer before its activation."""

    def describe(self) -> str:
        """Return a name such as ``"mlp 128-128-128 relu"``."""
        norm = "" if self.norm == "none" else f" {self.norm}"
        return f"mlp {_dashed(self.widths)} {self.activation}{norm}"

    def _module(self, shape: tuple[int, ...], outputs: int) -> nn.Module:
        layers: OrderedDict[str, nn.Module] = OrderedDict(flatten=nn.Flatten())
        for index, (before, width) in enumerate(pairwise((math.prod(shape), *self.widths)), start=1):
            layers[f"hidden{index}"] = nn.Linear(before, width)
            if self.norm == "layernorm":
                layers[f"norm{index}"] = nn.LayerNorm(width)
            layers[f"act{index}"] = ACTIVATIONS[self.activation]()
        return nn.Sequential(OrderedDict(**layers, out=nn.Linear(self.widths[-1], outputs)))


class Cnn(Architecture):
    """Convolutions, each with an activation and pooling, then linear layers."""

    family: Literal["cnn"] = "cnn"
    cpu_chunk: ClassVar[int] = 8
    channels: Widths = (16, 32)
    """Channels of the convolutions."""
    kernel: Annotated[int, Field(ge=1, le=15)] = 3
    """Size of the kernels; odd sizes keep the size of the image."""
    pooling: Literal["max", "average", "stride"] = "max"
    """How each convolution halves the image."""
    head: Literal["flatten", "mean"] = "flatten"
    """What is read after the last convolution: every position, or the mean over positions."""
    dense_widths: tuple[Positive, ...] = ()
    """Units of linear layers between the convolutions and the output."""
    activation: Activation = "relu"

    def describe(self) -> str:
        """Return a name such as ``"cnn 16-32 k3 max relu"``."""
        dense = f" dense {_dashed(self.dense_widths)}" if self.dense_widths else ""
        return f"cnn {_dashed(self.channels)} k{self.kernel} {self.pooling} {self.head}{dense} {self.activation}"

    def _module(self, shape: tuple[int, ...], outputs: int) -> nn.Module:
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        stride = 2 if self.pooling == "stride" else 1
        sides = list(shape[1:])
        for index, (before, width) in enumerate(pairwise((shape[0], *self.channels)), start=1):
            layers[f"conv{index}"] = nn.Conv2d(before, width, self.kernel, stride, padding=self.kernel // 2)
            layers[f"act{index}"] = ACTIVATIONS[self.activation]()
            if self.pooling != "stride":
                layers[f"pool{index}"] = nn.MaxPool2d(2) if self.pooling == "max" else nn.AvgPool2d(2)
            # An even kernel makes the image larger by one; pooling halves it after the convolution.
            sides = [(side + 2 * (self.kernel // 2) - self.kernel) // stride + 1 for side in sides]
            sides = sides if stride == 2 else [side // 2 for side in sides]
        if min(sides) < 1:
            raise ValueError(f"{len(self.channels)} halvings leave nothing of the image")
        layers["read"] = nn.Flatten() if self.head == "flatten" else _MeanOverPositions()
        units = self.channels[-1] * (math.prod(sides) if self.head == "flatten" else 1)
        for index, (before, width) in enumerate(pairwise((units, *self.dense_widths)), start=1):
            layers[f"hidden{index}"] = nn.Linear(before, width)
            layers[f"hidden_act{index}"] = ACTIVATIONS[self.activation]()
        layers["out"] = nn.Linear((units, *self.dense_widths)[-1], outputs)
        return nn.Sequential(layers)


class ResNet(Architecture):
    """A residual network with BatchNorm: a stem and stages of blocks, each stage twice as wide and half as large."""

    family: Literal["resnet"] = "resnet"
    cpu_chunk: ClassVar[int] = 8
    width: Positive = 8
    """Channels of the stem and the first stage."""
    blocks: Widths = (1, 1)
    """Residual blocks of each stage."""
    stem_stride: Annotated[int, Field(ge=1, le=4)] = 1
    """How much the stem shrinks the image."""

    def describe(self) -> str:
        """Return a name such as ``"resnet width 8 blocks 1-1"``."""
        stem = "" if self.stem_stride == 1 else f" stem {self.stem_stride}"
        return f"resnet width {self.width} blocks {_dashed(self.blocks)}{stem}"

    def _module(self, shape: tuple[int, ...], outputs: int) -> nn.Module:
        layers: OrderedDict[str, nn.Module] = OrderedDict(
            stem=nn.Conv2d(shape[0], self.width, 3, self.stem_stride, padding=1, bias=False),
            norm=nn.BatchNorm2d(self.width),
            relu=nn.ReLU(),
        )
        before = self.width
        for stage, count in enumerate(self.blocks, start=1):
            width = self.width * 2 ** (stage - 1)
            for block in range(1, count + 1):
                stride = 2 if stage > 1 and block == 1 else 1
                layers[f"stage{stage}_block{block}"] = ResidualBlock(before, width, stride)
                before = width
        layers["read"] = _MeanOverPositions()
        layers["out"] = nn.Linear(before, outputs)
        return nn.Sequential(layers)


class Transformer(Architecture):
    """What transformers of the zoo have in common: a residual stream, and blocks of attention and an MLP."""

    dim: Positive = 32
    """Size of the residual stream."""
    heads: Positive = 4
    depth: Positive = 2
    """Blocks."""
    hidden: Positive | None = None
    """Units of the MLP of a block; None is twice the size of the residual stream."""

    def describe(self) -> str:
        """Return a name such as ``"gpt dim 32 heads 4 depth 2 hidden 64"``."""
        return f"{self.family} dim {self.dim} heads {self.heads} depth {self.depth} hidden {self._units}"

    @property
    def _units(self) -> int:
        return self.hidden or 2 * self.dim

    def _sizes(self) -> tuple[int, int, int, int]:
        """Return the size of the stream, heads, depth and units of an MLP, checked to fit each other."""
        if self.dim % self.heads:
            raise ValueError(f"dim {self.dim} cannot be divided among {self.heads} heads")
        return self.dim, self.heads, self.depth, self._units


class Vit(Transformer):
    """A small vision transformer: patches, learned positions, pre-norm encoder blocks, mean over tokens."""

    family: Literal["vit"] = "vit"
    patch: Positive = 7
    """Side of a patch, in pixels."""

    def describe(self) -> str:
        """Return a name such as ``"vit dim 32 heads 4 depth 2 hidden 64 patch 7"``."""
        return f"{super().describe()} patch {self.patch}"

    def _module(self, shape: tuple[int, ...], outputs: int) -> nn.Module:
        (channels, height, width), sizes = shape, self._sizes()
        if height % self.patch or width % self.patch:
            raise ValueError(f"{height}x{width} pixels cannot be cut into patches of {self.patch}x{self.patch}")
        tokens = (height // self.patch) * (width // self.patch)
        return VisionTransformer(channels, tokens, self.patch, *sizes, outputs)


class Gpt(Transformer):
    """A small GPT that reads an image row by row, each row a token that sees those before it.

    The last token is classified.
    """

    family: Literal["gpt"] = "gpt"

    def _module(self, shape: tuple[int, ...], outputs: int) -> nn.Module:
        _, rows, columns = shape
        return RowTransformer(rows, columns, *self._sizes(), outputs)


class Siren(Architecture):
    """An implicit representation of a signal with sine activations and their initial weights ([Sitzmann20], 3.2)."""

    family: Literal["siren"] = "siren"
    widths: Widths = (32, 32)
    """Units of the hidden layers."""
    omega: Annotated[float, Field(gt=0)] = 30.0
    """Frequency of every sine; the initial weights shrink accordingly."""

    def describe(self) -> str:
        """Return a name such as ``"siren 32-32 omega 30"``."""
        return f"siren {_dashed(self.widths)} omega {self.omega:g}"

    def _module(self, shape: tuple[int, ...], outputs: int) -> nn.Module:
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        for index, (before, width) in enumerate(pairwise((math.prod(shape), *self.widths)), start=1):
            bound = 1 / before if index == 1 else math.sqrt(6 / before) / self.omega
            layers[f"hidden{index}"] = _uniform(nn.Linear(before, width), bound)
            layers[f"sine{index}"] = Sine(self.omega)
        layers["out"] = _uniform(nn.Linear(self.widths[-1], outputs), math.sqrt(6 / self.widths[-1]) / self.omega)
        return nn.Sequential(layers)


class Lstm(Architecture):
    """An LSTM that reads an image row by row; the last state is classified."""

    family: Literal["lstm"] = "lstm"
    hidden: Positive = 32
    """Units of a layer."""
    layers: Positive = 1

    def describe(self) -> str:
        """Return a name such as ``"lstm 32x1"``."""
        return f"lstm {self.hidden}x{self.layers}"

    def _module(self, shape: tuple[int, ...], outputs: int) -> nn.Module:
        return RowReader(shape[2], self.hidden, self.layers, outputs)


AnyArchitecture = Annotated[Mlp | Cnn | ResNet | Vit | Gpt | Siren | Lstm, Field(discriminator="family")]
_ADAPTER: TypeAdapter[Architecture] = TypeAdapter(AnyArchitecture)


@check_arguments
def architecture(family: str, **fields: Any) -> Architecture:
    """Make an architecture by the name of its family.

    Args:
        family: ``"mlp"``, ``"cnn"``, ``"resnet"``, ``"vit"``, ``"gpt"``, ``"siren"`` or ``"lstm"``.
        fields: As the class of that family takes them.

    Raises:
        ZooChoiceError: There is no such family, or a field is unknown or out of range.
    """
    try:
        return _ADAPTER.validate_python({"family": family, **fields})
    except ValidationError as error:
        why = describe_validation(error)
        raise ZooChoiceError(f"no architecture of family {family!r} can be made: {why}") from error


class _MeanOverPositions(nn.Module):
    """``[n, channels, h, w]`` to ``[n, channels]``."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Average over both axes of positions."""
        return images.mean((2, 3))


def _uniform(layer: nn.Linear, bound: float) -> nn.Linear:
    with torch.no_grad():
        layer.weight.uniform_(-bound, bound)
    return layer


def _dashed(widths: tuple[int, ...]) -> str:
    return "-".join(map(str, widths))
