"""Equivariant layers over the domains of a graph: affine maps that its incidences allow, and pointwise functions.

Features are arrays ``[batch, channels, *sizes of the domain]``.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn

from alignkit.deepalign.dws.domains import FeaturePlacement, Incidence, Incidences

FLAT = 1e3
"""A channel counts as constant where it varies by less than this many units of rounding of its own size."""


def spread_out(features: Float[Tensor, "batch channels *sizes"]) -> Tensor:
    """Bring each network and channel to mean 0 and deviation 1 over the units; what is constant but for rounding to 0.

    Features of an untrained network are nearly the same for all units; without this float32 cannot tell them apart.
    """
    normal, share = layer_norm(features)
    return normal * share


def layer_norm(features: Float[Tensor, "batch channels *sizes"]) -> tuple[Tensor, Tensor]:
    """Return the factors of `spread_out`: normalised features, and a share below 1 for channels that hardly vary."""
    # Half precision is for products of matrices; here a mean is subtracted.
    flat = features.flatten(2) if features.dtype == torch.float64 else features.flatten(2).float()
    info = torch.finfo(flat.dtype)
    # One kernel in place of four passes over memory. The root of the smallest number keeps gradients finite at zero.
    normal, mean, inverse = torch.native_layer_norm(flat, flat.shape[2:], None, None, info.tiny**0.5)
    share = (1 + (FLAT * info.eps) ** 2 * (1 + (mean * inverse).detach().square())).rsqrt()
    shape = (*share.shape[:2], *([1] * (features.ndim - 2)))
    return normal.reshape(features.shape), share.reshape(shape)


def mix(weight: Float[Tensor, "out in"], features: Float[Tensor, "batch in *sizes"]) -> Tensor:
    """Map the channels linearly, in the same way at every combination of units."""
    flat = features.flatten(2)
    # bmm leaves the features where they are; matmul would fold them into one matrix, by a copy.
    return torch.bmm(weight.expand(len(flat), -1, -1), flat).reshape(len(flat), -1, *features.shape[2:])


def _add(sums: dict[int, Tensor], number: int, x: Tensor) -> None:
    sums[number] = sums[number] + x if number in sums else x


def _weight(out: int, into: int, generator: torch.Generator) -> nn.Parameter:
    return nn.Parameter(torch.randn(out, into, generator=generator) / into**0.5)


class Features:
    """Features of all domains, and their averages over faces, each computed once."""

    def __init__(self, facts: Incidences, values: Mapping[int, Tensor]) -> None:
        self.facts, self.values = facts, values
        self._pooled: dict[Incidence, Tensor] = {}

    def replace(self, changed: dict[int, Tensor]) -> Features:
        """Return features with those of some domains exchanged."""
        result = Features(self.facts, {**self.values, **changed})
        result._pooled = {face: x for face, x in self._pooled.items() if face.domain not in changed}
        return result

    def pool(self, face: Incidence) -> Tensor:
        """Average onto the units of a group and spread out; over the diagonal only where dimensions are tied."""
        if face not in self._pooled:
            x = self.values[face.domain]
            rest = tuple(i + 2 for i in range(x.ndim - 2) if i not in face.chain)
            if face.tied:
                x = x * _diagonal(face, x)
            self._pooled[face] = spread_out(x.mean(rest))
        return self._pooled[face]

    def broadcast(self, face: Incidence, x: Tensor) -> Tensor:
        """Shape features of a group's units to be added to those of the larger domain."""
        sizes = enumerate(self.facts.domains[face.domain].sizes)
        x = x.reshape(*x.shape[:2], *(size if i in face.chain else 1 for i, size in sizes))
        return x * _diagonal(face, x) if face.tied else x


def _diagonal(face: Incidence, like: Tensor) -> Tensor:
    """Make a mask that is 1 where the tied dimensions of a domain agree and 0 elsewhere."""
    mask = like.new_ones(())
    for left, right in face.tied:
        size = like.shape[2 + left]
        shape = [1] * (like.ndim - 2)
        shape[left] = shape[right] = size
        mask = mask * torch.eye(size, dtype=like.dtype, device=like.device).reshape(shape)
    return mask


