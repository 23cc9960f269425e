"""Which kinds of groups tiny networks of many families have, and which free directions a trace does not count."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from helpers.gauge_nets import (
    HEADS as HEADS_COUNT,
)
from helpers.gauge_nets import (
    HIDDEN,
    LENGTH,
    MLP,
    SIZE,
    VOCABULARY,
    WIDTH,
    Attention,
    Autoencoder,
    Block,
    Cells,
    Decoder,
    Experts,
    FusedAttention,
    GatedMLP,
    HandLayerNorm,
    Loop,
    LowRank,
    Modulated,
    PatchNet,
    RMSNorm,
    SharedKeys,
    SoftExperts,
    Translator,
)

Build: TypeAlias = Callable[[], nn.Module]
Activation: TypeAlias = Callable[[Tensor], Tensor]
HEADS_SIZE = HEADS_COUNT * SIZE


@dataclass(frozen=True)
class Case:
    """A network of a family.

    Attributes:
        family: The family.
        build: Makes the network.
        batch: Makes a batch, with more outputs than the network has weights.
        kinds: The kind of each space that is not merely permuted, by name.
        reasons: Parts of what the report says of spaces that could have more.
        uncounted: Free directions that are neither rotations, folds nor balances: how many, by what they are.
    """

    family: str
    build: Callable[[], nn.Module]
    batch: Callable[[], Tensor]
    kinds: Mapping[str, str] = field(default_factory=dict)
    reasons: Mapping[str, str] = field(default_factory=dict)
    uncounted: Mapping[str, int] = field(default_factory=dict)


def _rows(width: int, count: int = 80) -> Callable[[], Tensor]:
    return lambda: torch.randn(count, width)


def _tokens() -> Tensor:
    return torch.randint(VOCABULARY, (40, LENGTH))


def _images() -> Tensor:
    return torch.randn(320, 1, 4, 4)


def _maps() -> Tensor:
    return torch.randn(150, 1, 5, 5)


def _steps() -> Tensor:
    return torch.randn(60, 4, 3)


SERIES = "a bias before a linear layer goes through it"
TWO_BIASES = "two biases that are added"
TABLES = "a vector moves between tables that are added"
STAYS = "a shift without a bias to go to moves along what its readers cannot see"
SHIFTS = "a shift moves between a norm in the stream and the bias that is added behind it"
DEAD = "rows of readers along the gain of their norm, which stays"
HEADS = {"blocks.attention.q": "orthogonal", "blocks.attention.v": "orthogonal"}
FUSED = {"blocks.attention.qkv.qk": "orthogonal", "blocks.attention.qkv.v": "orthogonal"}
ROTARY = {"tokens": "orthogonal", "blocks.attention.q": "planes", "blocks.attention.v": "orthogonal"}
ADJACENT = {**ROTARY, "blocks.attention.q": "adjacent_planes"}
PATCHES = {"patches": "centred", "block.attention.q": "orthogonal", "block.attention.v": "orthogonal"}
CROSS = {f"{m}.{x}": "orthogonal" for m in ("encoder.attention", "cross") for x in "qv"}


def _mlp(activation: Activation) -> Build:
    return lambda: MLP(activation, width=4, out=2)


def _gated(*, fused: bool) -> Build:
    return lambda: nn.Sequential(nn.Linear(3, WIDTH), nn.Tanh(), GatedMLP(fused=fused))


def _cells(layer: type[nn.RNNBase]) -> Build:
    return lambda: Cells(layer(3, 4, batch_first=True))


def _llama(offset: float = 0.0, tied: bool = False, behind: bool = False, **attention: Any) -> Build:
    def norm(width: int) -> nn.Module:
        return RMSNorm(width, offset)

    return lambda: Decoder(Block(norm, Attention(**attention), GatedMLP(), behind=behind), norm(WIDTH), tied=tied)


def _gpt(
    attention: Build = FusedAttention,
    norm: Callable[[int], nn.Module] = nn.LayerNorm,
    *,
    bias: bool = False,
    tied: bool = False,
    parallel: bool = False,
) -> Build:
    def build() -> nn.Module:
        block = Block(norm, attention(), MLP(nn.GELU()), parallel=parallel)
        return Decoder(block, norm(WIDTH), positions=True, bias=bias, tied=tied)

    return build


def _post_norm() -> nn.Module:
    block = Block(nn.LayerNorm, Attention(bias=True), MLP(nn.GELU()), post=True)
    return Decoder(block, nn.Identity(), positions=True, bias=True, first=nn.LayerNorm(WIDTH))


def _convolutions(*middle: nn.Module, bias: bool = True) -> Build:
    last = (nn.Conv2d(3, 4, 2), nn.Tanh(), nn.Flatten(), nn.Linear(16, 2))
    return lambda: nn.Sequential(nn.Conv2d(1, 3, 3, bias=bias), *middle, *last)


CASES: Mapping[str, Case] = {
    "relu": Case("MLP, scaled", _mlp(nn.ReLU()), _rows(4), reasons={"up": "aten.relu in activation"}),
    "leaky": Case("MLP, scaled", _mlp(nn.LeakyReLU()), _rows(4)),
    "squared relu": Case("MLP, scaled", _mlp(lambda x: x.relu() ** 2), _rows(4)),
    "prelu": Case("MLP, scaled", _mlp(nn.PReLU(HIDDEN)), _rows(4)),
    "tanh": Case("MLP, odd", _mlp(torch.tanh), _rows(4), {"up": "signed"}, {"up": "aten.tanh"}),
    "sine": Case("MLP, odd", _mlp(torch.sin), _rows(4), {"up": "signed"}),
    "erf": Case("MLP, odd", _mlp(torch.erf), _rows(4), {"up": "signed"}),
    "hardtanh": Case("MLP, odd", _mlp(nn.Hardtanh()), lambda: 3 * torch.randn(200, 4), {"up": "signed"}),
    "gelu": Case("MLP, neither", _mlp(nn.GELU()), _rows(4), reasons={"up": "aten.gelu in activation"}),
    "cosine": Case("MLP, neither", _mlp(torch.cos), _rows(4), reasons={"up": "aten.cos"}),
    "linear": Case(
        "deep linear", lambda: MLP(nn.Identity(), width=6, out=7), _rows(6), {"up": "orthogonal"}, {}, {SERIES: HIDDEN}
    ),
    "lora": Case("LoRA", LowRank, _rows(4), {"a": "orthogonal"}, {}, {"the base takes in the product": 10}),
    "autoencoder": Case("tied autoencoder", lambda: Autoencoder(torch.tanh), _rows(5), {"encode": "signed"}),
    "linear autoencoder": Case(
        "tied autoencoder", lambda: Autoencoder(nn.Identity()), _rows(5), {"encode": "orthogonal"}, {}, {SERIES: HIDDEN}
    ),
    "batch norm": Case(
        "convolution",
        _convolutions(nn.BatchNorm2d(3), nn.ReLU(), bias=False),
        _maps,
        {"layer.3": "signed"},
        {"layer.0": "aten.native_batch_norm in 1"},
        {"the scale of a convolution goes through the norm behind it": 3},
    ),
    "depthwise": Case(
        "convolution",
        _convolutions(nn.Conv2d(3, 3, 1, groups=3), nn.GELU(), bias=False),
        _maps,
        {"layer.3": "signed"},
        {"layer.0": "a kernel for each channel"},
    ),
    "pooling": Case(
        "convolution", _convolutions(nn.ReLU(), nn.MaxPool2d(2, 1, 1), nn.AvgPool2d(2, 1)), _maps, {"layer.4": "signed"}
    ),
    "rnn": Case("recurrent", _cells(nn.RNN), _steps, {"layer.l0": "signed"}, {}, {TWO_BIASES: 4}),
    "leaky loop": Case("recurrent, scaled", lambda: Loop(nn.LeakyReLU(0.5)), lambda: 9 * torch.randn(400, 3)),
    "lstm": Case("recurrent", _cells(nn.LSTM), _steps, {}, {}, {TWO_BIASES: 16}),
    "gru": Case("recurrent", _cells(nn.GRU), _steps, {}, {}, {TWO_BIASES: 8}),
    "swiglu": Case(
        "gated MLP", _gated(fused=False), _rows(3), {"layer.0": "signed"}, {"2.gate_up.0": "aten.silu in 2"}
    ),
    "fused swiglu": Case("gated MLP", _gated(fused=True), _rows(3), {"layer.0": "signed"}),
    "llama": Case(
        "RMSNorm, rotary", _llama(rotary="halves"), _tokens, ROTARY, {"blocks.attention.q": "rotary positions"}
    ),
    "grouped queries": Case("RMSNorm, rotary", _llama(rotary="halves", groups=2), _tokens, ROTARY),
    "adjacent rotary": Case("RMSNorm, rotary", _llama(rotary="adjacent", eager=True), _tokens, ADJACENT),
    "complex rotary": Case("RMSNorm, rotary", _llama(rotary="complex"), _tokens, ADJACENT),
    "biases of heads": Case("RMSNorm, rotary", _llama(rotary="halves", bias=True), _tokens, ROTARY),
    "offset gain": Case("RMSNorm, rotary", _llama(offset=1.0, rotary="halves"), _tokens, ROTARY),
    "no positions": Case("RMSNorm, no positions", _llama(), _tokens, {"tokens": "orthogonal", **HEADS}),
    "tied llama": Case(
        "tied head",
        _llama(tied=True, rotary="halves"),
        _tokens,
        {**ROTARY, "tokens": "permutation"},
        {"tokens": "Untie the head"},
    ),
    "norms of queries": Case(
        "norms in heads",
        _llama(rotary="halves", norm=True),
        _tokens,
        {**ROTARY, "blocks.attention.q": "fixed"},
        {"blocks.attention.q": "q_norm.weight stays"},
        {"a scale for each plane moves between both gains": 2},
    ),
    "norms behind": Case(
        "post-norm gains",
        _llama(behind=True, rotary="halves"),
        _tokens,
        {**ROTARY, "tokens": "permutation"},
        {"tokens": "post-norm"},
    ),
    "gpt": Case(
        "LayerNorm, positions",
        _gpt(),
        _tokens,
        {"tokens": "centred", **FUSED},
        {"tokens": "mean is subtracted"},
        {TABLES: WIDTH - 1, STAYS: WIDTH},
    ),
    "gpt with a bias": Case(
        "LayerNorm, positions", _gpt(bias=True), _tokens, {"tokens": "centred", **FUSED}, {}, {TABLES: WIDTH - 1}
    ),
    "written norm": Case(
        "LayerNorm, positions",
        _gpt(lambda: Attention(bias=True, eager=True), HandLayerNorm, bias=True),
        _tokens,
        {"tokens": "centred", **HEADS},
        {},
        {TABLES: WIDTH - 1},
    ),
    "parallel": Case(
        "LayerNorm, positions",
        _gpt(lambda: Attention(bias=True), bias=True, parallel=True),
        _tokens,
        {"tokens": "centred", **HEADS},
        {},
        {TABLES: WIDTH - 1, TWO_BIASES: WIDTH - 1},
    ),
    "tied gpt": Case("tied head", _gpt(tied=True), _tokens, FUSED, {"tokens": "Untie the head"}),
    "post-LN": Case(
        "post-LN",
        _post_norm,
        _tokens,
        HEADS,
        {"tokens": "post-LN"},
        {TABLES: WIDTH - 1, SHIFTS: 2 * WIDTH, DEAD: 3 * HEADS_SIZE + HIDDEN},
    ),
    "shared keys": Case(
        "RMSNorm, no positions",
        lambda: Decoder(Block(RMSNorm, SharedKeys(), GatedMLP()), RMSNorm(WIDTH)),
        _tokens,
        {"tokens": "orthogonal", "blocks.attention.qkv.2": "orthogonal", "blocks.attention.qkv.3": "orthogonal"},
    ),
    "experts": Case(
        "stacked layers",
        lambda: Decoder(Block(RMSNorm, Attention(), Experts()), RMSNorm(WIDTH)),
        _tokens,
        {"tokens": "orthogonal", **HEADS},
    ),
    "soft experts": Case(
        "stacked layers",
        SoftExperts,
        _rows(8),
        {"embed": "orthogonal", "layer.first": "orthogonal", "head": "orthogonal"},
        {"router": "aten._softmax"},
        {"the same number for all experts": WIDTH + 1, "stretched units of all experts": HIDDEN * (HIDDEN + 1) // 2},
    ),
    "two pools": Case("patches", lambda: PatchNet(both=True), _images, PATCHES, {}, {TABLES: 2 * (WIDTH - 1)}),
    "vit": Case("patches", lambda: PatchNet(), _images, PATCHES, {}, {TABLES: 2 * (WIDTH - 1)}),
    "layer scale": Case("patches", lambda: PatchNet(scale=True), _images, PATCHES, {}, {TABLES: 2 * (WIDTH - 1)}),
    "translator": Case(
        "encoder and decoder", Translator, _tokens, {"read": "orthogonal", "write": "orthogonal", **CROSS}
    ),
}
TOLD: Mapping[str, Case] = {
    "adaptive norm": Case("adaptive norm", Modulated, _rows(3), {}, {"embed": "elementwise product"}),
}
"""Networks whose free directions are not counted."""
