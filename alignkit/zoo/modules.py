"""Blocks of the networks in a data set: plain modules that can be traced and run under ``torch.vmap``."""

from __future__ import annotations

import math
from collections import OrderedDict

import torch
from torch import Tensor, nn
from torch.nn import functional

LSTM_TENSORS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")


class Sine(nn.Module):
    """``sin(omega x)``, the activation of SIREN networks ([Sitzmann20])."""

    def __init__(self, omega: float = 1.0) -> None:
        super().__init__()
        self.omega = omega

    def forward(self, inputs: Tensor) -> Tensor:
        """Apply the sine elementwise."""
        return torch.sin(self.omega * inputs)


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with BatchNorm, and a shortcut: ``[n, before, h, w]`` to ``[n, width, h/s, w/s]``."""

    def __init__(self, before: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, width, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU()
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or before != width:
            conv = nn.Conv2d(before, width, 1, stride, bias=False)
            self.shortcut = nn.Sequential(OrderedDict(conv=conv, norm=nn.BatchNorm2d(width)))

    def forward(self, inputs: Tensor) -> Tensor:
        """Do one residual step."""
        hidden = self.relu(self.norm1(self.conv1(inputs)))
        added: Tensor = self.norm2(self.conv2(hidden)) + self.shortcut(inputs)
        return added.relu()


class Attention(nn.Module):
    """Multi-head self-attention ``[n, tokens, dim]`` to the same shape, in operations that vmap batches.

    Where it is causal a token sees only itself and those before it.
    """

    def __init__(self, dim: int, heads: int, causal: bool = False) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.query, self.key, self.value, self.out = (nn.Linear(dim, dim) for _ in range(4))

    def forward(self, tokens: Tensor) -> Tensor:
        """Mix the tokens."""
        projected = [layer(tokens) for layer in (self.query, self.key, self.value)]
        query, key, value = (x.view(*x.shape[:-1], self.heads, -1).transpose(1, 2) for x in projected)
        scores = query @ key.mT / math.sqrt(query.shape[-1])
        if self.causal:
            later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
            scores = scores.masked_fill(later, -math.inf)
        mixed: Tensor = self.out((scores.softmax(-1) @ value).transpose(1, 2).flatten(2))
        return mixed


class EncoderBlock(nn.Module):
    """Pre-norm attention and a two-layer MLP, both added to the residual stream."""

    def __init__(self, dim: int, heads: int, hidden: int, causal: bool = False) -> None:
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(dim), Attention(dim, heads, causal)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(OrderedDict(up=nn.Linear(dim, hidden), act=nn.GELU(), down=nn.Linear(hidden, dim)))

    def forward(self, tokens: Tensor) -> Tensor:
        """Do one encoder step."""
        tokens = tokens + self.attention(self.norm1(tokens))
        moved: Tensor = self.mlp(self.norm2(tokens))
        return tokens + moved


class VisionTransformer(nn.Module):
    """Patches, encoder blocks, mean over tokens, classifier; ``[n, c, h, w]`` to ``[n, outputs]``."""

    def __init__(
        self, channels: int, tokens: int, patch: int, dim: int, heads: int, depth: int, hidden: int, outputs: int
    ) -> None:
        super().__init__()
        self.patches = nn.Conv2d(channels, dim, patch, patch)
        self.positions = nn.Parameter(0.02 * torch.randn(1, tokens, dim))
        self.blocks = nn.Sequential(*(EncoderBlock(dim, heads, hidden) for _ in range(depth)))
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, outputs)

    def forward(self, images: Tensor) -> Tensor:
        """Classify images."""
        tokens = self.patches(images).flatten(2).transpose(1, 2) + self.positions
        scores: Tensor = self.head(self.norm(self.blocks(tokens)).mean(1))
        return scores


class RowTransformer(nn.Module):
    """A GPT over the rows of an image, classified at the last one: ``[n, 1, h, w]`` to ``[n, outputs]``."""

    def __init__(self, rows: int, columns: int, dim: int, heads: int, depth: int, hidden: int, outputs: int) -> None:
        super().__init__()
        self.rows = nn.Linear(columns, dim)
        self.positions = nn.Parameter(0.02 * torch.randn(1, rows, dim))
        self.blocks = nn.Sequential(*(EncoderBlock(dim, heads, hidden, causal=True) for _ in range(depth)))
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, outputs)

    def forward(self, images: Tensor) -> Tensor:
        """Classify images."""
        tokens = self.blocks(self.rows(images.squeeze(1)) + self.positions)
        scores: Tensor = self.head(self.norm(tokens[:, -1]))
        return scores


class RowReader(nn.Module):
    """An LSTM over the rows of an image, classified from its last state: ``[n, 1, h, w]`` to ``[n, outputs]``.

    In training the LSTM is unrolled into products that vmap batches; the function is the same.
    """

    def __init__(self, columns: int, hidden: int, layers: int, outputs: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(columns, hidden, layers, batch_first=True)
        self.head = nn.Linear(hidden, outputs)

    def forward(self, images: Tensor) -> Tensor:
        """Classify images."""
        rows = images.squeeze(1)
        if not self.training:
            rows = self.lstm(rows)[0]
        for layer in range(self.lstm.num_layers if self.training else 0):
            read, keep, bias_read, bias_keep = (getattr(self.lstm, f"{name}_l{layer}") for name in LSTM_TENSORS)
            inputs = functional.linear(rows, read, bias_read + bias_keep)
            states: list[Tensor] = []
            cell = torch.zeros_like(inputs[:, 0, : self.lstm.hidden_size])
            for step in range(rows.shape[1]):
                gates = inputs[:, step] + (states[-1] @ keep.mT if states else 0.0)
                enter, forget, content, leave = gates.chunk(4, -1)
                cell = forget.sigmoid() * cell + enter.sigmoid() * content.tanh()
                states.append(leave.sigmoid() * cell.tanh())
            rows = torch.stack(states, 1)
        scores: Tensor = self.head(rows[:, -1])  # by now the states ``[n, h, hidden]`` of the last layer
        return scores
