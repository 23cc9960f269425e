"""Problems with groups of every kind: signs, rotary planes, rotations, and rotations that keep the vector of ones.

Their weights are float64, so that rotations are undone to its last digits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import gelu, scaled_dot_product_attention

from alignkit.graph.elements.rotations import planes_of
from alignkit.graph.kinds import KINDS, PLANES, GroupKind
from alignkit.testing.problems import ProblemArchitecture


def tanh_mlp(inputs: int = 4, hidden: int = 6, outputs: int = 3) -> ProblemArchitecture:
    """Build three linear layers with tanh between them: units may be reordered, and may change their sign."""
    layers = [nn.Linear(inputs, hidden), nn.Tanh(), nn.Linear(hidden, hidden + 1), nn.Tanh()]
    spec = {"0.weight": "-h1 .", "0.bias": "-h1", "2.weight": "-h2 -h1", "2.bias": "-h2", "4.weight": ". -h2"}
    model = nn.Sequential(*layers, nn.Linear(hidden + 1, outputs)).double()
    return ProblemArchitecture("tanh MLP", model, {**spec, "4.bias": "."}, (inputs,))


class _Decoder(nn.Module):
    """A transformer block with norms without gain, and query heads that share the keys and values of fewer heads."""

    def __init__(self, stream: GroupKind, inside: GroupKind, width: int, kv: int, queries: int, size: int) -> None:
        super().__init__()
        self.heads, self.queries, self.inside = kv, queries, inside
        norm = nn.LayerNorm if stream == "centred" else nn.RMSNorm
        self.norm = norm(width, elementwise_affine=False)
        self.embed, self.read = nn.Linear(4, width), nn.Linear(width, 3)
        self.q = nn.Linear(width, kv * queries * size)
        self.k, self.v = nn.Linear(width, kv * size), nn.Linear(width, kv * size)
        self.out = nn.Linear(kv * queries * size, width)
        self.up, self.down = nn.Linear(width, 7), nn.Linear(7, width)

    def forward(self, x: Float[Tensor, "batch tokens 4"]) -> Float[Tensor, "batch tokens 3"]:
        x = self.embed(x)
        normed = self.norm(x)
        q = self._by_head(self.q(normed), self.heads * self.queries)
        k, v = (self._by_head(part(normed), self.heads) for part in (self.k, self.v))
        if self.inside in PLANES:
            q, k = self._turned(q), self._turned(k)
        k, v = (part.repeat_interleave(self.queries, 1) for part in (k, v))
        x = x + self.out(scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(-2))
        out: Tensor = self.read(self.norm(x + self.down(gelu(self.up(self.norm(x))))))
        return out

    @staticmethod
    def _by_head(part: Tensor, heads: int) -> Float[Tensor, "batch heads tokens size"]:
        return part.reshape(*part.shape[:-1], heads, -1).transpose(1, 2)

    def _turned(self, part: Float[Tensor, "batch heads tokens size"]) -> Float[Tensor, "batch heads tokens size"]:
        """Turn every plane by an angle that grows with the position: rotary positions."""
        tokens, size = part.shape[-2:]
        first, second = planes_of(self.inside, size)
        speeds = 10.0 ** -torch.arange(size // 2, dtype=part.dtype)
        angles = torch.arange(tokens, dtype=part.dtype)[:, None] * speeds
        turned = torch.empty_like(part)
        turned[..., first] = part[..., first] * angles.cos() - part[..., second] * angles.sin()
        turned[..., second] = part[..., first] * angles.sin() + part[..., second] * angles.cos()
        return turned


def decoder(
    stream: GroupKind = "orthogonal",
    inside: GroupKind = "orthogonal",
    *,
    width: int = 5,
    kv: int = 2,
    queries: int = 2,
    size: int = 4,
) -> ProblemArchitecture:
    """Build a transformer block with grouped queries.

    Args:
        stream: What may be done to the residual stream: "orthogonal" (RMSNorm) or "centred" (LayerNorm).
        inside: What may be done to queries and keys in heads: "orthogonal" without positions, or rotary "planes" or
            "adjacent_planes".
        width: Width of the stream.
        kv: Number of heads of keys and values.
        queries: Number of query heads for each of them.
        size: Size of a head.
    """
    model, qk = f"{KINDS[stream].mark}model", f"{KINDS[inside].mark}qk[kv]"
    spec = {
        "embed.weight": f"{model} .",
        "embed.bias": model,
        "q.weight": f"(kv q[kv] {qk}) {model}",
        "q.bias": f"(kv q[kv] {qk})",
        "k.weight": f"(kv {qk}) {model}",
        "k.bias": f"(kv {qk})",
        "v.weight": f"(kv ~v[kv]) {model}",
        "v.bias": "(kv ~v[kv])",
        "out.weight": f"{model} (kv q[kv] ~v[kv])",
        "out.bias": model,
        "up.weight": f"hidden {model}",
        "up.bias": "hidden",
        "down.weight": f"{model} hidden",
        "down.bias": model,
        "read.weight": f". {model}",
        "read.bias": ".",
    }
    sizes = {"kv": kv, "q": queries, "qk": size, "v": size}
    name = f"decoder ({stream} stream, {inside} queries and keys)"
    return ProblemArchitecture(name, _Decoder(stream, inside, width, kv, queries, size).double(), spec, (5, 4), sizes)


KIND_ARCHITECTURES: Mapping[GroupKind, Callable[[], ProblemArchitecture]] = MappingProxyType(
    {
        "signed": tanh_mlp,
        "orthogonal": decoder,
        "centred": lambda: decoder("centred"),
        "planes": lambda: decoder(inside="planes"),
        "adjacent_planes": lambda: decoder("centred", "adjacent_planes"),
    }
)
"""For each kind but permutations an architecture with a group of it."""
