"""Small networks of one's own with signs, scales, rotations and phases, in a module that the command line can name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

MODULE = '''
import torch
from torch import nn


def relu():
    layers = nn.Linear(4, 7), nn.ReLU(), nn.Linear(7, 6), nn.ReLU(), nn.Linear(6, 3)
    return nn.Sequential(*layers).eval(), torch.randn(5, 4)


def tanh():
    layers = nn.Linear(4, 7), nn.Tanh(), nn.Linear(7, 6), nn.Tanh(), nn.Linear(6, 3)
    return nn.Sequential(*layers).eval(), torch.randn(5, 4)


class Sine(nn.Module):
    def __init__(self, inputs, outputs):
        super().__init__()
        self.linear, self.w0 = nn.Linear(inputs, outputs), 5.0

    def forward(self, x):
        return torch.sin(self.w0 * self.linear(x))


def siren():
    return nn.Sequential(Sine(4, 7), Sine(7, 6), nn.Linear(6, 3)).eval(), torch.randn(5, 4)


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm, self.head = nn.LSTM(3, 6, batch_first=True), nn.Linear(6, 2)

    def forward(self, x):
        return self.head(self.lstm(x)[0])


def lstm():
    return Recurrent().eval(), torch.randn(2, 4, 3)


class Normed(nn.Module):
    """A stream that rotates with the vector of ones fixed."""

    def __init__(self):
        super().__init__()
        self.embed, self.norm = nn.Linear(5, 8), nn.LayerNorm(8)
        self.up, self.down = nn.Linear(8, 12), nn.Linear(12, 8)
        self.last, self.head = nn.LayerNorm(8), nn.Linear(8, 3)

    def forward(self, x):
        x = self.embed(x)
        x = x + self.down(nn.functional.gelu(self.up(self.norm(x))))
        return self.head(self.last(x))


def stream():
    return Normed().eval(), torch.randn(6, 5)
'''
_NAMES: dict[str, Any] = {}
exec(MODULE, _NAMES)
NETS: dict[str, Callable[[], Any]] = {name: _NAMES[name] for name in ("relu", "tanh", "siren", "lstm", "stream")}