class Lift(nn.Module):
    """From tensors to features on every domain.

    Args:
        facts: Domains, and what is read from tensors.
        widths: Maximum number of channels of each domain.
        lifted: Maximum number of fixed positions of a block with weights of their own; more are hashed into that many.
        generator: Source of the weights.

    Attributes:
        widths: Channels of each domain. Weights between groups keep theirs where they are few: one, or a kernel.
    """

    def __init__(self, facts: Incidences, widths: list[int], lifted: int, generator: torch.Generator) -> None:
        super().__init__()
        self.facts, self.lifted = facts, lifted
        channels = [sum(p.channels for p in facts.placements if p.domain == i) for i in range(len(widths))]
        self.kept = {i for i, d in enumerate(facts.domains) if not d.is_group and channels[i] <= widths[i]}
        self.widths = [channels[i] if i in self.kept else width for i, width in enumerate(widths)]
        self.mapped = [placed for placed in facts.placements if placed.domain not in self.kept]
        self.weights = nn.ParameterList(
            _weight(widths[placed.domain], min(placed.channels, lifted), generator) for placed in self.mapped
        )
        direct = {placed.domain for placed in facts.placements}
        # A group of heads may have no tensor of its own: it starts from means over what stands in larger domains.
        self.faces = [face for face in facts.faces if face.group not in direct and face.domain in direct]
        self.means = nn.ParameterList(
            _weight(widths[face.group], self.widths[face.domain], generator) for face in self.faces
        )

    def forward(self, tensors: Mapping[str, Tensor], dtype: torch.dtype) -> Features:
        """Make the features of each domain from tensors stacked along a first axis."""
        direct: dict[int, Tensor] = {}
        for placed, weight in zip(self.mapped, self.weights, strict=True):
            _add(direct, placed.domain, mix(weight, self._read(placed, tensors, dtype)))
        direct = {i: spread_out(x) for i, x in direct.items()}
        for number in self.kept:
            parts = [self._read(placed, tensors, dtype) for placed in self.facts.placements if placed.domain == number]
            direct[number] = torch.cat(parts, 1)
        features = Features(self.facts, direct)
        more: dict[int, Tensor] = {}
        for face, weight in zip(self.faces, self.means, strict=True):
            _add(more, face.group, mix(weight, features.pool(face)))
        return features.replace({i: spread_out(x) for i, x in more.items()})

    def _read(self, placed: FeaturePlacement, tensors: Mapping[str, Tensor], dtype: torch.dtype) -> Tensor:
        """Read the features of one part of a tensor, whatever its size and its offset."""
        part = placed.features(tensors[placed.tensor])
        part = part if part.is_floating_point() else part.float()
        # Divided by the largest entry of each network, so that squares neither overflow nor vanish.
        largest = part.flatten(1).abs().amax(1).clamp(min=1e-30)
        part = (part / largest.reshape(-1, *([1] * (part.ndim - 1)))).to(dtype)
        if placed.channels > self.lifted:
            # A count sketch: each channel is added to one of ``lifted`` with a sign, both from a multiplicative hash
            # by Knuth: 2654435761 is the prime next to 2^32 over the golden ratio.
            code = torch.arange(placed.channels, device=part.device) * 2654435761 % 2**32
            sign = 1 - 2 * (code >> 31).to(dtype)
            bucket = (code * 40503 >> 7) % self.lifted
            sketch = part.new_zeros(part.shape[0], self.lifted, *part.shape[2:])
            part = sketch.index_add(1, bucket, part * sign.reshape(-1, *([1] * (part.ndim - 2))))
        # As `spread_out`, but all channels of a network are divided by one number, so that their ratio is kept.
        centred = part - part.mean(tuple(range(2, part.ndim)), keepdim=True)
        variance, size = (x.square().mean(tuple(range(1, x.ndim)), keepdim=True) for x in (centred, part))
        info = torch.finfo(dtype)
        scale: Tensor = (variance + (FLAT * info.eps) ** 2 * size + info.tiny**0.5).rsqrt()
        return centred * scale


class Affine(nn.Module):
    """The part of an affine equivariant map that ends in one domain, without invariant terms.

    Terms: the features of the domain itself, the same with equal groups exchanged, the features and means of the units
    of every group that the domain mentions, and means over larger domains where it is the units of a group. Terms that
    are the same for all units are left out, since spreading features out removes them.

    Args:
        facts: Domains and how they meet.
        domain: Number of the domain.
        before: Channels of each domain before the map.
        width: Channels of this domain after the map.
        generator: Source of the weights.
    """

    def __init__(
        self, facts: Incidences, domain: int, before: list[int], width: int, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.domain, self.swaps, own = domain, facts.swaps[domain], before[domain]
        self.outward = [face for face in facts.faces if face.domain == domain]
        self.inward = [face for face in facts.faces if face.group == domain]
        self.own = _weight(width, own, generator)
        self.swapped = nn.ParameterList(_weight(width, own, generator) for _ in self.swaps)
        self.broadcast = nn.ParameterList(_weight(width, before[f.group] + own, generator) for f in self.outward)
        self.pooled = nn.ParameterList(_weight(width, before[f.domain], generator) for f in self.inward)

    def forward(self, features: Features) -> Tensor:
        """Compute the new features of the domain, before any pointwise function."""
        values = features.values
        total = mix(self.own, values[self.domain])
        for order, weight in zip(self.swaps, self.swapped, strict=True):
            total += mix(weight, values[self.domain].permute(0, 1, *(i + 2 for i in order)))
        for face, weight in zip(self.outward, self.broadcast, strict=True):
            units = mix(weight, torch.cat((values[face.group], features.pool(face)), 1))
            total += features.broadcast(face, units)
        for face, weight in zip(self.inward, self.pooled, strict=True):
            total += mix(weight, features.pool(face))
        return total


class DwsLayer(nn.Module):
    """Affine equivariant maps, spread out and followed by a smooth pointwise function: larger domains, then groups.

    The function is smooth, so that sums of a weight and a unit's feature give their product to second order, and so
    that no channel is switched off for all units.
    """

    def __init__(self, facts: Incidences, before: list[int], after: list[int], generator: torch.Generator) -> None:
        super().__init__()
        between = [b if d.is_group else a for d, b, a in zip(facts.domains, before, after, strict=True)]
        count = range(len(facts.domains))
        self.steps = [[i for i in count if facts.domains[i].is_group == is_group] for is_group in (False, True)]
        self.maps = nn.ModuleList(
            Affine(facts, i, between if facts.domains[i].is_group else before, after[i], generator) for i in count
        )
        self.gains = nn.ParameterList(torch.ones(width) for width in after)
        self.biases = nn.ParameterList(0.5 * torch.randn(width, generator=generator) for width in after)

    def forward(self, features: Features) -> Features:
        """Apply the layer."""
        for step in self.steps:
            changed = {}
            for i in step:
                normal, share = layer_norm(self.maps[i](features))
                gain, bias = (x.reshape(-1, *([1] * (normal.ndim - 2))) for x in (self.gains[i], self.biases[i]))
                changed[i] = nn.functional.silu(torch.addcmul(bias, normal, gain * share))
            features = features.replace(changed)
        return features
