"""Small problems with a known answer: two networks of one architecture, drawn from a seed.

All weights are normal, norms and running statistics are far from trivial, and graphs are written by hand, so
that nothing here depends on tracing.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from types import MappingProxyType

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import gelu, relu, scaled_dot_product_attention

from alignkit.graph import Pair, SymmetryGraph
from alignkit.graph.elements.alignment import Alignment


@dataclass(frozen=True)
class ProblemArchitecture:
    """A model, whose weights are drawn anew for every pair, with its hand-written graph."""

    name: str
    model: nn.Module
    spec: Mapping[str, str]
    """Layout of every tensor."""
    input_shape: tuple[int, ...]
    """Shape of one example, without the batch."""
    sizes: Mapping[str, int] = field(default_factory=dict)
    """Sizes of groups that shapes leave open."""

    def graph(self) -> SymmetryGraph:
        """Write the graph of the model."""
        return SymmetryGraph.from_spec(self.spec, like=self.model, sizes=self.sizes)

    def inputs(self, n: int = 16, seed: int = 0) -> Float[Tensor, "n ..."]:
        """Draw a batch of ``n`` normal examples, of the dtype of the model."""
        drawn = torch.randn(n, *self.input_shape, generator=torch.Generator().manual_seed(seed))
        return drawn.to(next(self.model.parameters()).dtype)


@dataclass(frozen=True, repr=False)
class ProblemPair:
    """Two networks of one architecture: the reference A, and B, which is to be aligned."""

    name: str
    architecture: ProblemArchitecture
    graph: SymmetryGraph
    a: nn.Module
    b: nn.Module
    answer: Alignment | None = None
    """The alignment that turns B into A (up to the noise); None when the two are independent."""

    def bind(self) -> Pair:
        """Bind both modules to the graph."""
        return self.graph.bind(self.a, self.b)

    def __repr__(self) -> str:
        return self.name


def planted_pair(architecture: ProblemArchitecture, *, seed: int = 0, noise: float = 0.0) -> ProblemPair:
    """Draw a random network A, and B: a copy of A with its units reordered at random, plus noise.

    ``noise`` is its standard deviation on B, relative to each tensor. 0: B computes what A does.
    """
    graph = architecture.graph()
    a = _drawn(architecture.model, seed)
    shuffle = Alignment.random(graph, seed)
    b = shuffle.apply(a)
    if noise:
        fresh = dict(_drawn(architecture.model, seed + 1).state_dict())
        with torch.no_grad():
            for name, tensor in b.state_dict().items():
                if tensor.is_floating_point():
                    mixed = tensor + noise * fresh[name]
                    tensor.copy_(mixed.abs() if name.endswith("running_var") else mixed)
    name = f"{architecture.name}, noise {noise:g}, seed {seed}"
    return ProblemPair(name, architecture, graph, a, b, shuffle.inverse())


def independent_pair(architecture: ProblemArchitecture, *, seed: int = 0) -> ProblemPair:
    """Draw two random networks that have nothing in common: there is no right answer."""
    a, b = _drawn(architecture.model, 2 * seed), _drawn(architecture.model, 2 * seed + 1)
    return ProblemPair(f"{architecture.name}, independent, seed {seed}", architecture, architecture.graph(), a, b)


def _drawn(model: nn.Module, seed: int) -> nn.Module:
    """Copy a model in eval mode, all tensors drawn normal with standard deviation ``1 / sqrt(fan in)``."""
    generator = torch.Generator().manual_seed(seed)
    drawn = copy.deepcopy(model).eval()
    with torch.no_grad():
        for name, tensor in drawn.state_dict().items():
            if tensor.is_floating_point():
                fan_in = tensor[0].numel() if tensor.ndim > 1 else 1
                values = torch.randn(tensor.shape, generator=generator) / fan_in**0.5
                tensor.copy_(values.abs() + 0.1 if name.endswith("running_var") else values)
    return drawn


def _affine(layers: Mapping[str, tuple[str, str]]) -> dict[str, str]:
    """Write the spec of layers with a bias, given the rows and the columns of their weights."""
    spec: dict[str, str] = {}
    for name, (rows, columns) in layers.items():
        spec |= {f"{name}.weight": f"{rows} {columns}", f"{name}.bias": rows}
    return spec


def mlp(*sizes: int) -> ProblemArchitecture:
    """Build a perceptron with ReLU; ``mlp(4, 6, 5, 3)`` has the hidden sizes 6 and 5."""
    layers: list[nn.Module] = []
    rows_and_columns: dict[str, tuple[str, str]] = {}
    last = len(sizes) - 2
    for i, (n_in, n_out) in enumerate(pairwise(sizes)):
        layers += [nn.Linear(n_in, n_out), *([nn.ReLU()] if i < last else [])]
        rows_and_columns[f"{2 * i}"] = f"h{i + 1}" if i < last else ".", f"h{i}" if i else "."
    name, spec = f"mlp {'-'.join(map(str, sizes))}", _affine(rows_and_columns)
    return ProblemArchitecture(name, nn.Sequential(*layers), spec, (sizes[0],))


def convnet(channels: int = 4, hidden: int = 5) -> ProblemArchitecture:
    """Build two convolutions with BatchNorm, a flatten, two linear layers."""
    layers: list[nn.Module] = [nn.Conv2d(2, channels, 3), nn.BatchNorm2d(channels), nn.ReLU()]
    layers += [nn.Conv2d(channels, channels + 1, 3), nn.ReLU(), nn.Flatten()]
    layers += [nn.Linear((channels + 1) * 4, hidden), nn.ReLU(), nn.Linear(hidden, 3)]
    spec = {f"1.{name}": "c1" for name in ("weight", "bias", "running_mean", "running_var")}
    spec |= _affine({"0": ("c1", ". . ."), "3": ("c2", "c1 . ."), "6": ("h", "(c2 4)"), "8": (".", "h")})
    return ProblemArchitecture("convnet", nn.Sequential(*layers), spec, (2, 6, 6))


class _Attention(nn.Module):
    """A transformer block with its residual stream read from an input projection."""

    def __init__(self, width: int, heads: int, head_dim: int, hidden: int) -> None:
        super().__init__()
        self.heads = heads
        self.embed = nn.Linear(4, width)
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * heads * head_dim)
        self.out = nn.Linear(heads * head_dim, width)
        self.up = nn.Linear(width, hidden)
        self.down = nn.Linear(hidden, width)
        self.read = nn.Linear(width, 3)

    def forward(self, x: Float[Tensor, "batch tokens 4"]) -> Float[Tensor, "batch tokens 3"]:
        x = self.embed(x)
        parts = self.qkv(self.norm(x)).chunk(3, dim=-1)
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts)
        x = x + self.out(scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(-2))
        out: Tensor = self.read(x + self.down(gelu(self.up(x))))
        return out


def attention(width: int = 6, heads: int = 3, head_dim: int = 4, hidden: int = 7) -> ProblemArchitecture:
    """Build a transformer block: heads, units inside them (a family for q and k, one for v), residual stream."""
    fused = "(heads qk[heads])+(heads qk[heads])+(heads v[heads])"
    layers = {"embed": ("model", "."), "qkv": (fused, "model"), "out": ("model", "(heads v[heads])")}
    layers |= {"up": ("hidden", "model"), "down": ("model", "hidden"), "read": (".", "model")}
    spec = {**_affine(layers), "norm.weight": "model", "norm.bias": "model"}
    sizes = {"heads": heads, "qk": head_dim, "v": head_dim}
    return ProblemArchitecture("attention", _Attention(width, heads, head_dim, hidden), spec, (5, 4), sizes)


class _TorchAttention(nn.Module):
    """Attention of torch, whose module computes its projections inside."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.embed, self.read = nn.Linear(4, width), nn.Linear(width, 3)
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)

    def forward(self, x: Float[Tensor, "batch tokens 4"]) -> Float[Tensor, "batch tokens 3"]:
        x = self.embed(x)
        out: Tensor = self.read(x + self.attention(x, x, x, need_weights=False)[0])
        return out


