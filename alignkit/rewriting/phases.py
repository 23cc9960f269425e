"""Phases of sine units brought to one place: ``sin(u + pi)`` is ``-sin(u)``, so that a bias may move by half periods.

What reads a unit takes its other sign for each half period. Networks that differ by such moves are alike once their
phases are wrapped, up to the order and the signs of units, which a solver finds on a graph of ``symmetries="all"``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TypeVar

import torch
from torch import Tensor, nn

from alignkit.errors import FoldError
from alignkit.graph.structure import GraphStructure
from alignkit.graph.uses import Use
from alignkit.rewriting.modules import module_with
from alignkit.rewriting.wide import WideWeights

ModuleT = TypeVar("ModuleT", bound=nn.Module)
TOLERANCE = 1e-3
"""Largest change of an output, as a share of the largest output. Half periods that move by rounding of float32 stay far
below it, a wrong frequency does not."""


def wrap_phases(
    module: ModuleT,
    graph: GraphStructure,
    frequency: float | Mapping[str, float],
    inputs: Tensor,
    like: nn.Module | None = None,
) -> ModuleT:
    """Return a copy of a network of sine units whose phases are the nearest to 0, or to those of another network.

    It computes the same, which is checked on the inputs.

    Args:
        module: A network whose units are ``sin(frequency * (W x + b))``.
        graph: Its graph, traced with ``symmetries="all"``: its signed groups are the sine units.
        frequency: The frequency of all units, or of those of each signed group by its name.
        inputs: Some inputs of the network.
        like: A network whose units are in the same order.

    Raises:
        FoldError: No group is signed, a signed group has no bias of its own, or the network does not compute the same:
            units are no sines, or have another frequency.
    """
    groups = [name for name in graph.groups if graph.groups[name].kind == "signed"]
    if not groups:
        raise FoldError('no group of the graph is signed: trace the network with symmetries="all".')
    tensors = {graph.first_names[name]: tensor for name, tensor in module.state_dict().items()}
    wide = WideWeights(tensors)
    near = {} if like is None else dict(like.state_dict())
    for group in groups:
        period = math.pi / (frequency if isinstance(frequency, float | int) else frequency[group])
        bias = _bias_of(graph, group)
        old = wide[bias]
        turns = ((old - near[bias].to(old) if bias in near else old) / period).round()
        old -= period * turns
        signs = 1 - 2 * turns.remainder(2)
        for use in _readers(graph, group, bias):
            part = use.block.view(wide[use.tensor]).movedim(use.at, -1)
            part *= signs
    wrapped = module_with(module, wide.rounded())
    with torch.no_grad():
        before, after = module(inputs), wrapped(inputs)
    if not float((after - before).abs().max()) <= TOLERANCE * float(before.abs().max()):
        raise FoldError(
            "the network computes something else once phases are wrapped: are its units sines of this frequency?"
        )
    return wrapped


def _bias_of(graph: GraphStructure, group: str) -> str:
    """Return the one tensor that holds a number for each unit of a group and nothing else."""
    size = (graph.groups[group].size,)
    found = list(dict.fromkeys(use.tensor for use in graph.uses[group] if graph.tensors[use.tensor].shape == size))
    if len(found) != 1:
        raise FoldError(f"group {group!r} has {len(found)} tensors with one number a unit, where one bias is expected.")
    return found[0]


def _readers(graph: GraphStructure, group: str, bias: str) -> list[Use]:
    """Return the uses of a group in tensors of other modules than that of its bias."""
    own = bias.rpartition(".")[0]
    return [use for use in graph.uses[group] if use.tensor.rpartition(".")[0] != own]
