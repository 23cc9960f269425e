"""Input domains: what the inputs are like that networks learned from, carried by an aligner in place of data.

Midpoint steps want to know little of the inputs: what a mixture of some normal distributions says of them serves as
well as the inputs themselves. It is fitted once to data, takes kilobytes, and holds no single input.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any, Self

import torch
from jaxtyping import Float
from torch import Generator, Tensor, nn

CENTRES, RANK = 64, 32
"""Normal distributions, and directions in which they all spread. With half as many distributions barriers are a tenth
higher, with twice as many no lower."""
MIDDLE_INPUTS = 1024
"""Inputs that are drawn for midpoint steps. Drawn ones tell less than data do: on MNIST MLPs that no table holds (33
pairs) the mean barrier was 0.0139 with 512, 0.0105 with 1,024 and 0.0119 with 2,048, and 0.0119 with 512 images."""
TURNS = 12
"""Turns of k-means; more move the centres hardly."""


class InputDomain(nn.Module):
    """A mixture of normal distributions that spread alike, over inputs of one shape.

    Args:
        shape: Shape of one input.
        classes: Whether outputs of the domain's networks are logits of classes.
        centres: Number of distributions.
        rank: Number of directions in which inputs spread around the centres.
    """

    def __init__(self, shape: Sequence[int], classes: bool, centres: int, rank: int) -> None:
        super().__init__()
        self.shape, self.classes = tuple(shape), classes
        self.counts = {"centres": centres, "rank": rank}
        size = prod(self.shape)
        self.register_buffer("centres", torch.zeros(centres, size))
        self.register_buffer("factor", torch.zeros(rank, size))
        self.register_buffer("shares", torch.zeros(centres))

    @classmethod
    def of(cls, inputs: Float[Tensor, samples * shape], classes: bool, generator: Generator) -> Self:
        """Fit a domain to inputs: centres by k-means, directions by the covariance around them.

        Args:
            inputs: The inputs, any floating-point dtype.
            classes: Whether outputs are logits of classes.
            generator: Draws the first centres.
        """
        flat = inputs.flatten(1).double()
        count, rank = min(CENTRES, len(flat)), min(RANK, flat.shape[1])
        centres = flat[torch.randperm(len(flat), generator=generator)[:count]]
        for _ in range(TURNS):
            nearest = torch.cdist(flat, centres).argmin(1)
            sums = torch.zeros_like(centres).index_add_(0, nearest, flat)
            sizes = torch.bincount(nearest, minlength=count)
            centres = torch.where(sizes[:, None] > 0, sums / sizes.clamp(min=1)[:, None], centres)
        around = flat - centres[torch.cdist(flat, centres).argmin(1)]
        variances, directions = torch.linalg.eigh(around.T @ around / len(flat))
        domain = cls(inputs.shape[1:], classes, count, rank)
        factor = directions[:, -rank:] * variances[-rank:].clamp(min=0).sqrt()
        values = {"centres": centres, "factor": factor.T, "shares": sizes / len(flat)}
        domain.load_state_dict({name: value.float() for name, value in values.items()})
        return domain

    def settings(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        return {"shape": list(self.shape), "classes": self.classes, **self.counts}

    def draw(self, count: int, generator: Generator) -> Float[Tensor, count * shape]:
        """Draw inputs on the CPU, in float32."""
        centres, factor, shares = (getattr(self, name).cpu() for name in ("centres", "factor", "shares"))
        which = torch.multinomial(shares, count, replacement=True, generator=generator)
        spread = torch.randn(count, len(factor), generator=generator) @ factor
        drawn: Tensor = (centres[which] + spread).reshape(count, *self.shape)
        return drawn

    def differs(self, shape: Sequence[int]) -> str | None:
        """Return None for the shape of one input of this domain, else what is wrong with it."""
        if tuple(shape) == self.shape:
            return None
        return f"it was trained on {shape_text(self.shape)} inputs, and these are {shape_text(shape)}"


def shape_text(shape: Sequence[int]) -> str:
    """Write the shape of one input, such as ``1x28x28``."""
    return "x".join(map(str, shape))