def torch_attention(width: int = 6, heads: int = 2) -> ProblemArchitecture:
    """Build a residual stream with one ``nn.MultiheadAttention``: heads, and units inside them."""
    fused = "(heads qk[heads])+(heads qk[heads])+(heads v[heads])"
    spec = _affine({"embed": ("model", "."), "read": (".", "model")})
    spec |= _affine({"attention.out_proj": ("model", "(heads v[heads])")})
    spec |= {"attention.in_proj_weight": f"{fused} model", "attention.in_proj_bias": fused}
    sizes = {"heads": heads, "qk": width // heads, "v": width // heads}
    return ProblemArchitecture("torch attention", _TorchAttention(width, heads), spec, (5, 4), sizes)


class _Residual(nn.Module):
    def __init__(self, inputs: int, width: int, hidden: int, blocks: int) -> None:
        super().__init__()
        self.embed = nn.Linear(inputs, width)
        self.up = nn.ModuleList(nn.Linear(width, hidden) for _ in range(blocks))
        self.down = nn.ModuleList(nn.Linear(hidden, width) for _ in range(blocks))
        self.read = nn.Linear(width, 3)

    def forward(self, x: Float[Tensor, "batch inputs"]) -> Float[Tensor, "batch 3"]:
        x = self.embed(x)
        for up, down in zip(self.up, self.down, strict=True):
            x = x + down(relu(up(x)))
        out: Tensor = self.read(x)
        return out


def residual(inputs: int = 5, width: int = 6, hidden: int = 7, blocks: int = 2) -> ProblemArchitecture:
    """Build residual blocks of two linear layers; all of them share the units of the stream."""
    layers = {"embed": ("stream", "."), "read": (".", "stream")}
    for i in range(blocks):
        layers |= {f"up.{i}": (f"h{i}", "stream"), f"down.{i}": ("stream", f"h{i}")}
    return ProblemArchitecture("residual", _Residual(inputs, width, hidden, blocks), _affine(layers), (inputs,))


ARCHITECTURES: Mapping[str, Callable[[], ProblemArchitecture]] = MappingProxyType(
    {"mlp": lambda: mlp(4, 8, 7, 3), "convnet": convnet, "attention": attention}
)
"""What the solver contract runs on."""
