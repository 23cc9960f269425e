"""Layers of random networks: what one value, or two, become."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu,
    "leaky relu": functional.leaky_relu,
    "squared relu": lambda x: torch.relu(x).square(),
    "tanh": torch.tanh,
    "sine": torch.sin,
    "cosine": torch.cos,
    "abs": torch.abs,
    "square": torch.square,
    "gelu": functional.gelu,
    "silu": functional.silu,
    "sigmoid": torch.sigmoid,
    "softplus": functional.softplus,
    "identity": lambda x: x,
}


class Activation(nn.Module):
    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def forward(self, x: Tensor) -> Tensor:
        return ACTIVATIONS[self.name](x)

    def extra_repr(self) -> str:
        return self.name


class Vector(nn.Module):
    """A number for each unit, which several modules may hold."""

    def __init__(self, vector: nn.Parameter) -> None:
        super().__init__()
        self.vector = vector

    def extra_repr(self) -> str:
        return f"{tuple(self.vector.shape)}"


class Scale(Vector):
    def forward(self, x: Tensor) -> Tensor:
        return self.vector * x


class Shift(Vector):
    def forward(self, x: Tensor) -> Tensor:
        return x + self.vector


class Sine(Vector):
    """A sine with frequencies that are learned."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(2 * (self.vector * x))


class Combined(nn.Module):
    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        if self.how == "concatenation":
            return torch.cat([x, y], -1)
        return x * y if self.how == "product" else x - y if self.how == "difference" else x + y

    def extra_repr(self) -> str:
        return self.how


class Gated(nn.Module):
    """A gated MLP."""

    def __init__(self, width: int, hidden: int, out: int, activation: str, bias: bool) -> None:
        super().__init__()
        self.gate, self.up = (nn.Linear(width, hidden, bias) for _ in range(2))
        self.act, self.down = Activation(activation), nn.Linear(hidden, out, bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.act(self.gate(x)) * self.up(x))


class Modulation(nn.Module):
    """FiLM: a scale and a shift that another value makes."""

    def __init__(self, width: int, by: int) -> None:
        super().__init__()
        self.scale, self.shift = nn.Linear(by, width), nn.Linear(by, width)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return x * (1 + self.scale(y)) + self.shift(y)


class LowRank(nn.Module):
    """A linear layer and a product of low rank beside it."""

    def __init__(self, base: nn.Linear, rank: int) -> None:
        super().__init__()
        self.base = base
        self.a = nn.Linear(base.in_features, rank, bias=False)
        self.b = nn.Linear(rank, base.out_features, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.b(self.a(x))


class Transposed(nn.Module):
    """The weight of another layer, backwards."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.layer.weight


class Experts(nn.Module):
    """Small MLPs in stacked tensors, mixed by a router."""

    def __init__(self, width: int, count: int, hidden: int, out: int, activation: str) -> None:
        super().__init__()
        self.router, self.act = nn.Linear(width, count), Activation(activation)
        self.up = nn.Parameter(torch.empty(count, hidden, width))
        self.down = nn.Parameter(torch.empty(count, out, hidden))

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.act(torch.einsum("...w,ehw->...eh", x, self.up))
        each = torch.einsum("...eh,eoh->...eo", hidden, self.down)
        return torch.einsum("...e,...eo->...o", self.router(x).softmax(-1), each)


class Attention(nn.Module):
    """Attention over tokens, with several heads of queries for one of keys and values, and rotary positions."""

    def __init__(self, width: int, heads: int, queries: int, size: int, rotary: bool, bias: bool, norms: bool) -> None:
        super().__init__()
        self.size, self.queries, self.rotary = size, queries, rotary
        self.q, self.k = (nn.Linear(width, n * size, bias) for n in (heads * queries, heads))
        self.v, self.o = nn.Linear(width, heads * size, bias), nn.Linear(heads * queries * size, width, bias)
        self.norms = nn.ModuleList(nn.RMSNorm(size, eps=1e-6) if norms else nn.Identity() for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (layer(x).unflatten(-1, (-1, self.size)).transpose(-2, -3) for layer in (self.q, self.k, self.v))
        q, k = self.norms[0](q), self.norms[1](k)
        if self.rotary:
            q, k = turned(q), turned(k)
        k, v = (each.repeat_interleave(self.queries, -3) for each in (k, v))
        return self.o(functional.scaled_dot_product_attention(q, k, v).transpose(-2, -3).flatten(-2))


def turned(x: Tensor) -> Tensor:
    """Turn the planes ``(i, i + n/2)`` of ``[..., time, n]`` by position."""
    half = x.shape[-1] // 2
    angles = torch.outer(torch.arange(x.shape[-2]), 0.6 ** torch.arange(half)).to(x)
    left, right = x[..., :half], x[..., half:]
    return torch.cat([left * angles.cos() - right * angles.sin(), right * angles.cos() + left * angles.sin()], -1)


class Recurrent(nn.Module):
    def __init__(self, cell: nn.RNNBase) -> None:
        super().__init__()
        self.cell = cell

    def forward(self, x: Tensor) -> Tensor:
        return self.cell(x)[0]


class Channels(nn.Module):
    """A layer that has channels on the second axis, on values that have them last."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.transpose(1, -1)).transpose(1, -1)
