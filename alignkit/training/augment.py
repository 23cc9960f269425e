"""Augmentations of trained networks: noise, zeros, scales, and changes that leave the function as it is.

A ReLU network computes the same if what goes into a unit is multiplied by a positive number and what comes out of it is
divided by it, a tanh or sine network if both change their sign. Which groups of a model allow that a trace of all its
symmetries says (`find_freedoms`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from types import MappingProxyType
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Generator, Tensor, nn

from alignkit.arguments import check_arguments
from alignkit.graph import SymmetryGraph, Use
from alignkit.graph.bind import StateDict
from alignkit.graph.proof.model_run import call_arguments
from alignkit.graph.rewrites import AxisOf, Balance, BalanceKind, uses_at
from alignkit.tasks.batches import Batch
from alignkit.tracing import trace

Kind = Literal["positive", "sign"]
KINDS: tuple[Kind, ...] = ("positive", "sign")

_KINDS_OF_BALANCE: Mapping[BalanceKind, tuple[Kind, ...]] = MappingProxyType(
    {"scaled": ("positive",), "monomial": KINDS, "invertible": KINDS, "complex_planes": ()}
)


class Augmentations(BaseModel):
    """How trained networks are changed to make labelled pairs."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    noise: float = Field(default=1.0, ge=0)
    """Largest Gaussian noise, in standard deviations of each tensor. The level of a network is drawn from 0 to this."""
    zeroing: float = Field(default=0.4, ge=0, lt=1)
    """Largest share of weights that are set to zero. The share of a network is drawn from 0 to this."""
    scaling: float = Field(default=0.2, ge=0, lt=1)
    """Each tensor is multiplied by a number between 1 minus this and 1 plus this."""
    rescaling: float = Field(default=2.0, ge=1)
    """Where the function allows it, units are scaled by a factor between 1 / this and this."""
    flips: bool = True
    """Change signs of units where the function allows it."""


@dataclass(frozen=True, eq=False)
class Freedom:
    """A change of a group's units that leaves the function of a model as it is.

    Attributes:
        group: The group.
        kind: Whether units may be multiplied by any positive number, or by -1.
        units: How many units there are, over all parents.
        writes: Uses that make the units: their weights are multiplied.
        reads: Uses that read the units: their weights are divided.
        degree: The power with which a factor comes out: 2 for squared ReLU.
    """

    group: str
    kind: Kind
    units: int
    writes: tuple[Use, ...]
    reads: tuple[Use, ...]
    degree: int = 1

    def apply(self, weights: dict[str, Tensor], largest: float, generator: Generator) -> None:
        """Change weights in place, by a factor for each unit that is drawn.

        Args:
            weights: By the first name of each tensor.
            largest: Positive numbers are drawn from 1 / this to this, evenly in logs. Signs need none.
            generator: A CPU generator.
        """
        drawn = torch.rand(self.units, generator=generator)
        factors = ((2 * drawn - 1) * math.log(largest)).exp()
        if self.kind == "sign":
            factors = torch.where(drawn < 0.5, -1.0, 1.0)
        for uses, numbers in ((self.writes, factors), (self.reads, factors**-self.degree)):
            for use in uses:
                view = use.block.view(weights[use.tensor])
                view.mul_(use.broadcast(numbers).to(view.device, view.dtype))


@check_arguments
def find_freedoms(graph: SymmetryGraph, model: nn.Module, batch: Batch) -> tuple[Freedom, ...]:
    """Find groups whose units can be rescaled, or flipped, without a change of the function.

    A trace of all symmetries of the model finds and proves them. Those that hold for folded weights only are left out.

    Args:
        graph: The graph.
        model: The architecture, in eval mode.
        batch: Inputs to run the model on.

    Raises:
        TraceError: The model cannot be traced.
    """
    args, kwargs = call_arguments(batch.head(1).inputs)
    traced = trace(model, *args, symmetries="all", **kwargs)
    freedoms: list[Freedom] = []

    def add(name: str, kind: Kind, writes: Sequence[AxisOf], reads: Sequence[AxisOf] = (), degree: int = 1) -> None:
        """Add what a traced group may do to the group of this graph that has as many units at the same places."""
        units = traced.unit_count(name)
        for group in (group for group in graph.groups if graph.unit_count(group) == units):
            made, used = ([uses_at(graph.tensors[at.tensor], group, at) for at in side] for side in (writes, reads))
            if all((*made, *used)):
                freedoms.append(Freedom(group, kind, units, tuple(chain(*made)), tuple(chain(*used)), degree))

    for balance in (balance for balance in traced.balances if isinstance(balance, Balance)):
        for kind in _KINDS_OF_BALANCE[balance.kind]:
            add(balance.group, kind, balance.writes, balance.reads, balance.degree)
    for name, group in traced.groups.items():
        if group.kind == "signed":
            add(name, "sign", [AxisOf(use.tensor, use.block.dims[use.at].axis) for use in traced.uses[name]])
    return tuple(freedoms)


def _copy(weights: StateDict) -> dict[str, Tensor]:
    return {name: tensor.detach().clone(memory_format=torch.contiguous_format) for name, tensor in weights.items()}


def augment(
    graph: SymmetryGraph, weights: StateDict, freedoms: Iterable[Freedom], settings: Augmentations, generator: Generator
) -> dict[str, Tensor]:
    """Make a changed copy of a network.

    Noise, zeros and scales go to parameters only: running statistics that were negative would be of no use.

    Args:
        graph: The graph.
        weights: By the first name of each tensor.
        freedoms: What `find_freedoms` returned for the model.
        settings: How much of what.
        generator: A CPU generator.
    """
    changed = _copy(weights)
    level, share = torch.rand(2, generator=generator).tolist()
    level, share = level * settings.noise, share * settings.zeroing
    for name, node in graph.tensors.items():
        tensor = changed[name]
        if node.role == "buffer" or not tensor.is_floating_point():
            continue
        if level and tensor.numel() > 1:
            noise = torch.randn(tensor.shape, generator=generator).to(tensor.device, tensor.dtype)
            tensor += level * tensor.std() * noise
        if share:
            tensor *= (torch.rand(tensor.shape, generator=generator) >= share).to(tensor.device)
        if settings.scaling:
            tensor *= 1 + settings.scaling * (2 * float(torch.rand((), generator=generator)) - 1)
    for freedom in freedoms:
        is_wanted = settings.flips if freedom.kind == "sign" else settings.rescaling > 1
        if is_wanted:
            freedom.apply(changed, settings.rescaling, generator)
    return changed
