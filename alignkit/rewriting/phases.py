"""Phases of sine units brought to one place, as a balance is: the nearest to 0, or to those of another network."""

from __future__ import annotations

import torch
from torch import Tensor

from alignkit.graph.phases import biases_of, half_periods_of, move_by_half_periods
from alignkit.graph.rewrites import Phase
from alignkit.graph.structure import GraphStructure
from alignkit.rewriting.spaces import BalancedSpace
from alignkit.rewriting.wide import WideWeights

FOREIGN = 0.35
"""Root mean square, in half periods, between the biases of two networks from which one is no fine-tune of the other.
Between biases that are drawn evenly from one half period it is 0.41."""


def bring_phases(
    weights: WideWeights, graph: GraphStructure, phase: Phase, near: Tensor | None = None
) -> BalancedSpace:
    """Move the biases of units in place by the half periods that bring them nearest to 0, or to other biases.

    The function stays. Orders and signs of units change nothing about it.

    Args:
        weights: The weights of a network.
        graph: Its graph.
        phase: One of the phases of the graph.
        near: Biases of the units of another network, ``[instances, units]``.
    """
    biases, periods = biases_of(graph, phase, weights), _half_periods(weights, graph, phase)
    target = torch.zeros_like(biases) if near is None else near.to(biases)
    return moved_phases(weights, graph, phase, ((target - biases) / periods).round())


def follow_phases(weights: WideWeights, graph: GraphStructure, base: BalancedSpace) -> BalancedSpace:
    """Move the biases of a fine-tune in place as those of its base were, so that what lies between stays between.

    If it is nearer to the base as it is, it was folded before, and is left so. If it is far from the base in both ways,
    it has phases or an order of its own, and its biases go to the nearest of 0.
    """
    phase = base.balance
    assert isinstance(phase, Phase) and base.biases is not None and base.turns is not None
    apart = (biases_of(graph, phase, weights) - base.biases) / _half_periods(weights, graph, phase)
    ways = [base.turns.to(apart), torch.zeros_like(apart)]
    far = [float((apart + turns).square().mean().sqrt()) for turns in ways]
    if min(far) > FOREIGN:
        return bring_phases(weights, graph, phase)
    return moved_phases(weights, graph, phase, ways[far.index(min(far))])


def phases_apart(weights: WideWeights, graph: GraphStructure, phase: Phase, others: WideWeights) -> bool:
    """Return whether biases of two networks of one order are further apart than those of a network and a fine-tune."""
    apart = biases_of(graph, phase, weights) - biases_of(graph, phase, others)
    return float((apart / _half_periods(weights, graph, phase)).square().mean().sqrt()) > FOREIGN


def _half_periods(weights: WideWeights, graph: GraphStructure, phase: Phase) -> Tensor:
    return half_periods_of(graph, phase, {**weights.weights, **weights.wide})  # factors may be whole numbers


def moved_phases(weights: WideWeights, graph: GraphStructure, phase: Phase, turns: Tensor) -> BalancedSpace:
    """Move the biases of units in place by half periods, ``[instances, units]``."""
    before = float(biases_of(graph, phase, weights).square().sum())
    move_by_half_periods(graph, phase, weights, turns, _half_periods(weights, graph, phase))
    biases, signs = biases_of(graph, phase, weights).cpu(), (1 - 2 * turns.remainder(2)).cpu()
    after = float(biases.square().sum())
    return BalancedSpace(phase, before, after, 0, torch.ones_like(signs), signs, biases, turns.cpu())
