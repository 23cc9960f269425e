"""Phases carried out: biases of sine units by half periods, and as many signs of what reads them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Protocol

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from alignkit.graph.rewrites import Phase, uses_at
from alignkit.graph.structure import GraphStructure
from alignkit.graph.uses import Use

LARGEST = 3
"""Half periods by which random moves shift biases at most, either way."""
Units = Float[Tensor, "instances units"]


class _Tensors(Protocol):
    """Tensors by first name."""

    def __getitem__(self, name: str) -> Tensor: ...


def phases_in(graph: GraphStructure) -> list[Phase]:
    """Return the phases of a graph."""
    return [balance for balance in graph.balances if isinstance(balance, Phase)]


def _bias_use(graph: GraphStructure, phase: Phase) -> Use:
    (use,) = uses_at(graph.tensors[phase.bias.tensor], phase.group, phase.bias)
    return use


def biases_of(graph: GraphStructure, phase: Phase, tensors: _Tensors) -> Units:
    """Return the biases of the units, float64."""
    use = _bias_use(graph, phase)
    return use.unfold(use.block.view(tensors[phase.bias.tensor])).squeeze(-1).to(torch.float64, copy=True)


def half_periods_of(graph: GraphStructure, phase: Phase, tensors: _Tensors) -> Units:
    """Return by how much a bias moves for half a period; infinity where it does not reach the sine."""
    use, bias = _bias_use(graph, phase), tensors[phase.bias.tensor]
    places = list(phase.bias.positions({phase.bias.tensor: tuple(bias.shape)}))
    frequencies = torch.full(bias.shape, phase.frequency, dtype=torch.float64, device=bias.device)
    for name in phase.factors:
        frequencies.view(-1)[places] *= tensors[name].to(frequencies).flatten()
    return math.pi / use.unfold(use.block.view(frequencies)).squeeze(-1).abs()


def move_by_half_periods(graph: GraphStructure, phase: Phase, tensors: _Tensors, turns: Units, periods: Units) -> None:
    """Move biases in place by whole numbers of half periods, and change the signs of what reads units for odd ones."""
    moves = torch.where(periods.isinf(), 0.0, turns.to(periods) * torch.where(periods.isinf(), 1.0, periods))
    use = _bias_use(graph, phase)
    bias = use.block.view(tensors[phase.bias.tensor])
    bias += use.broadcast(moves.to(bias))
    signs = torch.where(periods.isinf(), 1.0, 1 - 2 * turns.to(periods).remainder(2))
    for place in phase.reads:
        for read in uses_at(graph.tensors[place.tensor], phase.group, place):
            part = read.block.view(tensors[place.tensor])
            part *= read.broadcast(signs.to(part))


def move_phases(graph: GraphStructure, phases: Iterable[Phase], tensors: _Tensors, generator: Generator) -> None:
    """Move biases in place by random half periods."""
    for phase in phases:
        size = (graph.instances(phase.group), graph.groups[phase.group].size)
        turns = torch.randint(-LARGEST, LARGEST + 1, size, generator=generator).double()
        move_by_half_periods(graph, phase, tensors, turns, half_periods_of(graph, phase, tensors))
