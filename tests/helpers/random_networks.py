"""Random small networks: chains and branches of layers, some of which share their weights.

A network is a list of steps, each of which reads values that were there before. What no step reads goes through a last
linear layer. Widths are a few units, and differ where they need not be equal.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from helpers.random_layers import (
    ACTIVATIONS,
    Activation,
    Attention,
    Channels,
    Combined,
    Experts,
    Gated,
    LowRank,
    Modulation,
    Recurrent,
    Scale,
    Shift,
    Sine,
    Transposed,
)

WORDS, INPUTS, OUTPUTS, LENGTH = 7, 3, 3, 4
WIDTHS = (2, 3, 4, 4, 5, 6)


class RandomNetwork(nn.Module):
    """Steps on values; a step names the module that it calls, which another one may name too.

    Args:
        modules: What steps call.
        steps: For each step the number of its module, and of the values that it reads. Value 0 is the input.
        heads: For values that no step reads what they go through at last, by their number.
    """

    def __init__(
        self, modules: Sequence[nn.Module], steps: Sequence[tuple[int, tuple[int, ...]]], heads: dict[int, nn.Module]
    ) -> None:
        super().__init__()
        self.parts, self.steps = nn.ModuleList(modules), tuple(steps)
        self.leaves, self.heads = tuple(heads), nn.ModuleList(heads.values())

    def forward(self, x: Tensor) -> Tensor:
        values = [x]
        for part, reads in self.steps:
            values.append(self.parts[part](*(values[i] for i in reads)))
        return torch.stack([head(values[i]) for i, head in zip(self.leaves, self.heads, strict=True)]).sum(0)

    def extra_repr(self) -> str:
        return f"steps: {self.steps}, leaves: {self.leaves}"


@dataclass
class _Draft:
    """A network that is being drawn.

    Attributes:
        dice: The source of all choices.
        widths: The number of units of each value.
        vectors: Parameters that modules may share.
    """

    dice: random.Random
    tokens: bool
    widths: list[int] = field(default_factory=lambda: [INPUTS])
    parts: list[nn.Module] = field(default_factory=list)
    steps: list[tuple[int, tuple[int, ...]]] = field(default_factory=list)
    vectors: list[nn.Parameter] = field(default_factory=list)

    def add(self, module: nn.Module, reads: tuple[int, ...], width: int) -> None:
        known = next((at for at, part in enumerate(self.parts) if part is module), None)
        if known is None:
            known = len(self.parts)
            self.parts.append(module)
        self.steps.append((known, reads))
        self.widths.append(width)

    def chance(self, share: float) -> bool:
        return self.dice.random() < share

    def width(self) -> int:
        return self.dice.choice(WIDTHS)

    def vector(self, width: int) -> nn.Parameter:
        """Return a new parameter, or one that is there already."""
        shape = (1,) if self.chance(0.1) else (width,)
        known = [vector for vector in self.vectors if tuple(vector.shape) == shape]
        if known and self.chance(0.4):
            return self.dice.choice(known)
        self.vectors.append(nn.Parameter(torch.empty(shape)))
        return self.vectors[-1]

    def linear(self, width: int) -> nn.Linear:
        """Return a new layer, or one that is there already."""
        known = [part for part in self.parts if isinstance(part, nn.Linear) and part.in_features == width]
        if known and self.chance(0.25):
            return self.dice.choice(known)
        return nn.Linear(width, self.width(), bias=self.chance(0.75))

    def activation(self) -> str:
        return self.dice.choice(list(ACTIVATIONS))


def _linear(draft: _Draft, read: int) -> None:
    layer = draft.linear(draft.widths[read])
    draft.add(layer, (read,), layer.out_features)


def _layer(draft: _Draft, read: int) -> None:
    """A linear layer and its activation."""
    _linear(draft, read)
    _activation(draft, len(draft.steps))


def _activation(draft: _Draft, read: int) -> None:
    draft.add(Activation(draft.activation()), (read,), draft.widths[read])


def _sine(draft: _Draft, read: int) -> None:
    draft.add(Sine(draft.vector(draft.widths[read])), (read,), draft.widths[read])


def _scale(draft: _Draft, read: int) -> None:
    draft.add(Scale(draft.vector(draft.widths[read])), (read,), draft.widths[read])


def _shift(draft: _Draft, read: int) -> None:
    draft.add(Shift(draft.vector(draft.widths[read])), (read,), draft.widths[read])


def _norm(draft: _Draft, read: int) -> None:
    width, affine = draft.widths[read], draft.chance(0.7)
    batch_norm = nn.BatchNorm1d(width, affine=affine)
    kinds: list[Callable[[], nn.Module]] = [
        lambda: nn.LayerNorm(width, elementwise_affine=affine, bias=draft.chance(0.7)),
        lambda: nn.RMSNorm(width, eps=1e-6, elementwise_affine=affine),
        lambda: Channels(batch_norm) if draft.tokens else batch_norm,
    ]
    if draft.tokens:
        groups = draft.dice.choice([n for n in range(1, width + 1) if not width % n and n < width] or [1])
        kinds.append(lambda: Channels(nn.GroupNorm(groups, width, affine=affine)))
    draft.add(draft.dice.choice(kinds)(), (read,), width)


def _combine(draft: _Draft, read: int) -> None:
    how = draft.dice.choice(["sum", "sum", "sum", "difference", "product", "concatenation"])
    width = draft.widths[read]
    others = [i for i in range(1, len(draft.widths)) if i != read]
    others = [i for i in others if how == "concatenation" or draft.widths[i] == width]
    if not others or (how == "concatenation" and width > 4):
        _residual(draft, read)
        return
    other = draft.dice.choice(others)
    draft.add(Combined(how), (read, other), width + draft.widths[other] * (how == "concatenation"))


def _residual(draft: _Draft, read: int) -> None:
    """A branch of two layers, added to what it reads."""
    width, hidden = draft.widths[read], draft.width()
    branch: list[nn.Module] = [nn.Linear(width, hidden), Activation(draft.activation()), nn.Linear(hidden, width)]
    if draft.chance(0.5):
        branch.insert(0, draft.dice.choice([nn.LayerNorm, nn.RMSNorm])(width, eps=1e-6))
    if draft.chance(0.3):
        branch.append(Scale(draft.vector(width)))
    draft.add(nn.Sequential(*branch), (read,), width)
    draft.add(Combined("sum"), (read, len(draft.steps)), width)


def _gated(draft: _Draft, read: int) -> None:
    width = draft.width()
    gated = Gated(draft.widths[read], draft.width(), width, draft.activation(), draft.chance(0.5))
    draft.add(gated, (read,), width)


def _modulation(draft: _Draft, read: int) -> None:
    takes_words = any(isinstance(part, nn.Embedding) for part in draft.parts)
    other = draft.dice.randrange(int(takes_words), len(draft.widths))
    draft.add(Modulation(draft.widths[read], draft.widths[other]), (read, other), draft.widths[read])


def _low_rank(draft: _Draft, read: int) -> None:
    layer = draft.linear(draft.widths[read])
    draft.add(LowRank(layer, draft.dice.randint(1, 2)), (read,), layer.out_features)


def _transposed(draft: _Draft, read: int) -> None:
    width = draft.widths[read]
    known = [part for part in draft.parts if isinstance(part, nn.Linear) and part.out_features == width]
    if known:
        layer = draft.dice.choice(known)
        draft.add(Transposed(layer), (read,), layer.in_features)
    else:
        _layer(draft, read)


def _experts(draft: _Draft, read: int) -> None:
    width = draft.width()
    experts = Experts(draft.widths[read], draft.dice.randint(2, 3), draft.dice.randint(2, 4), width, draft.activation())
    draft.add(experts, (read,), width)


def _attention(draft: _Draft, read: int) -> None:
    """Attention, added to what it reads or not."""
    width, rotary = draft.widths[read], draft.chance(0.4)
    size = draft.dice.choice([2, 4]) if rotary else draft.dice.choice([1, 2, 3])
    heads, queries = draft.dice.randint(1, 2), draft.dice.choice([1, 1, 2])
    draft.add(Attention(width, heads, queries, size, rotary, draft.chance(0.5), draft.chance(0.2)), (read,), width)
    if draft.chance(0.6):
        draft.add(Combined("sum"), (read, len(draft.steps)), width)


def _recurrent(draft: _Draft, read: int) -> None:
    size, kind = draft.dice.randint(2, 4), draft.dice.choice(["LSTM", "GRU", "tanh", "relu"])
    both = draft.chance(0.2)
    given = {"batch_first": True, "bias": draft.chance(0.8), "bidirectional": both}
    cell: nn.RNNBase
    if kind in ("tanh", "relu"):
        cell = nn.RNN(draft.widths[read], size, nonlinearity=kind, **given)
    else:
        cell = getattr(nn, kind)(draft.widths[read], size, **given)
    draft.add(Recurrent(cell), (read,), size * (1 + both))


def _convolution(draft: _Draft, read: int) -> None:
    width, out = draft.widths[read], draft.width()
    padding, groups = draft.dice.randint(0, 1), 1
    if draft.chance(0.2):
        out = groups = width  # one kernel for each channel
    layer = nn.Conv1d(width, out, 2 * padding + 1, padding=padding, groups=groups, bias=draft.chance(0.7))
    draft.add(Channels(layer), (read,), out)


ROWS: tuple[Callable[[_Draft, int], None], ...] = (
    *(_linear, _layer, _layer, _layer, _activation, _sine, _scale, _shift, _norm, _norm, _combine, _combine, _residual),
    *(_gated, _modulation, _low_rank, _transposed, _experts),
)
TOKENS = (*ROWS, _attention, _attention, _attention, _recurrent, _recurrent, _convolution, _convolution)


def random_network(dice: random.Random) -> tuple[RandomNetwork, Tensor, Tensor]:
    """Draw a network with random weights in float64, in eval mode, and two batches of inputs."""
    form = dice.choice(["rows", "rows", "tokens", "words"])
    draft = _Draft(dice, form != "rows")
    if form == "words":
        width = draft.width()
        draft.add(nn.Embedding(WORDS, width), (0,), width)
    for _ in range(dice.randint(1, 6)):
        # Mostly the last value, so that networks are deep.
        first = len(draft.widths) - 1 if draft.chance(0.75) else dice.randrange(len(draft.widths))
        read = max(first, int(form == "words"))
        dice.choice(TOKENS if draft.tokens else ROWS)(draft, read)
    read = {i for _, reads in draft.steps for i in reads}
    leaves = [i for i in range(1, len(draft.widths)) if i not in read]
    network = RandomNetwork(draft.parts, draft.steps, _heads(draft, leaves)).double().eval()
    draw_weights(network, dice)
    x, y = (_inputs(dice, form, count) for count in (2, 3))
    return network, x, y


def _heads(draft: _Draft, leaves: Sequence[int]) -> dict[int, nn.Module]:
    """Make the last layers; those of words may be the embedding again."""
    first = draft.parts[0]
    if isinstance(first, nn.Embedding):
        heads = {leaf: nn.Linear(draft.widths[leaf], WORDS, bias=False) for leaf in leaves}
        if draft.widths[leaves[-1]] == first.embedding_dim and draft.chance(0.6):
            heads[leaves[-1]].weight = first.weight
        return dict(heads)
    return {leaf: nn.Linear(draft.widths[leaf], OUTPUTS, bias=draft.chance(0.8)) for leaf in leaves}


def draw_weights(network: nn.Module, dice: random.Random) -> None:
    """Draw all weights anew: gains and frequencies around 1, some of them negative, variances positive."""
    generator = torch.Generator().manual_seed(dice.getrandbits(60))
    with torch.no_grad():
        for name, tensor in network.state_dict(keep_vars=True).items():
            if not tensor.is_floating_point():
                continue
            drawn = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
            last = name.rpartition(".")[2]
            if last == "vector" or (last == "weight" and tensor.ndim == 1) or last == "running_var":
                signs = torch.where(torch.rand(tensor.shape, generator=generator) < 0.2, -1.0, 1.0)
                drawn = (0.3 * drawn).exp() * (1.0 if last == "running_var" else signs)
            elif tensor.ndim > 1:
                drawn = 1.2 * drawn / (tensor[0].numel() ** 0.5)
            else:
                drawn = 0.7 * drawn
            tensor.copy_(drawn)


def _inputs(dice: random.Random, form: str, count: int) -> Tensor:
    generator = torch.Generator().manual_seed(dice.getrandbits(60))
    if form == "words":
        return torch.randint(WORDS, (count, LENGTH), generator=generator)
    shape = (4 * count, INPUTS) if form == "rows" else (count, LENGTH, INPUTS)
    return torch.randn(shape, generator=generator, dtype=torch.float64)
