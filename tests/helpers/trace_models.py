"""Small models, one for each kind of structure that a trace has to see."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812


class Parts(nn.Module):
    """A function of parts, which are modules, parameters or buffers, and of inputs: `function(self, *inputs)`."""

    def __init__(self, function: Callable[..., Tensor], **parts: nn.Module | Tensor) -> None:
        super().__init__()
        self.function = function
        for name, part in parts.items():
            if isinstance(part, Tensor) and not isinstance(part, nn.Parameter):
                self.register_buffer(name, part)
            else:
                setattr(self, name, part)

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.function(self, *inputs)


class Attention(nn.Module):
    """Attention with a fused projection and a residual, by the fused op or by hand."""

    def __init__(self, heads: int = 4, width: int = 16, by_hand: bool = False) -> None:
        super().__init__()
        self.inp, self.qkv = nn.Linear(5, width), nn.Linear(width, 3 * width)
        self.proj, self.out = nn.Linear(width, width), nn.Linear(width, 3)
        self.heads, self.by_hand = heads, by_hand

    def forward(self, x: Tensor) -> Tensor:
        x = self.inp(x)
        b, n, c = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        y = (q @ k.mT).softmax(-1) @ v if self.by_hand else F.scaled_dot_product_attention(q, k, v)
        return self.out(self.proj(y.transpose(1, 2).reshape(b, n, c)) + x)


class KeysWithoutBias(nn.Module):
    """Attention whose fused bias has zeros, held by a buffer, for the keys (BEiT, EVA)."""

    def __init__(self, heads: int = 4, width: int = 16, saved: bool = False, shifted: bool = False) -> None:
        super().__init__()
        self.inp, self.qkv = nn.Linear(5, width), nn.Linear(width, 3 * width, bias=False)
        self.q_bias, self.v_bias = nn.Parameter(torch.randn(width)), nn.Parameter(torch.randn(width))
        self.register_buffer("k_bias", torch.zeros(width), persistent=saved)
        self.proj, self.out = nn.Linear(width, width), nn.Linear(width, 3)
        self.heads, self.shifted = heads, shifted

    def forward(self, x: Tensor) -> Tensor:
        x = self.inp(x)
        b, n, c = x.shape
        bias = torch.cat([self.q_bias, self.k_bias, self.v_bias])
        if self.shifted:
            self.k_bias.add_(x.mean((0, 1)))
        qkv = F.linear(x, self.qkv.weight, bias).reshape(b, n, 3, self.heads, c // self.heads)
        y = F.scaled_dot_product_attention(*qkv.permute(2, 0, 3, 1, 4))
        return self.out(self.proj(y.transpose(1, 2).reshape(b, n, c)) + x)


class GroupedQueries(nn.Module):
    """Grouped-query attention: two query heads for each of two key-value heads."""

    def __init__(self, repeat: bool = False) -> None:
        super().__init__()
        self.inp = nn.Linear(5, 16)
        self.q, self.k, self.v = nn.Linear(16, 32), nn.Linear(16, 16), nn.Linear(16, 16)
        self.proj, self.out = nn.Linear(32, 16), nn.Linear(16, 3)
        self.repeat = repeat

    def forward(self, x: Tensor) -> Tensor:
        x = self.inp(x)
        b, n, _ = x.shape
        q, k, v = (f(x).view(b, n, -1, 8).transpose(1, 2) for f in (self.q, self.k, self.v))
        if self.repeat:
            k, v = k.repeat_interleave(2, 1), v.repeat_interleave(2, 1)
            y = F.scaled_dot_product_attention(q, k, v)
        else:
            y = F.scaled_dot_product_attention(q, k, v, enable_gqa=True)
        return self.out(self.proj(y.transpose(1, 2).flatten(2)) + x)


class FusedGroupedQueries(nn.Module):
    """Grouped-query attention from one projection: the query heads of a key-value head, then its key and value."""

    def __init__(self, kv_heads: int = 2, queries: int = 4, size: int = 4) -> None:
        super().__init__()
        self.shape = (kv_heads, queries + 2, size)
        self.inp, self.qkv = nn.Linear(5, 16), nn.Linear(16, kv_heads * (queries + 2) * size)
        self.proj, self.out = nn.Linear(kv_heads * queries * size, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.inp(x)
        qkv = self.qkv(x).unflatten(-1, self.shape)
        q, k, v = qkv[:, :, :, :-2], qkv[:, :, :, [-2]], qkv[:, :, :, [-1]]
        q, k, v = (t.expand(q.shape).flatten(2, 3).transpose(1, 2) for t in (q, k, v))
        y = F.scaled_dot_product_attention(q, k, v)
        return self.out(self.proj(y.transpose(1, 2).flatten(2)) + x)


class HeadsMeet(nn.Module):
    """Attention of heads to each other, where groups of three share their units: units of all groups are tied."""

    def __init__(self) -> None:
        super().__init__()
        self.shared, self.own = nn.Linear(5, 4), nn.Linear(5, 12)
        self.out, self.head = nn.Linear(12, 3), nn.Linear(2, 3)

    def forward(self, x: Tensor) -> Tensor:
        shared = self.shared(x).view(-1, 2, 1, 2).expand(-1, 2, 3, 2).flatten(1, 2)
        own = self.own(x).view(-1, 6, 2)
        y = (shared @ shared.mT).softmax(-1) @ own
        return self.out(y.flatten(1)) + self.head(own.tanh().sum(1))


class CrossCovariance(nn.Module):
    """Attention between units instead of positions: two families of units in one head."""

    def __init__(self, heads: int = 4, width: int = 16) -> None:
        super().__init__()
        self.inp, self.qkv = nn.Linear(5, width), nn.Linear(width, 3 * width)
        self.proj, self.out = nn.Linear(width, width), nn.Linear(width, 3)
        self.temperature = nn.Parameter(torch.ones(heads, 1, 1))
        self.heads = heads

    def forward(self, x: Tensor) -> Tensor:
        x = self.inp(x)
        b, n, c = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.heads, c // self.heads).permute(2, 0, 3, 4, 1)
        scores = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).mT * self.temperature
        y = scores.softmax(-1) @ v
        return self.out(self.proj(y.permute(0, 3, 1, 2).reshape(b, n, c)) + x)


class Recurrent(nn.Module):
    """A recurrent layer and a linear one."""

    def __init__(self, layer: type[nn.RNNBase], **options: object) -> None:
        super().__init__()
        self.cell = layer(5, 8, batch_first=True, **options)
        self.out = nn.Linear(16 if options.get("bidirectional") else 8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.cell(x)[0])


class TakesFirst(nn.Module):
    """The first of several results, as between the layers of a sequence."""

    def forward(self, results: tuple[Tensor, ...]) -> Tensor:
        return results[0]


class CellLoop(nn.Module):
    """A recurrent cell run over time, from the state that it makes by itself."""

    def __init__(self, cell: type[nn.RNNCellBase]) -> None:
        super().__init__()
        self.cell, self.out = cell(5, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        state = None
        for step in x.unbind(1):
            state = self.cell(step, state)
        return self.out(state[0] if isinstance(state, tuple) else state)


class Experts(nn.Module):
    """A soft mixture of experts, stored as three-dimensional tensors."""

    def __init__(self, experts: int = 4, width: int = 16, hidden: int = 24) -> None:
        super().__init__()
        self.inp, self.gate, self.out = nn.Linear(5, width), nn.Linear(width, experts), nn.Linear(width, 3)
        self.up = nn.Parameter(torch.randn(experts, width, hidden))
        self.down = nn.Parameter(torch.randn(experts, hidden, width))

    def forward(self, x: Tensor) -> Tensor:
        x = self.inp(x)[0]
        weights = self.gate(x).softmax(-1)
        hidden = torch.einsum("td,edu->etu", x, self.up).relu()
        y = torch.einsum("etu,eud->etd", hidden, self.down)
        return self.out((y * weights.T[:, :, None]).sum(0) + x)


class UNet(nn.Module):
    """Concatenation, transposed, grouped and strided convolutions, GroupNorm across a concatenation."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.down = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 12, 3, stride=2, padding=1)
        self.up, self.norm = nn.ConvTranspose2d(12, 8, 2, stride=2), nn.GroupNorm(4, 16)
        self.grouped = nn.Conv2d(16, 16, 3, groups=4, padding=1)
        self.widen, self.leave = nn.ConvTranspose2d(16, 8, 3, groups=4), nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = self.enter(x).relu()
        both = torch.cat([a, self.up(self.down(a).relu())], 1)
        return self.leave(self.widen(self.grouped(self.norm(both).relu()).relu()))


