"""Architectures that show their units in every kind of module, each with its graph written by hand."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.functional import linear, relu

from alignkit.testing.problems import ProblemArchitecture, attention, convnet, mlp, residual


class Recurrent(nn.Module):
    def __init__(self, kind, **options):
        super().__init__()
        self.rnn = getattr(nn, kind)(3, 5, batch_first=True, **options)
        width = options.get("proj_size", 5) * (2 if options.get("bidirectional") else 1)
        self.read = nn.Linear(width, 2)

    def forward(self, x):
        return self.read(self.rnn(x)[0][:, -1])


def recurrent(kind, gates, **options):
    """Two layers, each with its own units; in both directions each has two."""
    model = Recurrent(kind, num_layers=2, **options)
    tails = ["", "_reverse"] if options.get("bidirectional") else [""]
    spec = {"read.bias": "."}
    for layer in (0, 1):
        below = " + ".join(f"h0{tail}" for tail in tails).replace(" ", "") if layer else "."
        for tail in tails:
            own = f"h{layer}{tail}"
            fused = "+".join([own] * gates)
            spec |= {
                f"rnn.weight_ih_l{layer}{tail}": f"{fused} {below}",
                f"rnn.weight_hh_l{layer}{tail}": f"{fused} {own}",
                f"rnn.bias_ih_l{layer}{tail}": fused,
                f"rnn.bias_hh_l{layer}{tail}": fused,
            }
    spec["read.weight"] = ". " + "+".join(f"h1{tail}" for tail in tails)
    return ProblemArchitecture(f"{kind} {options}", model, spec, (6, 3))


def projected_lstm():
    spec = {
        "rnn.weight_ih_l0": "c+c+c+c .",
        "rnn.weight_hh_l0": "c+c+c+c p",
        "rnn.bias_ih_l0": "c+c+c+c",
        "rnn.bias_hh_l0": "c+c+c+c",
        "rnn.weight_hr_l0": "p c",
        "read.weight": ". p",
        "read.bias": ".",
    }
    return ProblemArchitecture("projected LSTM", Recurrent("LSTM", proj_size=4), spec, (6, 3))


class Cells(nn.Module):
    def __init__(self):
        super().__init__()
        self.cell = nn.GRUCell(3, 5)
        self.read = nn.Linear(5, 2)

    def forward(self, x):
        state = x.new_zeros(len(x), 5)
        for step in x.unbind(1):
            state = self.cell(step, state)
        return self.read(state)


def cells():
    spec = {"cell.weight_ih": "h+h+h .", "cell.weight_hh": "h+h+h h", "cell.bias_ih": "h+h+h", "cell.bias_hh": "h+h+h"}
    return ProblemArchitecture("GRU cell", Cells(), {**spec, "read.weight": ". h", "read.bias": "."}, (4, 3))


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(4, 6)
        self.block = nn.TransformerEncoderLayer(6, 2, 7, batch_first=True)
        self.read = nn.Linear(6, 3)

    def forward(self, x):
        return self.read(self.block(self.embed(x)))


def encoder():
    fused = "(heads qk[heads])+(heads qk[heads])+(heads v[heads])"
    spec = {
        "embed.weight": "model .",
        "embed.bias": "model",
        "block.self_attn.in_proj_weight": f"{fused} model",
        "block.self_attn.in_proj_bias": fused,
        "block.self_attn.out_proj.weight": "model (heads v[heads])",
        "block.self_attn.out_proj.bias": "model",
        "block.linear1.weight": "hidden model",
        "block.linear1.bias": "hidden",
        "block.linear2.weight": "model hidden",
        "block.linear2.bias": "model",
        "read.weight": ". model",
        "read.bias": ".",
    }
    spec |= {f"block.norm{i}.{part}": "model" for i in (1, 2) for part in ("weight", "bias")}
    return ProblemArchitecture("encoder", Encoder(), spec, (5, 4), {"heads": 2, "qk": 3, "v": 3})


def up_and_down():
    """Convolutions of every kind, with norms and a learned slope."""
    model = nn.Sequential(
        nn.ConvTranspose2d(2, 4, 2),
        nn.GroupNorm(1, 4),
        nn.PReLU(4),
        nn.Conv2d(4, 4, 3, groups=4),
        nn.InstanceNorm2d(4, affine=True),
        nn.ReLU(),
        nn.ConvTranspose2d(4, 5, 2),
        nn.ReLU(inplace=True),
        nn.Conv2d(5, 6, 3, groups=1),
        nn.Flatten(),
        nn.Linear(6 * 9, 2),
    )
    spec = {"0.weight": ". c . .", "0.bias": "c", "2.weight": "c", "3.weight": "c . . .", "3.bias": "c"}
    spec |= {f"{i}.{part}": "c" for i in (1, 4) for part in ("weight", "bias")}
    spec |= {"6.weight": "c d . .", "6.bias": "d", "8.weight": "e d . .", "8.bias": "e"}
    return ProblemArchitecture("up and down", model, {**spec, "10.weight": ". (e 9)", "10.bias": "."}, (2, 5, 5))


def grouped():
    """A grouped convolution: groups of channels, and the channels inside them."""
    model = nn.Sequential(nn.Conv2d(1, 6, 1), nn.ReLU(), nn.Conv2d(6, 9, 2, groups=3), nn.ReLU(), nn.Flatten())
    model.append(nn.Linear(9 * 9, 2))
    spec = {"0.weight": "(g i[g]) . . .", "0.bias": "(g i[g])", "2.weight": "(g o[g]) i[g] . .", "2.bias": "(g o[g])"}
    return ProblemArchitecture(
        "grouped", model, {**spec, "5.weight": ". (g o[g] 9)", "5.bias": "."}, (1, 4, 4), {"g": 3}
    )


class Mixer(nn.Module):
    """Mixes tokens and then channels: the units of one group lie on the sample axes of the other."""

    def __init__(self):
        super().__init__()
        self.embed, self.read = nn.Linear(4, 6), nn.Linear(6, 2)
        self.token_up, self.token_down = nn.Linear(5, 7), nn.Linear(7, 5)

    def forward(self, x):
        x = self.embed(x)
        x = x + self.token_down(relu(self.token_up(x.mT))).mT
        return self.read(relu(x).mean(1))


def mixer():
    spec = {"embed.weight": "c .", "embed.bias": "c", "read.weight": ". c", "read.bias": "."}
    spec |= {"token_up.weight": "t .", "token_up.bias": "t", "token_down.weight": ". t", "token_down.bias": "."}
    return ProblemArchitecture("mixer", Mixer(), spec, (5, 4))


class Transposed(nn.Module):
    """A module that the table does not know: a linear layer whose weight is [in, out], both of one size."""

    def __init__(self, size):
        super().__init__()
        self.kernel = nn.Parameter(torch.empty(size, size))

    def forward(self, x):
        return x @ self.kernel


def unknown_module():
    model = nn.Sequential(Transposed(6), nn.Tanh(), Transposed(6), nn.Tanh(), nn.Linear(6, 2))
    spec = {"0.kernel": ". a", "2.kernel": "a b", "4.weight": ". b", "4.bias": "."}
    return ProblemArchitecture("unknown module", model, spec, (6,))


def normalised_weights():
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 6)), nn.ReLU(), nn.Linear(6, 2))
    path = "0.parametrizations.weight"
    spec = {f"{path}.original0": "h .", f"{path}.original1": "h .", "0.bias": "h", "2.weight": ". h", "2.bias": "."}
    return ProblemArchitecture("weight norm", model, spec, (4,))


class Functional(nn.Module):
    """Uses the weights of its first layer itself, so that no hook of that layer is ever called."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.read = nn.Linear(4, 6), nn.Linear(6, 5), nn.Linear(5, 2)
        self.bare = nn.Parameter(torch.zeros(5))

    def forward(self, x):
        hidden = linear(x, self.first.weight, self.first.bias)
        hidden = linear(relu(hidden), self.second.weight, self.second.bias)
        return self.read(relu(hidden) + self.bare)


