"""Tiny networks of many families, for tests of what the second pass of the tracer finds.

Their widths are a few units each, so that the number of free directions of their weights can be computed. None of them
is square where it need not be: a wrong axis would not be seen.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention, silu

VOCABULARY, WIDTH, HEADS, SIZE, HIDDEN, LENGTH = 9, 6, 2, 4, 5, 5
Function = Callable[[Tensor], Tensor]


class RMSNorm(nn.Module):
    """RMSNorm as transformers writes it; with an offset, as Gemma does."""

    def __init__(self, width: int, offset: float = 0.0) -> None:
        super().__init__()
        self.weight, self.offset = nn.Parameter(torch.ones(width) - offset), offset

    def forward(self, x: Tensor) -> Tensor:
        x = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)
        return (self.offset + self.weight) * x if self.offset else self.weight * x


class HandLayerNorm(nn.Module):
    """LayerNorm written out."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        x = x - x.mean(-1, keepdim=True)
        return x / (x.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt() * self.weight + self.bias


class Rotary(nn.Module):
    """Rotary positions on the last dimension, in halves or of adjacent units."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, x: Tensor) -> Tensor:
        half = x.shape[-1] // 2
        angles = torch.arange(x.shape[-2], dtype=x.dtype)[:, None] * 0.7 ** (
            torch.arange(half, dtype=x.dtype) * 2 / half
        )
        if self.kind == "halves":
            cos, sin = (torch.cat([table, table], -1) for table in (angles.cos(), angles.sin()))
            return x * cos + torch.cat([-x[..., half:], x[..., :half]], -1) * sin
        if self.kind == "complex":
            pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous())
            return torch.view_as_real(pairs * torch.polar(torch.ones_like(angles), angles)).flatten(-2)
        first, second = x[..., 0::2], x[..., 1::2]
        turned = [first * angles.cos() - second * angles.sin(), first * angles.sin() + second * angles.cos()]
        return torch.stack(turned, -1).flatten(-2)


class Attention(nn.Module):
    """Attention with projections of its own, for grouped queries too, eager or fused."""

    def __init__(
        self, *, bias: bool = False, groups: int = 1, rotary: str = "", eager: bool = False, norm: bool = False
    ) -> None:
        super().__init__()
        self.groups, self.eager = groups, eager
        self.q = nn.Linear(WIDTH, HEADS * groups * SIZE, bias)
        self.k, self.v = (nn.Linear(WIDTH, HEADS * SIZE, bias) for _ in range(2))
        self.o = nn.Linear(HEADS * groups * SIZE, WIDTH, bias)
        self.turn: nn.Module = Rotary(rotary) if rotary else nn.Identity()
        self.q_norm, self.k_norm = (RMSNorm(SIZE), RMSNorm(SIZE)) if norm else (nn.Identity(), nn.Identity())

    def forward(self, x: Tensor, memory: Tensor | None = None) -> Tensor:
        memory = x if memory is None else memory
        q, k, v = (
            layer(y).unflatten(-1, (-1, SIZE)).transpose(-2, -3)
            for layer, y in ((self.q, x), (self.k, memory), (self.v, memory))
        )
        q, k = self.turn(self.q_norm(q)), self.turn(self.k_norm(k))
        k, v = (y.repeat_interleave(self.groups, -3) for y in (k, v))
        fused = scaled_dot_product_attention
        mixed = (q @ k.mT / SIZE**0.5).softmax(-1) @ v if self.eager else fused(q, k, v)
        return self.o(mixed.transpose(-2, -3).flatten(-2))


class FusedAttention(nn.Module):
    """Attention with one projection for queries, keys and values."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.o = nn.Linear(WIDTH, 3 * HEADS * SIZE), nn.Linear(HEADS * SIZE, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, HEADS, SIZE)).permute(2, 0, 3, 1, 4)
        return self.o(scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(-2))


class SharedKeys(nn.Module):
    """Two heads of queries with one head of keys and values, fused."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.o = nn.Linear(WIDTH, (HEADS + 2) * SIZE, bias=False), nn.Linear(HEADS * SIZE, WIDTH, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).split([HEADS * SIZE, SIZE, SIZE], -1)
        q, k, v = q.unflatten(-1, (HEADS, SIZE)).transpose(1, 2), k[:, None], v[:, None]
        return self.o(((q @ k.mT).softmax(-1) @ v).transpose(1, 2).flatten(-2))


class SoftExperts(nn.Module):
    """Layers that are mixed by a router, all products written as sums over named dimensions."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.router, self.head = nn.Linear(8, WIDTH), nn.Linear(WIDTH, 3), nn.Linear(HIDDEN, 5)
        self.first = nn.Parameter(torch.randn(3, WIDTH, HIDDEN))
        self.second = nn.Parameter(torch.randn(HIDDEN, HIDDEN))

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        hidden = torch.einsum("...w,ewh->...eh", x, self.first)
        mixed = torch.einsum("...e,...eh->...h", self.router(x).softmax(-1), hidden)
        return self.head(torch.einsum("...h,hw->...w", mixed, self.second))


class Experts(nn.Module):
    """Layers in one tensor each, all of them added up."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Parameter(torch.randn(2, HIDDEN, WIDTH)), nn.Parameter(torch.randn(2, WIDTH, HIDDEN))

    def forward(self, x: Tensor) -> Tensor:
        first, second = (silu(x @ up.T) @ down.T for up, down in zip(self.up, self.down, strict=True))
        return first + second


class MLP(nn.Module):
    """Two layers with an activation between them."""

    def __init__(
        self, activation: Function, *, bias: bool = True, width: int | None = None, out: int | None = None
    ) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width or WIDTH, HIDDEN, bias), nn.Linear(HIDDEN, out or WIDTH, bias)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.activation(self.up(x)))


class GatedMLP(nn.Module):
    """An MLP with a gate, fused with the layer beside it or not."""

    def __init__(self, *, fused: bool = False) -> None:
        super().__init__()
        layers = (
            [nn.Linear(WIDTH, 2 * HIDDEN, bias=False)]
            if fused
            else [nn.Linear(WIDTH, HIDDEN, bias=False) for _ in range(2)]
        )
        self.gate_up, self.down = nn.ModuleList(layers), nn.Linear(HIDDEN, WIDTH, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = torch.cat([layer(x) for layer in self.gate_up], -1).chunk(2, -1)
        return self.down(silu(gate) * up)


class Block(nn.Module):
    """A pre-norm block; scales behind its layers, or norms there, or a norm in the stream where asked for."""

    def __init__(
        self,
        norm: Callable[[int], nn.Module],
        attention: nn.Module,
        mlp: nn.Module,
        *,
        scale: bool = False,
        post: bool = False,
        behind: bool = False,
        parallel: bool = False,
    ) -> None:
        super().__init__()
        self.norm1, self.norm2, self.attention, self.mlp = norm(WIDTH), norm(WIDTH), attention, mlp
        self.scales = nn.ParameterList([nn.Parameter(0.1 * torch.ones(WIDTH)) for _ in range(2)]) if scale else None
        self.behind = nn.ModuleList([norm(WIDTH), norm(WIDTH)]) if behind else None
        self.post, self.parallel = post, parallel

    def branch(self, number: int, y: Tensor) -> Tensor:
        if self.scales is not None:
            y = y * self.scales[number]
        return y if self.behind is None else self.behind[number](y)

    def forward(self, x: Tensor) -> Tensor:
        if self.post:
            x = self.norm1(x + self.attention(x))
            return self.norm2(x + self.mlp(x))
        if self.parallel:
            return x + self.attention(self.norm1(x)) + self.mlp(self.norm2(x))
        x = x + self.branch(0, self.attention(self.norm1(x)))
        return x + self.branch(1, self.mlp(self.norm2(x)))


class Decoder(nn.Module):
    """Tokens, positions where asked for, blocks, a norm and a head."""

    def __init__(
        self,
        blocks: nn.Module,
        norm: nn.Module,
        *,
        positions: bool = False,
        tied: bool = False,
        bias: bool = False,
        first: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.first = nn.Identity() if first is None else first
        self.tokens = nn.Embedding(VOCABULARY, WIDTH)
        self.positions = nn.Embedding(LENGTH, WIDTH) if positions else None
        self.blocks, self.norm, self.head = blocks, norm, nn.Linear(WIDTH, VOCABULARY, bias)
        if tied:
            self.head.weight = self.tokens.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.tokens(ids)
        if self.positions is not None:
            x = x + self.positions(torch.arange(ids.shape[1]))
        return self.head(self.norm(self.blocks(self.first(x))))


class PatchNet(nn.Module):
    """Patches, a class token, positions, a block, and a classifier on the mean, or on the class token and the mean."""

    def __init__(self, *, scale: bool = False, both: bool = False) -> None:
        super().__init__()
        self.both = both
        self.patches = nn.Conv2d(1, WIDTH, 2, 2)
        self.token, self.positions = nn.Parameter(torch.randn(1, 1, WIDTH)), nn.Parameter(torch.randn(1, 5, WIDTH))
        self.block = Block(nn.LayerNorm, Attention(bias=True), MLP(nn.GELU()), scale=scale)
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(2 * WIDTH if both else WIDTH, 2)

    def forward(self, image: Tensor) -> Tensor:
        x = self.patches(image).flatten(2).mT
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.positions
        x = self.norm(self.block(x))
        return self.head(torch.cat([x[:, 0], x.mean(1)], -1) if self.both else x.mean(1))


class Loop(nn.Module):
    """One layer that reads again what it writes."""

    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.read, self.again, self.head = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 3)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        state = self.read(x)
        for _ in range(3):
            state = self.again(self.activation(state))
        return self.head(self.activation(state))


class Cells(nn.Module):
    """A recurrent layer, the states of all steps read by a linear layer."""

    def __init__(self, layer: nn.RNNBase) -> None:
        super().__init__()
        self.layer, self.head = layer, nn.Linear(layer.hidden_size, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(x)[0])


class LowRank(nn.Module):
    """A linear layer with a LoRA beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.base, self.a, self.b = nn.Linear(4, 3), nn.Linear(4, 2, bias=False), nn.Linear(2, 3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.b(self.a(x))


class Autoencoder(nn.Module):
    """One weight that encodes and decodes."""

    def __init__(self, activation: Function) -> None:
        super().__init__()
        self.encode, self.bias, self.activation = nn.Linear(5, HIDDEN), nn.Parameter(torch.zeros(5)), activation

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(self.encode(x)) @ self.encode.weight + self.bias


class Modulated(nn.Module):
    """An MLP on a norm whose gain is computed from the input (adaptive norm)."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.gain = nn.Linear(3, WIDTH), nn.Linear(3, WIDTH)
        self.norm, self.mlp, self.head = (
            nn.LayerNorm(WIDTH, elementwise_affine=False),
            MLP(nn.GELU()),
            nn.Linear(WIDTH, 2),
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.embed(x)
        y = y + self.mlp(self.norm(y) * (1 + self.gain(x)))
        return self.head(y)


class Translator(nn.Module):
    """An encoder, and a decoder that attends to it."""

    def __init__(self) -> None:
        super().__init__()
        self.read, self.write = nn.Embedding(VOCABULARY, WIDTH), nn.Embedding(VOCABULARY, WIDTH)
        self.encoder = Block(RMSNorm, Attention(), GatedMLP())
        self.encoder_norm, self.cross_norm, self.norm = RMSNorm(WIDTH), RMSNorm(WIDTH), RMSNorm(WIDTH)
        self.cross, self.head = Attention(), nn.Linear(WIDTH, VOCABULARY, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        memory = self.encoder_norm(self.encoder(self.read(ids)))
        x = self.write(ids.flip(1))
        return self.head(self.norm(x + self.cross(self.cross_norm(x), memory)))