class PositionalConvolution(nn.Module):
    """A grouped convolution that reads a residual stream and adds to it (wav2vec 2.0)."""

    def __init__(self) -> None:
        super().__init__()
        self.inp, self.out = nn.Linear(5, 8), nn.Linear(8, 3)
        self.conv = nn.Conv1d(8, 8, 3, padding=1, groups=2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.inp(x)
        return self.out(x + self.conv(x.mT).mT)


class StandardisedFilters(nn.Module):
    """A grouped convolution whose weight is standardised first, as timm does."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.leave = nn.Conv2d(3, 8, 3), nn.Conv2d(12, 4, 1)
        self.filters, self.gain = nn.Parameter(torch.randn(12, 4, 3, 3)), nn.Parameter(torch.ones(12, 1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        flat = self.filters.reshape(1, 12, -1)
        w = F.batch_norm(flat, None, None, weight=self.gain.view(-1), training=True).reshape(self.filters.shape)
        return self.leave(F.conv2d(self.enter(x).relu(), w, groups=2).relu())


class Gated(nn.Module):
    """A gated linear unit: two halves of one axis move together."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(5, 16), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.glu(self.up(x)))


class Tied(nn.Module):
    """An embedding that is also the head."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.hidden = nn.Embedding(11, 8), nn.Linear(8, 8)
        self.head = nn.Linear(8, 11, bias=False)
        self.head.weight = self.table.weight

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.table(ids) + self.hidden(self.table(ids)).tanh())


class WritesInPlace(nn.Module):
    """In-place ops on tensors and on views of them."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(5, 8), nn.Linear(5, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        y.relu_()
        y += self.b(x)
        y.view(-1).mul_(2)
        return self.c(y)


class WritesPartOfABuffer(nn.Module):
    """Results laid into slices of a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(5, 8), nn.Linear(5, 8), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        both = torch.zeros(x.shape[0], 16, dtype=x.dtype)
        both[:, :8] = self.a(x)
        both[:, 8:] = self.b(x)
        return self.c(both)


class Rotary(nn.Module):
    """Rotary positions: units of q and k are tied to frequencies, heads and units of v are free."""

    def __init__(self, heads: int = 3, size: int = 4) -> None:
        super().__init__()
        width = heads * size
        self.inp, self.q, self.k = nn.Linear(5, width), nn.Linear(width, width), nn.Linear(width, width)
        self.v, self.proj, self.out = nn.Linear(width, width), nn.Linear(width, width), nn.Linear(width, 3)
        self.heads, self.size = heads, size

    def forward(self, x: Tensor) -> Tensor:
        x = self.inp(x)
        b, n, c = x.shape
        q, k, v = (f(x).view(b, n, self.heads, self.size).transpose(1, 2) for f in (self.q, self.k, self.v))
        angle = torch.arange(n, dtype=x.dtype)[:, None] * torch.tensor([1.0, 0.1], dtype=x.dtype).repeat(2)

        def turn(t: Tensor) -> Tensor:
            half = t.shape[-1] // 2
            return t * angle.cos() + torch.cat([-t[..., half:], t[..., :half]], -1) * angle.sin()

        y = F.scaled_dot_product_attention(turn(q), turn(k), v)
        return self.out(self.proj(y.transpose(1, 2).reshape(b, n, c)) + x)


class RelativePositions(nn.Module):
    """A learned bias for each head and distance, looked up by an index buffer."""

    def __init__(self, heads: int = 4, width: int = 16, length: int = 6) -> None:
        super().__init__()
        self.inp, self.qkv, self.out = nn.Linear(5, width), nn.Linear(width, 3 * width), nn.Linear(width, 3)
        self.bias = nn.Parameter(torch.randn(2 * length - 1, heads))
        self.register_buffer("index", torch.arange(length)[:, None] - torch.arange(length)[None] + length - 1)
        self.heads = heads

    def forward(self, x: Tensor) -> Tensor:
        x = self.inp(x)
        b, n, c = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        bias = self.bias[self.index.view(-1)].view(n, n, -1).permute(2, 0, 1)
        y = (q @ k.mT + bias).softmax(-1) @ v
        return self.out(y.transpose(1, 2).reshape(b, n, c))