def functional():
    spec = {"first.weight": "a .", "first.bias": "a", "second.weight": "b a", "second.bias": "b", "bare": "b"}
    return ProblemArchitecture("functional", Functional(), {**spec, "read.weight": ". b", "read.bias": "."}, (4,))


class Words(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.up, self.read = nn.Embedding(9, 5), nn.Linear(5, 6), nn.Linear(6, 2)

    def forward(self, tokens):
        return self.read(relu(self.up(self.embed(tokens)))).mean(1)


def words():
    """Tokens are embedded, not fed."""
    spec = {"embed.weight": ". e", "up.weight": "h e", "up.bias": "h", "read.weight": ". h", "read.bias": "."}
    return ProblemArchitecture("words", Words(), spec, (7,))


KINDS = {
    "mlp": lambda: mlp(4, 8, 7, 3),
    "convnet": convnet,
    "residual": residual,
    "attention": attention,
    "encoder": encoder,
    "rnn": lambda: recurrent("RNN", 1),
    "lstm": lambda: recurrent("LSTM", 4),
    "gru both ways": lambda: recurrent("GRU", 3, bidirectional=True),
    "projected lstm": projected_lstm,
    "cells": cells,
    "up and down": up_and_down,
    "grouped": grouped,
    "mixer": mixer,
    "unknown module": unknown_module,
    "weight norm": normalised_weights,
}
"""Every architecture whose groups can all be seen."""
