"""Phases of a network whose units are in the order of another one, brought to the nearest of those of that one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from alignkit.graph.phases import biases_of, half_periods_of, phases_in
from alignkit.graph.rewrites import Phase, uses_at
from alignkit.graph.structure import GraphStructure
from alignkit.rewriting.phases import moved_phases
from alignkit.rewriting.wide import WideWeights

MAX_SWEEPS = 10
"""Layers that share weights choose in turn; two or three sweeps are usual."""


def bring_near(
    weights: WideWeights, graph: GraphStructure, like: Mapping[str, Tensor], phases: Iterable[Phase] | None = None
) -> None:
    """Move biases in place by the half periods that bring a network nearest to another one of the same order.

    Units that may change their sign do so where it helps: a unit with its other sign and half a period more has the
    same readers, since ``sin(pi - u)`` is ``sin(u)``. So what is to one side of half a half period in one network and
    to the other in the next becomes alike.

    Args:
        weights: The weights of the network that is moved.
        graph: The graph of both.
        like: The tensors of the other one, by first name.
        phases: Those that are moved. None: all of the graph.
    """
    moving = list(phases_in(graph) if phases is None else phases)
    for _ in range(MAX_SWEEPS):
        moved = [_move_units(weights, graph, phase, like) for phase in moving]
        if not any(moved):
            break


def _move_units(weights: WideWeights, graph: GraphStructure, phase: Phase, like: Mapping[str, Tensor]) -> bool:
    """Choose a sign and half periods for each unit, by what its weights and biases agree in; tell whether one moved."""
    now = {**weights.weights, **weights.wide}
    ours, theirs = (biases_of(graph, phase, side) for side in (now, like))
    periods = half_periods_of(graph, phase, now)
    moves = periods.isfinite()
    written, read = _agreement(graph, phase, now, like)
    choices = []
    for sign in (1, -1) if graph.groups[phase.group].kind == "signed" else (1,):
        exact = torch.where(moves, (theirs - sign * ours) / periods, 0.0)
        nearest = exact.round()
        beside = torch.where(moves, nearest + torch.where(exact < nearest, -1.0, 1.0), 0.0)
        for turns in (nearest, beside):
            moved = sign * ours + torch.where(moves, turns * torch.where(moves, periods, 0.0), 0.0)
            agreement = sign * (written + (1 - 2 * turns.remainder(2)) * read) - (theirs - moved).square() / 2
            choices.append((agreement, torch.full_like(turns, sign), turns))
    agreements, signs, turns = (torch.stack(each) for each in zip(*choices, strict=True))
    best = agreements.argmax(0, keepdim=True)
    chosen_signs, chosen_turns = (each.gather(0, best)[0] for each in (signs, turns))
    if bool((chosen_signs < 0).any()):
        for use in graph.uses[phase.group]:
            part = use.block.view(weights[use.tensor])
            part *= use.broadcast(chosen_signs.to(part))
    moved_phases(weights, graph, phase, chosen_turns)
    return bool((chosen_signs < 0).any() or chosen_turns.any())


def _agreement(
    graph: GraphStructure, phase: Phase, ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]
) -> tuple[Tensor, Tensor]:
    """Return the inner products of what two networks have at each unit, but for the biases: what stays, and reads."""
    turned = {
        (use.tensor, use.block.offsets, use.at)
        for place in phase.reads
        for use in uses_at(graph.tensors[place.tensor], phase.group, place)
    }
    (bias,) = uses_at(graph.tensors[phase.bias.tensor], phase.group, phase.bias)
    size = (graph.instances(phase.group), graph.groups[phase.group].size)
    stays, reads = (torch.zeros(size, dtype=torch.float64, device=ours[bias.tensor].device) for _ in "ab")
    for use in graph.uses[phase.group]:
        if (use.tensor, use.block.offsets) == (bias.tensor, bias.block.offsets):
            continue
        one, other = (use.unfold(use.block.view(side[use.tensor])).to(stays) for side in (ours, theirs))
        total = reads if (use.tensor, use.block.offsets, use.at) in turned else stays
        total += (one * other).sum(-1)
    return stays, reads
