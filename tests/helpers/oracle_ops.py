"""The operations of the oracle's networks: as modules, and which permutations come through them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

TOKENS = 3
PROBES = 16
Perm = tuple[int, ...]


@dataclass(frozen=True)
class Op:
    """One operation of a recipe.

    Attributes:
        name: Its kind, a key of `OPS`.
        reads: Numbers of the values that it reads; 0 is the network's input.
        sizes: Its sizes, as its kind wants them.
    """

    name: str
    reads: tuple[int, ...]
    sizes: tuple[int, ...] = ()


@dataclass(frozen=True)
class Kind:
    """What an operation does.

    Attributes:
        width: Units of its result, from the op and the widths of what it reads.
        module: The module, from those and whether values are images.
        outcomes: Permutations of its result that its weights allow, given those of what it reads, each as often as
            there are settings of permutations inside it; none if there is no such permutation.
        tries: How many settings there are at most.
    """

    width: Callable[[Op, Sequence[int]], int]
    module: Callable[[Op, Sequence[int], bool], nn.Module]
    outcomes: Callable[[Op, Sequence[int], Sequence[Perm]], Iterator[Perm]]
    tries: Callable[[Op], int] = lambda op: 1


class Apply(nn.Module):
    """A function of values."""

    def __init__(self, function: Callable[..., Tensor], images: bool) -> None:
        super().__init__()
        self.function, self.images = function, images

    def forward(self, *values: Tensor) -> Tensor:
        """Apply the function with units last."""
        if not self.images:
            return self.function(*values)
        return self.function(*(v.permute(0, 2, 3, 1) for v in values)).permute(0, 3, 1, 2)


def _all(n: int) -> Iterator[Perm]:
    return itertools.permutations(range(n))


def blocks_of(element: Perm, blocks: int) -> tuple[Perm, list[Perm]] | None:
    """Return how a permutation moves equal blocks, and units inside each, or None if it breaks blocks up."""
    size = len(element) // blocks
    outer, inner = [], []
    for b in range(blocks):
        part = element[b * size : (b + 1) * size]
        if len({p // size for p in part}) != 1:
            return None
        outer.append(part[0] // size)
        inner.append(tuple(p % size for p in part))
    return tuple(outer), inner


def _joined(outer: Perm, inner: Sequence[Perm]) -> Perm:
    size = len(inner[0])
    return tuple(b * size + p for b, within in zip(outer, inner, strict=True) for p in within)


@cache
def _comes_out(name: str, sizes: tuple[int, ...], elements: tuple[Perm, ...]) -> Perm | None:
    """Run a function without weights on permuted random data; return the permutation of the result, if there is one."""
    function = FUNCTIONS[name](sizes)
    generator = torch.Generator().manual_seed(0)
    values = [torch.randn(1, PROBES, len(p), generator=generator, dtype=torch.float64) for p in elements]
    before = function(*values)[0]
    after = function(*(v[..., list(p)] for v, p in zip(values, elements, strict=True)))[0]
    same = (after.unsqueeze(2) - before.unsqueeze(1)).abs().amax(0) < 1e-9
    if not bool((same.sum(0) == 1).all() and (same.sum(1) == 1).all()):
        return None
    return tuple(same.int().argmax(1).tolist())


def attend(heads: int, fused: bool) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """Return multi-head attention of queries, keys and values [batch, tokens, units]."""

    def core(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in (q, k, v))
        scale = q.shape[-1] ** -0.5
        y = F.scaled_dot_product_attention(q, k, v) if fused else (scale * q @ k.mT).softmax(-1) @ v
        return y.transpose(1, 2).flatten(2)

    return core


def shuffled(blocks: int) -> Callable[[Tensor], Tensor]:
    """Return a function that deals units out to blocks (channel shuffle)."""
    return lambda x: x.unflatten(-1, (blocks, -1)).transpose(-1, -2).flatten(-2)


def turned_pairs(x: Tensor) -> Tensor:
    """Multiply pairs of units, as complex numbers, by a number for each pair."""
    pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous())
    angles = torch.ones_like(pairs.real[:1]).cumsum(-1)
    return torch.view_as_real(pairs * torch.polar(torch.ones_like(angles), angles)).flatten(-2)


def _places(x: Tensor) -> Tensor:
    """An index of tokens that has one of them twice."""
    return torch.arange(x.shape[1]).clamp(min=1)


WRITES: Sequence[Callable[[Tensor], Tensor]] = (
    lambda x: x.index_add(1, _places(x), 2 * x),
    lambda x: x + x.scatter_reduce(1, _places(x).reshape(1, -1, *[1] * (x.ndim - 2)).expand_as(x), x.tanh(), "amax"),
    lambda x: x.masked_scatter((_places(x) == 1).reshape(-1, *[1] * (x.ndim - 2)), 2 * x),
    lambda x: x.index_put((torch.tensor(0), _places(x)), x[0].flip(0)),
)
"""Writes to tokens at given positions."""

FUNCTIONS: dict[str, Callable[[tuple[int, ...]], Callable[..., Tensor]]] = {
    "activation": lambda s: (F.gelu, torch.tanh, F.softplus, F.silu)[s[0] % 4],
    "softmax": lambda s: lambda x: 3 * x.softmax(-1),
    "add": lambda s: lambda x, y: torch.add(x, y, alpha=0.5),
    "gate": lambda s: lambda x, y: x * torch.sigmoid(y),
    "concatenate": lambda s: lambda *values: torch.cat(values, -1),
    "half": lambda s: lambda x: x.chunk(2, -1)[s[0]],
    "shuffle": lambda s: shuffled(s[0]),
    "by position": lambda s: WRITES[s[0]],
    "fourier": lambda s: lambda x: torch.fft.fft(x, dim=s[0]).real,
    "sorted": lambda s: lambda x: torch.sort(x, -1).values if s[0] else x.max(-1, keepdim=True).values + x,
    "turned pairs": lambda s: turned_pairs,
    "attention core": lambda s: attend(s[0], bool(s[1])),
}


def _plain(name: str, width: Callable[[Op, Sequence[int]], int]) -> Kind:
    """Return the kind of a function without weights."""

    def outcomes(op: Op, widths: Sequence[int], elements: Sequence[Perm]) -> Iterator[Perm]:
        found = _comes_out(name, op.sizes, tuple(elements))
        if found is not None:
            yield found

    return Kind(width, lambda op, widths, images: Apply(FUNCTIONS[name](op.sizes), images), outcomes)


class Affine(nn.Module):
    """A norm of the last axis, with weights, or without statistics a scale and a shift."""

    def __init__(self, width: int, kind: int, images: bool) -> None:
        super().__init__()
        self.kind, self.images = kind, images
        self.weight, self.bias = (nn.Parameter(1 + torch.rand(width)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise and scale."""
        x = x.permute(0, 2, 3, 1) if self.images else x
        if self.kind == 0:
            x = F.layer_norm(x, x.shape[-1:], self.weight, self.bias)
        elif self.kind == 1:
            x = F.rms_norm(x, x.shape[-1:], self.weight) + self.bias
        else:
            x = x * self.weight + self.bias
        return x.permute(0, 3, 1, 2) if self.images else x


class Blocks(nn.Module):
    """One linear layer for each of several equal blocks of units: the same one, or one each (a grouped convolution)."""

    def __init__(self, width: int, blocks: int, out: int, shared: bool, images: bool) -> None:
        super().__init__()
        self.blocks, self.shared, self.images = blocks, shared, images
        self.linear = nn.Linear(width // blocks, out)
        self.grouped = None if shared else nn.Conv1d(width, out * blocks, 1, groups=blocks)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer to each block."""
        x = x.permute(0, 2, 3, 1) if self.images else x
        if self.grouped is None:
            x = self.linear(x.unflatten(-1, (self.blocks, -1))).flatten(-2)
        else:
            x = self.grouped(x.flatten(1, -2).mT).mT.reshape(*x.shape[:-1], -1)
        return x.permute(0, 3, 1, 2) if self.images else x


class Distances(nn.Module):
    """Distances to prototypes."""

    def __init__(self, width: int, out: int, images: bool) -> None:
        super().__init__()
        self.points, self.images = nn.Parameter(torch.randn(out, width)), images

    def forward(self, x: Tensor) -> Tensor:
        """Measure each token or place."""
        y = torch.cdist(x.flatten(2).mT if self.images else x, self.points[None])
        return y.mT.reshape(1, -1, *x.shape[2:]) if self.images else y


class Bilinear(nn.Bilinear):
    """A bilinear form of two values for each unit."""

    def __init__(self, left: int, right: int, out: int, images: bool) -> None:
        super().__init__(left, right, out)
        self.images = images

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Combine each token or place."""
        if not self.images:
            return super().forward(x, y)
        return super().forward(x.permute(0, 2, 3, 1), y.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Attention(nn.Module):
    """Multi-head attention with projections of queries, keys and values: three, or one for all."""

    def __init__(self, width: int, heads: int, size: int, fused: bool, images: bool) -> None:
        super().__init__()
        self.core, self.fused, self.images = attend(heads, fused), fused, images
        count, out = (1, 3 * heads * size) if fused else (3, heads * size)
        self.projections = nn.ModuleList(nn.Linear(width, out) for _ in range(count))

    def forward(self, x: Tensor) -> Tensor:
        """Attend between tokens or places."""
        shape = x.shape
        x = x.flatten(2).mT if self.images else x
        q, k, v = self.projections[0](x).chunk(3, -1) if self.fused else (p(x) for p in self.projections)
        y = self.core(q, k, v)
        return y.mT.reshape(1, -1, *shape[2:]) if self.images else y


class Recurrent(nn.Module):
    """An LSTM or GRU over tokens, in one direction or both."""

    def __init__(self, width: int, out: int, gates: int, both: bool) -> None:
        super().__init__()
        layer = nn.LSTM if gates == 4 else nn.GRU
        self.layer = layer(width, out, batch_first=True, bidirectional=both)

    def forward(self, x: Tensor) -> Tensor:
        """Return the states of all tokens."""
        return self.layer(x)[0]


class Mixer(nn.Module):
    """A hidden layer across tokens, added to its input: tokens keep their order."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(TOKENS, hidden), nn.Linear(hidden, TOKENS)

    def forward(self, x: Tensor) -> Tensor:
        """Mix tokens of each unit."""
        return x + self.two(F.gelu(self.one(x.mT))).mT


def _linear(op: Op, widths: Sequence[int], images: bool) -> nn.Module:
    return nn.Conv2d(widths[0], op.sizes[0], 3, padding=1) if images else nn.Linear(widths[0], op.sizes[0])


def _batch_norm(op: Op, widths: Sequence[int], images: bool) -> nn.Module:
    if images:
        norm: nn.Module = nn.BatchNorm2d(widths[0])
        return norm
    return Affine(widths[0], 2, images)


def _linear_outcomes(op: Op, widths: Sequence[int], elements: Sequence[Perm]) -> Iterator[Perm]:
    yield from _all(op.sizes[0])


def _kept(op: Op, widths: Sequence[int], elements: Sequence[Perm]) -> Iterator[Perm]:
    yield elements[0]


def _group_norm_outcomes(op: Op, widths: Sequence[int], elements: Sequence[Perm]) -> Iterator[Perm]:
    if blocks_of(elements[0], op.sizes[0]) is not None:
        yield elements[0]


def _blocks_outcomes(op: Op, widths: Sequence[int], elements: Sequence[Perm]) -> Iterator[Perm]:
    blocks, out, shared = op.sizes
    found = blocks_of(elements[0], blocks)
    if found is None or (shared and len(set(found[1])) > 1):
        return
    for inner in itertools.product(_all(out), repeat=1 if shared else blocks):
        yield _joined(found[0], list(inner) * (blocks if shared else 1))


def _attention_outcomes(op: Op, widths: Sequence[int], elements: Sequence[Perm]) -> Iterator[Perm]:
    yield from _attention_settings(*op.sizes)


@cache
def _attention_settings(heads: int, size: int, fused: int) -> tuple[Perm, ...]:
    """Try every permutation of queries, keys and values; return those of the result where there is one."""
    every = list(_all(heads * size))
    found = (_comes_out("attention core", (heads, 0), elements) for elements in itertools.product(every, repeat=3))
    return tuple(out for out in found if out is not None)


def _recurrent_outcomes(op: Op, widths: Sequence[int], elements: Sequence[Perm]) -> Iterator[Perm]:
    out, _, both = op.sizes
    for inner in itertools.product(_all(out), repeat=1 + both):
        yield _joined(tuple(range(1 + both)), list(inner))


def _mixer_outcomes(op: Op, widths: Sequence[int], elements: Sequence[Perm]) -> Iterator[Perm]:
    for _ in _all(op.sizes[0]):
        yield elements[0]


def _first(op: Op, widths: Sequence[int]) -> int:
    return widths[0]


OPS: dict[str, Kind] = {
    "linear": Kind(lambda o, w: o.sizes[0], _linear, _linear_outcomes, lambda o: math.factorial(o.sizes[0])),
    "activation": _plain("activation", _first),
    "softmax": _plain("softmax", _first),
    "add": _plain("add", _first),
    "gate": _plain("gate", _first),
    "concatenate": _plain("concatenate", lambda o, w: sum(w)),
    "half": _plain("half", lambda o, w: w[0] // 2),
    "shuffle": _plain("shuffle", _first),
    "by position": _plain("by position", _first),
    "fourier": _plain("fourier", _first),
    "sorted": _plain("sorted", _first),
    "turned pairs": _plain("turned pairs", _first),
    "distances": Kind(
        lambda o, w: o.sizes[0],
        lambda o, w, i: Distances(w[0], o.sizes[0], i),
        _linear_outcomes,
        lambda o: math.factorial(o.sizes[0]),
    ),
    "bilinear": Kind(
        lambda o, w: o.sizes[0],
        lambda o, w, i: Bilinear(w[0], w[1], o.sizes[0], i),
        _linear_outcomes,
        lambda o: math.factorial(o.sizes[0]),
    ),
    "norm": Kind(_first, lambda o, w, i: Affine(w[0], o.sizes[0], i), _kept),
    "batch norm": Kind(_first, _batch_norm, _kept),
    "group norm": Kind(
        _first,
        lambda o, w, i: nn.GroupNorm(o.sizes[0], w[0]) if i else _TokenGroupNorm(o.sizes[0], w[0]),
        _group_norm_outcomes,
    ),
    "depthwise": Kind(
        _first, lambda o, w, i: nn.Conv2d(w[0], w[0], 3, padding=1, groups=w[0]) if i else _TokenDepthwise(w[0]), _kept
    ),
    "blocks": Kind(
        lambda o, w: o.sizes[0] * o.sizes[1],
        lambda o, w, i: Blocks(w[0], *o.sizes[:2], bool(o.sizes[2]), i),
        _blocks_outcomes,
        lambda o: math.factorial(o.sizes[1]) ** (1 if o.sizes[2] else o.sizes[0]),
    ),
    "attention": Kind(
        lambda o, w: o.sizes[0] * o.sizes[1],
        lambda o, w, i: Attention(w[0], *o.sizes[:2], bool(o.sizes[2]), i),
        _attention_outcomes,
        lambda o: math.factorial(o.sizes[0]) * math.factorial(o.sizes[1]) ** (2 * o.sizes[0]),
    ),
    "recurrent": Kind(
        lambda o, w: o.sizes[0] * (1 + o.sizes[2]),
        lambda o, w, i: Recurrent(w[0], o.sizes[0], o.sizes[1], bool(o.sizes[2])),
        _recurrent_outcomes,
        lambda o: math.factorial(o.sizes[0]) ** (1 + o.sizes[2]),
    ),
    "mixer": Kind(_first, lambda o, w, i: Mixer(o.sizes[0]), _mixer_outcomes, lambda o: math.factorial(o.sizes[0])),
}


class _TokenGroupNorm(nn.GroupNorm):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.mT).mT


class _TokenDepthwise(nn.Conv1d):
    def __init__(self, width: int) -> None:
        super().__init__(width, width, 3, padding=1, groups=width)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.mT).mT
